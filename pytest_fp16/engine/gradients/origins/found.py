"""What made NaN or infinity of finite arguments, and how it is told."""

from __future__ import annotations

import math
from typing import NamedTuple

from pytest_fp16.engine.gradients.finding import Finding
from pytest_fp16.engine.gradients.origins.zeros import Zeroed
from pytest_fp16.report.model import Mechanism
from pytest_fp16.theory.rounding import Format


class Found(NamedTuple):
    """The operation that made NaN or infinity of finite arguments.

    Attributes:
        module: its module, or ``"<loss>"`` or ``"<optimizer>"``.
        operation: its name.
        mechanism: ``"overflow"``, ``"cancellation"``, or ``"eps-underflow"`` or ``"underflow"``
            of a divisor; ``"mask-inf"`` where it scaled a mask to a constant that is infinite, or
            made NaN of an infinity that no operation made: a constant, too.
        largest: the largest magnitude among its arguments; the constant of a mask, if known.
        reached: the largest magnitude that its result should have had; NaN where that is unknown.
        source: the line of the user's code that ran it, or what it is the backward pass of; None
            where torch's own did.
        of_batch: whether it is the batch that was cast, before the model saw it.
        backward_of: the operation whose backward pass it is part of, if it is.
        divides: whether it divides by zero, or takes a logarithm or root of it.
        then: what divides by the zero that it made, and where; empty where it does so itself.
        part: the operation within it that lost the values, where it is composed of several.
        constant: the guard that is zero in the format, where a divisor has lost one.
        stored: what a buffer held, where the cast of it made the zero; its name is the operation.
    """

    module: str
    operation: str
    mechanism: Mechanism
    largest: float
    reached: float = math.nan
    source: str | None = None
    of_batch: bool = False
    backward_of: str | None = None
    divides: bool = False
    then: str = ""
    part: str = ""
    stored: float | None = None
    constant: float | None = None

    @property
    def where(self) -> str:
        """The operation and its module, in words."""
        return f"{self.operation} in {self.module or 'the model'}"

    def finding(self, reason: str, evidence: str) -> Finding:
        """The same as a rule says it."""
        return Finding(reason, self.module, self.operation, self.mechanism, evidence, self.source)

    def detail(self, form: Format) -> str:
        """What happened, in words and numbers."""
        behind = f", in the backward pass of {self.backward_of}" if self.backward_of else ""
        within = f", in its {self.part}" if self.part else ""
        return self._happened(form) + within + behind

    def _happened(self, form: Format) -> str:
        if self.stored is not None:
            return f"{self.stored:.2g}, stored in this buffer, is zero in {form.name}; {self.then}"
        if self.mechanism == "overflow" and math.isinf(self.largest):
            return f"a divisor that is infinite in {form.name} leaves nothing"
        if self.mechanism == "mask-inf" and math.isfinite(self.largest):
            constant = f"the constant {self.largest:.3g}, to which a mask is scaled"
            return f"{constant}, is infinite in {form.name}"
        if self.mechanism == "mask-inf":
            return f"a constant that is infinite in {form.name} gave NaN"
        if self.mechanism == "eps-underflow":
            zero = "a divisor (or the argument of a logarithm or root) has rounded to zero"
            if self.constant is None:
                return zero
            return f"{zero}, as {self.constant:g}, its guard, is zero in {form.name}"
        if self.then:
            what = "what is cast" if self.operation == "_to_copy" else "a result"
            return f"{what} is too small for {form.name} and falls to zero; then {self.then}"
        if self.divides:
            how = "the difference of numbers that are equal in"
            how = "too small for" if self.mechanism == "underflow" else how
            return f"a divisor (or the argument of a logarithm or root) is zero: {how} {form.name}"
        if self.mechanism == "cancellation":
            return "an operation on finite values gave NaN"
        reached = self.reached if math.isfinite(self.reached) else self.largest
        what = "result" if reached == self.reached else "largest argument"
        if self.of_batch:
            what = "the batch itself, inputs or targets, goes up to"
        return f"{what} {reached:.1e}, {form.name} holds {form.largest:.2e}"


def traced(found: Found, why: Zeroed) -> Found:
    """What divides by zero, or what made that zero of a number that is none."""
    if not why.operation or (why.source, why.operation) == (found.source, found.operation):
        return found._replace(mechanism=why.mechanism, divides=True, constant=why.constant)
    line = f" ({found.source})" if found.source not in (None, why.source) else ""
    behind = f" in the backward pass of {found.backward_of}" if found.backward_of else ""
    then = f"{found.operation}{behind}{line} divides by it, or takes its logarithm or root"
    made = Found(why.module, why.operation, why.mechanism, found.largest, source=why.source)
    return made._replace(divides=True, then=then, stored=why.stored)
