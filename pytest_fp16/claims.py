"""What a test claims, and which of its items this is. Items are handed in, pytest not imported."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from pytest_fp16.decorator import ARGUMENTS, check_arguments
from pytest_fp16.errors import SettingError
from pytest_fp16.subject import Evaluation, Training, of_trainer

if TYPE_CHECKING:
    import pytest

MARK = "fp16_equivalent"
#: What a test can claim something of.
SUBJECTS = (Evaluation, Training)
#: The parameter that makes one item per precision.
PARAMETER = "fp16_precision"


def claim(node: pytest.Item, test: Any) -> dict[str, Any] | None:
    """Settings a test is claimed with, by decorator or marks (the closer wins); None: no claim.

    Raises:
        SettingError: a mark with positional or unknown arguments.
    """
    arguments = getattr(test, ARGUMENTS, None)
    marks = list(node.iter_markers(MARK))
    if arguments is None and not marks:
        return None
    merged: dict[str, Any] = {}
    for mark in reversed(marks):
        if mark.args:
            raise SettingError(f"the mark {MARK} takes keywords only (got {mark.args[0]!r})")
        check_arguments(dict(mark.kwargs))
        merged |= mark.kwargs
    return merged | (arguments or {})


def require_device(item: Any) -> None:
    """Refuse a device that a test names, and that is not there.

    Raises:
        DeviceError: no such device here, or no such name.
    """
    device = (claim(item, item.obj) or {}).get("device", "auto")
    if device not in ("auto", "cpu"):
        from pytest_fp16.engine.device import resolve_device

        resolve_device(device)


def name_and_precision(item: Any) -> tuple[str, str]:
    """The id of an item without its precision, which all siblings share, and the precision."""
    callspec = getattr(item, "callspec", None)
    precision = callspec.params.get(PARAMETER, "") if callspec else ""
    return without_parameter(item.nodeid, precision), precision


def without_parameter(nodeid: str, value: str) -> str:
    """A node id without the last parameter of that value: ``t[a-16-true]`` becomes ``t[a]``."""
    if not value or not nodeid.endswith("]"):
        return nodeid
    name, _, ids = nodeid[:-1].partition("[")
    if ids == value:
        return name
    head, found, tail = ids.rpartition(f"-{value}")
    if found:
        return f"{name}[{head}{tail}]"
    return f"{name}[{ids.removeprefix(value + '-')}]"


class Names:
    """Ids of the checks that one test makes by hand, so that a plan can tell them apart.

    Args:
        nodeid: the test's.
    """

    def __init__(self, nodeid: str) -> None:
        self._nodeid = nodeid
        self._made: Counter[tuple[str, str]] = Counter()

    def of(self, subject: Evaluation | Training, precision: str) -> str:
        """The test's id, with the subject's own name, and a number where it comes again."""
        own = getattr(subject, "name", "model")
        name = self._nodeid if own == "model" else f"{self._nodeid}::{own}"
        self._made[name, precision] += 1
        made = self._made[name, precision]
        return name if made == 1 else f"{name} #{made}"


def subject_in(values: list[Any], test: str) -> Evaluation | Training:
    """The last of what a test returned.

    Raises:
        SettingError: it is neither an Evaluation nor a Training.
    """
    value = values[-1] if values else None
    if not isinstance(value, SUBJECTS):
        got = "None" if value is None else type(value).__name__
        raise SettingError(
            f"{test} must return an Evaluation or a Training (it returned {got}){of_trainer(value)}"
        )
    return value


def nothing(**fixtures: Any) -> None:
    """Stands in for a test whose sibling has been called already."""


def wants_timing(item: Any) -> bool:
    """Whether a test by hand asks for pytest-benchmark's fixture beside ours."""
    return {"fp16", "benchmark"} <= set(getattr(item, "fixturenames", ()))


def unclaimed(value: Evaluation | Training, test: str) -> str:
    """What to tell the author of a test that returns a subject, and claims nothing of it."""
    kind = type(value).__name__
    return (
        f"{test} returned {'an' if kind[0] in 'AEIOU' else 'a'} {kind}, which nothing has checked: "
        f"decorate {test} with @fp16_equivalent"
    )
