"""What is needed to try a cure, and what came of those that were tried."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from pytest_fp16.diagnosis.applied import Applied
from pytest_fp16.diagnosis.comparison import Comparison
from pytest_fp16.diagnosis.origin import Origin
from pytest_fp16.diagnosis.remedy import Remedy
from pytest_fp16.diagnosis.upcast import applied_to
from pytest_fp16.errors import FP16Error
from pytest_fp16.evaluation.evidence import Kept
from pytest_fp16.report.model import Price, Report

if TYPE_CHECKING:
    from pytest_fp16.diagnosis.given import Lost

#: Damage left on the few inputs at which a full re-check is worth its time.
HEALED = 0.5
#: Full re-checks that a model of few modules is worth: one of each kind of cure.
_LEAST = 5


@dataclass(frozen=True)
class Recheck:
    """What came of a remedy on all data.

    Attributes:
        kept: inputs to look at, where some went wrong though the remedy was applied; or None.
        doubtful: where it passed, it did so by luck, or stores values that became infinite.
    """

    report: Report
    kept: Kept | None = None
    doubtful: bool = False

    @property
    def sound(self) -> bool:
        """Whether it passed, and not by luck."""
        return self.report.equivalent and not self.doubtful


#: Checks in full what comes of a remedy.
Judge = Callable[[Remedy], Recheck]
#: A few inputs with a remedy applied: those that are given, or those the failure was seen on.
Rerun = Callable[[Remedy, Kept | None], Comparison]
#: What a remedy costs; None where that cannot be told.
Pricer = Callable[[Remedy], Price | None]


@dataclass
class Trials:
    """What is needed to try a cure.

    Attributes:
        model: the float32 model.
        precision: the precision that failed.
        judge: re-checks in full.
        rerun: makes the comparison anew with a remedy, and of other inputs where they are given.
        price: tells what a remedy costs.
        siblings: reports of other precisions that there are already.
        budget: full re-checks that may still be spent.
        line_failed: the culprit's line in float32 was tried, and is not enough.
        inputs_failed: so were inputs that are handed on as they are, which 16-bit layers refuse.
        lost: what loses it as it is cast, or None; once that was asked.
        dear: what passes, and leaves so much in float32 that a cheaper one is looked for; or None.
        error: what the first remedy of lines raised that does not run; or None.
        applied: what remedies of lines did on a few inputs.
        short: the re-checks that failed, by their remedy; what goes wrong there is another fault's.
    """

    model: nn.Module
    precision: str
    judge: Judge
    rerun: Rerun
    price: Pricer
    siblings: dict[str, Report] = field(default_factory=dict)
    budget: int = field(init=False)
    line_failed: bool = False
    inputs_failed: bool = False
    lost: tuple[Lost | None] | None = None
    dear: Remedy | None = None
    error: BaseException | None = None
    short: dict[Remedy, Recheck] = field(default_factory=dict)
    applied: dict[Remedy, Applied] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = dict(self.model.named_modules())
        self.budget = max(_LEAST, math.ceil(math.log2(len(self.names) + 1)))

    def heals(self, remedy: Remedy, origin: Origin | None) -> bool:
        """Whether the few inputs come out (nearly) right; where that is not known, yes."""
        return self.left(remedy, origin) < HEALED

    def stores(self, remedy: Remedy) -> bool:
        """Whether what is kept in float32 leaves most of the model's weights in 16 bits."""
        own = remedy.precision == self.precision and not self.precision.endswith("mixed")
        if not own or not (remedy.keep or remedy.inputs):
            return False
        kept = {p for name in remedy.keep for p in self.names[name].parameters()}
        total = sum(p.numel() for p in self.model.parameters())
        return bool(2 * sum(p.numel() for p in kept) < total)

    def left(self, remedy: Remedy, origin: Origin | None) -> float:
        """The damage left on the few inputs; infinite where the remedy cannot be applied."""
        try:
            again = self.rerun(remedy, None)
            output = again.run()
        except Exception as error:  # or does not run
            if remedy.lines and self.error is None:
                self.error = error.with_traceback(None)  # whose frames hold tensors
            return math.inf
        done = applied_to(again.candidate.model) if remedy.lines else None
        if done is not None:
            self.applied[remedy] = done
        return 0.0 if origin is None else origin.damage.of(output)

    def focused(self, remedy: Remedy) -> Callable[[Remedy], Comparison]:
        """Makes comparisons of what goes wrong though a remedy is applied, where that is known."""
        known = self.short.get(remedy)
        kept = known.kept if known is not None else None
        return lambda other: self.rerun(other, kept)

    def shortfall(self, of: Callable[[Remedy], bool]) -> tuple[Remedy, Report] | None:
        """The first such remedy in the precision itself that was tried and fell short."""
        for remedy, again in self.short.items():
            if remedy.precision == self.precision and of(remedy):
                return remedy, again.report
        return None

    def judged(self, remedy: Remedy) -> Report | None:
        """A full re-check, or None where none is left to spend or the cure cannot be applied."""
        if remedy == Remedy(remedy.precision) and remedy.precision in self.siblings:
            return self.siblings[remedy.precision]
        if self.budget <= 0:
            return None
        self.budget -= 1
        try:
            again = self.judge(remedy)
        except FP16Error:
            return None
        if not again.report.equivalent:
            self.short[remedy] = again
        return again.report
