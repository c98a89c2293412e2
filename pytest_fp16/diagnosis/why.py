"""A mechanism with its evidence: what every rule of a diagnosis answers."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_fp16.diagnosis.findings import Finding
from pytest_fp16.diagnosis.twin_run import Operation
from pytest_fp16.report.model import Culprit, Mechanism, Variant
from pytest_fp16.theory.rounding import FORMATS, Format


@dataclass(frozen=True)
class Why:
    """A mechanism, the operation it is seen at, and its evidence.

    Attributes:
        beside: others of the same line, of which the same is to be said.
    """

    mechanism: Mechanism
    operation: Operation
    evidence: str
    variant: Variant | None = None
    beside: tuple[Operation, ...] = ()

    def culprit(self) -> Culprit:
        """The same as a report says it."""
        return Culprit(
            module=self.operation.module,
            operation=self.operation.name,
            mechanism=self.mechanism,
            evidence=self.evidence,
            source=self.operation.source,
            variant=self.variant,
        )


def low_format(finding: Finding) -> Format | None:
    """The 16-bit format an operation worked in; None where it took and gave wider values."""
    for measure in (*finding.results, *finding.operands):
        if measure.dtype in FORMATS:
            return FORMATS[measure.dtype]
    return None


def format_of(finding: Finding) -> Format:
    """The same, or that of the program where the operation worked in wider numbers."""
    return low_format(finding) or FORMATS[finding.asked]
