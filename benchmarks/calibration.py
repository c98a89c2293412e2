"""Is the predicted σ the actual error? Five real models, four precisions, every test input.

Claimed: root mean square of actual over predicted error between 0.7 and 1.5 everywhere, its median
between 0.9 and 1.1, the worst-case bound never exceeded, flips within flips allowed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from benchmarks import common, data, models, pretrained
from benchmarks.cases.base import ALL


def subjects(quick: bool) -> Iterator[tuple]:
    """Name, model, batches."""
    x, y = data.fashion("test")
    count = 300 if quick else 10_000
    for name in ("mlp", "resnet20", "vit"):
        yield name, models.trained(name), data.batches(x[:count], y[:count], size=200)
    yield "minilm", pretrained.minilm(), pretrained.minilm_data(100 if quick else 1200)
    yield "crepe", pretrained.crepe("full"), pretrained.crepe_data(20 if quick else 360)


def main() -> None:
    """Check each model in each precision and compare errors with predictions."""
    options = common.options(__doc__, ("--only", {"default": ""}))
    rows, spreads, medians, exceeded, inputs, flips_fit = [], [], [], 0, 0, 0
    from pytest_fp16 import Evaluation, Settings
    from pytest_fp16.conformance import examine

    for name, model, batches in subjects(options.quick):
        if options.only not in name:
            continue
        start = time.perf_counter()
        subject = Evaluation(model=model, data=batches, name=name)
        reports = examine(subject, Settings(precisions=ALL))
        seconds = time.perf_counter() - start
        for precision, report in zip(ALL, reports, strict=True):
            if report.standardised is None:
                rows.append((name, precision, report.error or "no figures"))
                print(rows[-1], flush=True)
                continue
            figures = report.standardised
            allowed = report.forecast.flips_allowed
            spreads.append(figures.spread)
            medians.append(figures.median_abs)
            exceeded += figures.bound_exceeded
            inputs += report.inputs
            flips_fit += report.flips <= allowed
            rows.append(
                (
                    *(name, precision, report.inputs, f"{figures.spread:.2f}"),
                    *(f"{figures.mean:+.2f}", f"{figures.median_abs / 0.6745:.2f}"),
                    *(figures.bound_exceeded, report.flips, allowed),
                    *(f"{report.forecast.certified.bounded or 0:.1%}", report.verdict),
                    f"{seconds:.0f}",
                )
            )
            print(rows[-1], flush=True)
    if not spreads:
        print("no check gave figures")
        return
    within = sum(0.7 <= s <= 1.5 for s in spreads)
    summary = (
        f"{common.share(within, len(rows))} pairs have a root mean square between 0.7 and 1.5 "
        f"(from {min(spreads):.2f} to {max(spreads):.2f}, "
        f"median {statistics.median(spreads):.2f}); "
        f"the worst-case bound was exceeded {exceeded} times in {inputs:,} inputs; flips within "
        f"flips allowed in {common.share(flips_fit, len(rows))}."
    )
    headers = (
        *("model", "precision", "inputs", "rms", "mean", "median / 0.6745", "bound exceeded"),
        *("flips", "allowed", "bounded", "verdict", "seconds for all four"),
    )
    name = f"calibration-{options.only}" if options.only else "calibration"
    common.write(
        name, "Calibration of σ", summary, headers, rows, quick=options.quick
    )  # fmt: skip


if __name__ == "__main__":
    main()
