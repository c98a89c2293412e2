"""One frozen object with every setting and its default; imports nothing heavy.

Values are validated here once, whoever they came from: command line, ini file, decorator, or a
keyword of `check`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any

from pytest_fp16.errors import SettingError

__tracebackhide__ = True  # misuse is shown at the user's own line

#: The four 16-bit precisions a test is run in unless it, or the user, names others.
CANDIDATES = ("16-true", "16-mixed", "bf16-true", "bf16-mixed")

_EMULATE = ("auto", "always", "never")
_TARGETS = ("cuda", "cpu")
_REPORTS = ("short", "full")
#: Settings of a whole session, which do nothing for one check; and what does.
_SESSION = {
    "json": "--fp16-json, or write_json() of pytest_fp16.report.json",
    "report": "--fp16-report, or full() of pytest_fp16.report.terminal",
}


@dataclass(frozen=True)
class Settings:
    """Every setting of a conformance check.

    Attributes:
        precisions: names of the candidates, in the order they are reported.
        device: where models run: ``"auto"`` (CUDA if there is one, else CPU), ``"cpu"``,
            ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        target: the device whose 16-bit behaviour an emulated verdict speaks for.
        emulate: ``"auto"`` is emulated on a CPU and native elsewhere.
        budget: metric a user is willing to lose: a number in the metric's own units (``0.005`` is
            half a point of accuracy, as is ``"0.5pt"``), ``"0.5%"`` of the reference, or None for
            the default of the metric's own standard error (docs/explanation/verdict.md).
        seeds: the largest number of pairs a training check may spend.
        json: path the JSON report is written to, or None.
        report: ``"short"`` or ``"full"`` (adds the table of ranges and shares).
        plan: path of the file that lists the modules to keep in float32, or None.
        store: folder where each finished training run is kept (made when needed), or None to keep
            none; the plugin names a folder of pytest's cache.
        resume: read finished training runs from `store` instead of repeating them; a run whose
            model, data or settings have changed since is repeated. Off by default.
    """

    precisions: tuple[str, ...] = CANDIDATES
    device: str = "auto"
    target: str = "cuda"
    emulate: str = "auto"
    budget: float | str | None = None
    seeds: int = 8
    json: str | None = None
    report: str = "short"
    plan: str | None = None
    store: str | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        from pytest_fp16.precision import canonical_name

        names = _names(self.precisions)
        if not names:
            raise SettingError("precisions is empty; name at least one of " + ", ".join(CANDIDATES))
        canonical = tuple(dict.fromkeys(canonical_name(name) for name in names))
        object.__setattr__(self, "precisions", canonical)
        if not isinstance(self.device, str):
            raise SettingError(
                f"device must be a name such as 'auto', 'cpu' or 'cuda:1' (got {self.device!r})"
            )
        _one_of("emulate", self.emulate, _EMULATE)
        _one_of("target", self.target, _TARGETS)
        _one_of("report", self.report, _REPORTS)
        object.__setattr__(self, "budget", parse_budget(self.budget))
        if isinstance(self.seeds, bool) or not isinstance(self.seeds, int) or self.seeds < 1:
            raise SettingError(f"seeds must be a whole number of at least 1 (got {self.seeds!r})")
        if not isinstance(self.resume, bool):
            raise SettingError(f"resume must be True or False (got {self.resume!r})")
        if self.store is not None:
            object.__setattr__(self, "store", _folder(self.store))

    def with_(self, **changes: Any) -> Settings:
        """A copy with some settings changed.

        Raises:
            SettingError: a name that is no setting, or a value that cannot be used.
        """
        known = {field.name for field in fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise SettingError(
                f"unknown setting {', '.join(map(repr, unknown))}; known are "
                + ", ".join(sorted(known - _SESSION.keys()))
                + " (a model, its data and the like belong to the Evaluation or Training)"
            )
        values = {name: getattr(self, name) for name in known}
        return Settings(**values | changes)  # not by replace(), whose source pytest would show

    def for_check(self, **changes: Any) -> Settings:
        """A copy with some settings changed for one check.

        Raises:
            SettingError: see `with_`; or a setting that speaks for a whole session.
        """
        for name in changes.keys() & _SESSION.keys():
            raise SettingError(f"{name} speaks for a whole session; use {_SESSION[name]}")
        return self.with_(**changes)


def _names(precisions: object) -> tuple[str, ...]:
    if isinstance(precisions, str):
        return (precisions,)
    if not isinstance(precisions, Iterable):
        raise SettingError(f"precisions must be a list of names (got {precisions!r})")
    return tuple(precisions)


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingError(f"{name} must be one of {', '.join(choices)} (got {value!r})")


def _folder(value: object) -> str:
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise SettingError(f"store must be the path of a folder (got {value!r})")
    return os.fspath(value)


def parse_budget(value: float | str | None) -> float | str | None:
    """Normalise a budget: None, a non-negative number, or a percentage such as ``"0.5%"``.

    Points (``"0.5pt"``, ``"0.5 points"``), as reports print them, are hundredths of the metric.

    Raises:
        SettingError: negative, infinite, not a number, or with a unit that is none.
    """
    if value is None:
        return None
    text = str(value).strip()
    if isinstance(value, str) and text.lower() in {"", "default"}:
        return None
    pattern = r"(?P<number>[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?)"
    match = re.fullmatch(pattern + r"\s*(?P<unit>%|pts?|points?|)", text, re.IGNORECASE)
    if match is None or isinstance(value, bool):
        raise SettingError(
            f"budget {value!r} does not parse; give a number in the metric's own units (0.005), "
            'points ("0.5pt") or a percentage of the reference ("0.5%")'
        )
    number = float(match["number"])
    if number < 0:
        raise SettingError(
            f"budget {value!r} is negative; it is what you are willing to lose, so >= 0"
        )
    if math.isinf(number):
        raise SettingError(
            f"budget {value!r} is infinite, so that nothing could fail; give what you are willing "
            'to lose, such as 0.005 or "0.5pt"'
        )
    if match["unit"] == "%":
        return f"{number:g}%"
    return float(Decimal(match["number"]) / 100) if match["unit"] else number


def require_room(budget: float | str | None) -> None:
    """Refuse a training's budget of nothing: no number of runs shows that a mean loss is below it.

    Raises:
        SettingError: it is zero.
    """
    if budget is not None and float(str(budget).rstrip("%")) == 0:
        raise SettingError(
            "budget 0 could not pass: runs of a training show that a loss is below a budget, never "
            "that it is none; leave it out for the default, or give what you are willing to lose, "
            'such as "0.5pt"'
        )


def require_meaning(budget: float | str | None) -> None:
    """Refuse a budget, parsed already, that no share (an accuracy, an agreement) can exceed.

    Raises:
        SettingError: it is all there is to lose.
    """
    if budget is None:
        return
    share = float(budget.rstrip("%")) / 100 if isinstance(budget, str) else budget
    if share >= 1:
        given = budget if isinstance(budget, str) else f"{budget:g}"
        raise SettingError(
            f"budget {given} could not fail: it is all that an accuracy has to lose; half a point "
            'is 0.005 or "0.5pt", half a percent of the reference "0.5%"'
        )
