"""What the fixture `fp16` hands to a test: checks by hand, with the session's settings."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pytest_fp16.errors import FP16Error, SettingError
from pytest_fp16.subject import Evaluation, Training, require_subject

if TYPE_CHECKING:
    from pytest_fp16.report.model import Report
    from pytest_fp16.settings import Settings

Method = TypeVar("Method", bound=Callable[..., Any])

Examine = Callable[["Evaluation | Training", "Settings"], "list[Report]"]


def _told_at_the_call(method: Method) -> Method:
    """`method`, whose misuse is shown at the line that calls it and nowhere below."""

    @functools.wraps(method)
    def wrapper(*args: Any, **keywords: Any) -> Any:
        __tracebackhide__ = True
        try:
            return method(*args, **keywords)
        except FP16Error as error:
            raise error.with_traceback(None) from None

    return cast(Method, wrapper)


class FP16:
    """Checks by hand; each report also appears in the table, in JSON and in JUnit.

    Args:
        settings: the session's; keywords of a call change them for that call.
        examine: runs the check and records its reports.
    """

    def __init__(self, settings: Settings, examine: Examine) -> None:
        self.settings = settings
        self._examine = examine

    @_told_at_the_call
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

    @_told_at_the_call
    def train(self, *, precision: str = "16-true", **keywords: Any) -> Report:
        """Train in 32 and in 16 bits; takes the fields of `Training`, and settings.

        Raises:
            FP16Error: misuse; never because the training breaks in 16 bits.
            TypeError: a field that `Training` needs is missing.
        """
        __tracebackhide__ = True
        fields, settings = _split(Training, keywords)
        return self.check(Training(**fields), precision=precision, **settings)

    @_told_at_the_call
    def check(
        self, subject: Evaluation | Training, *, precision: str = "16-true", **settings: Any
    ) -> Report:
        """Check an Evaluation or a Training that is made already.

        Raises:
            FP16Error: misuse; never because the model breaks in 16 bits.
        """
        __tracebackhide__ = True
        require_subject(subject)
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
