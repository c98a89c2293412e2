"""Does a check run on the architectures people use, and is its σ right there?

Architectures of transformers, timm and torchvision, small and with random weights, on random
inputs. Outputs are taken as values (each input's error is that of a fixed projection of all it
gives), and the budget is out of reach: what a random network loses says nothing. Claimed of each,
at three precisions: no crash; a forecast; its verdict is the verdict; *as predicted* passes, and
errors do not stray from σ.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks import common
from benchmarks.zoo import ALL, Architecture

PRECISIONS = ("16-true", "bf16-true", "16-mixed")
BUDGET = 1e6
QUICK = ("bert", "mixtral", "mamba", "t5", "vit", "resnet18")
HEADERS = ("architecture", "kind", "library", "verdict", "forecast", "σ from", *PRECISIONS)


@dataclass
class Tally:
    """What was seen so far, counted in checks: one architecture in one precision.

    Attributes:
        spreads: root mean square of error over σ.
        squares, count: their sums over inputs.
        strayed: beyond their limits, which an ideal emulation may share.
    """

    checks: int = 0
    crashed: int = 0
    forecast: int = 0
    agreed: int = 0
    passed: int = 0
    ran: int = 0
    judged: int = 0
    strayed: int = 0
    spreads: list[float] = field(default_factory=list)
    squares: float = 0.0
    count: int = 0

    def take(self, reports: list[Any]) -> None:
        """Count the checks of one architecture; none where it crashed."""
        self.checks += len(PRECISIONS)
        self.crashed += 0 if reports else len(PRECISIONS)
        for report in reports:
            self.add(report)

    def add(self, report: Any) -> None:
        """Count one report."""
        self.forecast += report.forecast.method != "unavailable"
        self.agreed += report.forecast.verdict == report.verdict
        self.ran += report.error is None
        self.passed += all(c.passed for c in report.checks if c.name == "as predicted")
        figures = report.standardised
        if figures is None:
            return
        self.judged += 1
        beyond = figures.spread > figures.spread_allowed or abs(figures.mean) > figures.mean_allowed
        self.strayed += beyond
        self.spreads.append(figures.spread)
        self.squares += figures.spread**2 * figures.count
        self.count += figures.count

    def said(self) -> str:
        """All of it in words."""
        share = common.share
        spreads = sorted(self.spreads) or [math.nan]
        return (
            f"Of {self.checks} checks {self.crashed} crashed; {share(self.forecast, self.checks)} "
            f"had a forecast, whose verdict was the verdict in {share(self.agreed, self.checks)}; "
            f"as predicted passed in {share(self.passed, self.checks)}. "
            f"{self.ran} of them ran in 16 bits, and in {self.judged} some input was not too near "
            "a decision inside the model to be judged: the root mean square of error over σ is "
            f"{math.sqrt(self.squares / max(1, self.count)):.2f} over all {self.count} inputs, per "
            f"check from {spreads[0]:.2f} to {spreads[-1]:.2f} with a median of "
            f"{statistics.median(spreads):.2f}; {share(self.strayed, self.judged)} strayed beyond "
            "the limit for their number of inputs."
        )


def passed(model: Architecture, made: tuple[Any, Any]) -> float:
    """Seconds of one float32 pass."""
    with torch.no_grad():
        return common.clock(lambda: model.outputs(*made), repeats=2)


def one_of(index: int) -> tuple[tuple[Any, ...], list[Any]]:
    """`examined` of an architecture of `ALL`, which a process can be handed the index of."""
    return examined(ALL[index])


def examined(one: Architecture) -> tuple[tuple[Any, ...], list[Any]]:
    """Check one architecture: its row of the table, and its reports; none where it crashed."""
    from pytest_fp16 import Evaluation, Settings
    from pytest_fp16.conformance import examine

    labels = (one.name, one.kind, one.library)
    try:
        made = one.build()
        alone = passed(one, made)
        subject = Evaluation(
            model=made[0],
            data=[made[1]],
            labelled=False,
            task="regression",
            forward=one.forward,
            name=one.name,
        )
        start = time.perf_counter()
        reports = examine(subject, Settings(precisions=PRECISIONS, budget=BUDGET))
    except Exception as error:
        return (*labels, f"crashed: {type(error).__name__}: {error}"[:120], *[""] * 7), []
    seconds = time.perf_counter() - start
    row = (
        *(*labels, _verdicts(reports), _forecasts(reports)),
        " / ".join(dict.fromkeys(r.forecast.method for r in reports)),
        *(f"{r.standardised.spread:.2f}" if r.standardised else "—" for r in reports),
        f"{seconds:.1f}",
        f"{seconds / alone:.0f}",
    )
    return row, reports


def _verdicts(reports: list[Any]) -> str:
    """One word where all agree; else each other verdict with its reason."""
    other = [r for r in reports if r.verdict != "equivalent"]
    said = [f"{r.precision}: {r.error or r.verdict}" for r in other]
    return "; ".join(said)[:200].replace("|", "/") or "equivalent"


def _forecasts(reports: list[Any]) -> str:
    other = [r for r in reports if r.forecast.verdict != r.verdict]
    return "; ".join(f"{r.precision}: {r.forecast.verdict}" for r in other) or "the same"


def main() -> None:
    """Check every architecture of a library, or of all."""
    known = sorted({one.library for one in ALL})
    options = common.options(
        __doc__,
        ("--library", {"default": "", "choices": ["", *known]}),
        ("--only", {"default": "", "help": "names, separated by commas"}),
    )
    wanted = options.only.split(",") if options.only else QUICK if options.quick else ()
    tally, rows = Tally(), []
    every = [i for i, one in enumerate(ALL) if options.library in ("", one.library)]
    every = [i for i in every if not wanted or ALL[i].name in wanted]
    libraries = {ALL[i].library for i in every}
    absent = {name for name in libraries if importlib.util.find_spec(name) is None}
    here = [i for i in every if ALL[i].library not in absent]
    for row, reports in common.spread(one_of, here, options):
        tally.take(reports)
        rows.append(row)
        print(row, flush=True)
    notes = [f"{name} is not installed: left out." for name in sorted(absent)]
    notes.append(
        "Figures under a precision are the root mean square of error over σ; “—” where the program "
        "does not run, or every input is too near a decision to be judged. The last columns are "
        f"the seconds of one check at all {len(PRECISIONS)} precisions, and how many passes in "
        "float32 that is (of networks so small that a pass takes a few milliseconds)."
    )
    common.write(
        "-".join(filter(None, ("architectures", options.library))),
        "Architectures",
        tally.said(),
        (*HEADERS, "seconds", "passes"),
        rows,
        " ".join(notes),
        quick=options.quick or bool(options.only),
    )


if __name__ == "__main__":
    main()
