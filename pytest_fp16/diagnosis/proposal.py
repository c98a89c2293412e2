"""One cure that a failed training may be given."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_fp16.engine.training.place import Amendment
from pytest_fp16.precision import Precision
from pytest_fp16.report.model import CureKind, Mechanism
from pytest_fp16.subject import Training


@dataclass(frozen=True)
class Proposal:
    """One cure to try.

    Attributes:
        kind, description, modules: as the report's `Cure`.
        subject: the training, changed; None where it stays.
        amendment: what changes beside the training.
        precision: another precision to train in instead.
        control: the same without what it is said to mend; where that helps as well, it is no cure.
        points_to, operation, mechanism: the culprit it speaks for, should it help and nothing else
            name one.
    """

    kind: CureKind
    description: str
    modules: list[str] = field(default_factory=list)
    subject: Training | None = None
    amendment: Amendment | None = None
    control: Amendment | None = None
    precision: Precision | None = None
    points_to: str = ""
    operation: str = ""
    mechanism: Mechanism = "precision-loss"
