"""Are failures forecast before a native 16-bit kernel has run, and only failures?

Claimed: at least 95 % of planted failures forecast (those of an operation without a kernel are the
canary's to find and counted apart), no false forecast on at least 40 healthy models. Verdicts are
counted beside forecasts, on the same cases, and every error is listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from benchmarks import common
from benchmarks.cases import HEALTHY, HELD_OUT, PLANTED, Planted, load
from benchmarks.cases.base import Case, named

OPTIONS = (
    ("--target", {"choices": ("cuda", "cpu"), "default": "cuda"}),
    ("--only", {"default": ""}),
    ("--held-out", {"action": "store_true", "help": "the cases of reported.py instead"}),
)


def pairs(
    target: str, only: str, quick: bool, held_out: bool = False
) -> Iterator[tuple[Case, str, str]]:
    """Case, precision, and whether it must be equivalent."""
    load()
    healthy, planted = list(HEALTHY.values()), list(PLANTED.values())
    if quick:
        healthy, planted = healthy[6:48:6], planted[::8]
    for case in HELD_OUT.values() if held_out else [*planted, *healthy]:
        if only not in case.name:
            continue
        if isinstance(case, Planted):
            yield from ((case, p, "not equivalent") for p in case.failing(target))
        yield from ((case, p, "equivalent") for p in case.sound(target))


def chosen(options: Any) -> Iterator[tuple[Case, str, str]]:
    """The pairs that the command line asks for."""
    return pairs(options.target, options.only, options.quick, options.held_out)


#: A case by name, and its precisions with what each must be: what a process is handed.
Labels = tuple[str, tuple[tuple[str, str], ...]]


def by_case(found: Iterable[tuple[Case, str, str]]) -> list[Labels]:
    """Pairs gathered by case, whose precisions share a pass."""
    grouped = groupby(found, key=lambda pair: pair[0].name)
    return [(name, tuple((p, label) for _, p, label in those)) for name, those in grouped]


def group(case: Case, expected: str) -> str:
    """Which of the claims a pair belongs to."""
    if not isinstance(case, Planted):
        return "healthy"
    if expected == "equivalent":
        return "planted, in precisions that are sound"
    return "no kernel" if case.mechanism == "unsupported-op" else "planted"


@dataclass(frozen=True)
class Judged:
    """What was said of a pair, beside its label."""

    case: str
    precision: str
    label: str
    forecast: str
    verdict: str
    reason: str

    @property
    def right(self) -> bool:
        """Whether both are as the label says."""
        return self.forecast == self.label == self.verdict

    @property
    def line(self) -> tuple[str, ...]:
        """As the table shows it."""
        case = named(self.case)
        mechanism = case.mechanism if isinstance(case, Planted) else ""
        said = (self.precision, self.label, self.forecast, self.verdict, self.reason[:110])
        return (self.case, mechanism, *said)


def judged(case: Case, precision: str, label: str, said: common.Outcome) -> Judged:
    """What a check said of one pair; printed where it is wrong."""
    forecast = said.report.forecast if said.report else None
    why = said.error or (forecast.reason if forecast else said.report.error) or ""
    one = Judged(case.name, precision, label, said.forecast, said.verdict, why)
    if not one.right:
        print(*one.line, sep=" | ", flush=True)
    return one


def checked(labels: Labels, target: str) -> list[Judged]:
    """Check a case in each of its precisions."""
    case = named(labels[0])
    return [
        judged(case, precision, label, common.check_case(case, precision, target=target))
        for precision, label in labels[1]
    ]


def write(found: Iterable[Judged], options: Any) -> None:
    """Count right and wrong forecasts and verdicts, and write the table."""
    counts: dict[str, list[int]] = {}
    wrong = []
    for one in found:
        tally = counts.setdefault(group(named(one.case), one.label), [0, 0, 0])
        tally[0] += 1
        tally[1] += one.forecast == one.label
        tally[2] += one.verdict == one.label
        if not one.right:
            wrong.append(one.line)
    rows = [
        (name, n, common.share(forecast, n), common.share(verdict, n))
        for name, (n, forecast, verdict) in counts.items()
    ]
    summary = common.table(("pairs", "number", "forecast right", "verdict right"), rows)
    headers = ("case", "mechanism", "precision", "label", "forecast", "verdict", "reason given")
    common.write(
        f"forecast-{'held-out-' * options.held_out}{options.target}",
        f"Forecast and verdict against labels, target {options.target}",
        summary + "\n\nEvery pair in which forecast or verdict differ from the label:",
        headers,
        wrong,
        quick=options.quick or bool(options.only),
    )


def main() -> None:
    """Check every labelled pair and count right and wrong forecasts and verdicts."""
    options = common.options(__doc__, *OPTIONS)
    check = partial(checked, target=options.target)
    every = common.spread(check, by_case(chosen(options)), options)
    write((one for found in every for one in found), options)


if __name__ == "__main__":
    main()
