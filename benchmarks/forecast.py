"""Are failures forecast before a native 16-bit kernel has run, and only failures?

Claimed: at least 95 % of planted failures forecast (those of an operation without a kernel are the
canary's to find and counted apart), no false forecast on at least 40 healthy models. Verdicts are
counted beside forecasts, on the same cases, and every error is listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import common
from benchmarks.cases import HEALTHY, HELD_OUT, PLANTED, Planted, load
from benchmarks.cases.base import Case

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


def group(case: Case, expected: str) -> str:
    """Which of the claims a pair belongs to."""
    if not isinstance(case, Planted):
        return "healthy"
    if expected == "equivalent":
        return "planted, in precisions that are sound"
    return "no kernel" if case.mechanism == "unsupported-op" else "planted"


def main() -> None:
    """Check every labelled pair and count right and wrong forecasts and verdicts."""
    options = common.options(__doc__, *OPTIONS)
    counts: dict[str, list[int]] = {}
    wrong = []
    for case, precision, expected in chosen(options):
        found = common.check_case(case, precision, target=options.target)
        tally = counts.setdefault(group(case, expected), [0, 0, 0])
        tally[0] += 1
        tally[1] += found.forecast == expected
        tally[2] += found.verdict == expected
        if found.forecast != expected or found.verdict != expected:
            forecast = found.report.forecast if found.report else None
            why = found.error or (forecast.reason if forecast else found.report.error) or ""
            label = case.mechanism if isinstance(case, Planted) else ""
            line = (case.name, label, precision, expected, found.forecast, found.verdict, why[:110])
            wrong.append(line)
            print(*line, sep=" | ", flush=True)
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


if __name__ == "__main__":
    main()
