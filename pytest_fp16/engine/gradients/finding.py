"""One thing that the gradient check found wrong, and whom it lays it to."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_fp16.report.model import Culprit, Mechanism, Variant


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    reason: str
    module: str
    operation: str
    mechanism: Mechanism
    evidence: str
    source: str | None = None
    variant: Variant | None = None

    @property
    def culprit(self) -> Culprit:
        """As the report shows it."""
        return Culprit(
            module=self.module,
            operation=self.operation,
            mechanism=self.mechanism,
            evidence=self.evidence,
            source=self.source,
            variant=self.variant,
        )


def module_of(name: str) -> str:
    """The module that a parameter, a buffer or another tensor belongs to."""
    return name.partition("[")[0].rpartition(".")[0]


def leaf_of(name: str) -> str:
    """What it is called within its module; ``"shadow[net.weight]"`` is one name."""
    head, bracket, rest = name.partition("[")
    return head.rpartition(".")[2] + bracket + rest
