"""What the fixture `fp16` hands to a test: checks by hand, with the session's settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pytest_fp16.errors import SettingError
from pytest_fp16.subject import Evaluation, Training

if TYPE_CHECKING:
    from pytest_fp16.report.model import Report
    from pytest_fp16.settings import Settings

Examine = Callable[["Evaluation | Training", "Settings"], "list[Report]"]


class FP16:
    """Checks by hand; each report also appears in the table, in JSON and in JUnit.

    Args:
        settings: the session's; keywords of a call change them for that call.
        examine: runs the check and records its reports.
    """

    def __init__(self, settings: Settings, examine: Examine) -> None:
        self.settings = settings
        self._examine = examine

    def evaluate(
        self, model: Any, data: Iterable[Any], *, precision: str = "16-true", **keywords: Any
    ) -> Report:
        """Evaluate `model` on `data` in 32 and in 16 bits.

        Args:
            model: as in `Evaluation`.
            data: as in `Evaluation`.
            precision: the candidate.
            **keywords: further fields of `Evaluation` (``task``, ``metric``, …) and settings
                (``budget``, ``emulate``, …).

        Raises:
            FP16Error: misuse; never because the model breaks in 16 bits.
        """
        __tracebackhide__ = True
        fields, settings = _split(Evaluation, keywords)
        return self.check(Evaluation(model, data, **fields), precision=precision, **settings)

    def train(self, *, precision: str = "16-true", **keywords: Any) -> Report:
        """Train in 32 and in 16 bits; takes the fields of `Training`, and settings.

        Raises:
            FP16Error: misuse; never because the training breaks in 16 bits.
            TypeError: a field that `Training` needs is missing.
        """
        __tracebackhide__ = True
        fields, settings = _split(Training, keywords)
        return self.check(Training(**fields), precision=precision, **settings)

    def check(
        self, subject: Evaluation | Training, *, precision: str = "16-true", **settings: Any
    ) -> Report:
        """Check an Evaluation or a Training that is made already.

        Raises:
            FP16Error: misuse; never because the model breaks in 16 bits.
        """
        __tracebackhide__ = True
        if "precisions" in settings:
            raise SettingError("fp16 checks one precision=; the decorator takes precisions=[…]")
        chosen = self.settings.for_check(**{**settings, "precisions": (precision,)})
        (report,) = self._examine(subject, chosen)
        return report


def _split(kind: type[Any], keywords: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords that are fields of `kind`, and the others, which are settings."""
    names = {field.name for field in dataclasses.fields(kind)}
    return (
        {k: v for k, v in keywords.items() if k in names},
        {k: v for k, v in keywords.items() if k not in names},
    )
