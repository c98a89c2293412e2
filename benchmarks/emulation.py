"""Does emulation say what native 16-bit kernels say, and at what price?

Claimed: the same verdicts on every model and case, flip counts that differ by no more than
sampling noise, error within 10 %; over the models at batch 128 at most 2 times the cost of
float32 in all, against native float16 side by side. The native kernels are the CPU's, or those of
a GPU with ``--device cuda`` (prices are the CPU's alone).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from benchmarks import common
from benchmarks.cases import judge
from benchmarks.cases.base import ALL
from benchmarks.cost import subjects
from benchmarks.forecast import pairs


def compare(quick: bool, only: str, device: str) -> tuple[list, str]:
    """Emulated against native, one case and precision after another."""
    rows, same, total, flips_near, errors_near, with_error = [], 0, 0, 0, 0, 0
    for case, precision, _ in pairs(device, only, quick):
        said = [
            common.check_case(case, precision, device=device, target=device, emulate=mode)
            for mode in ("always", "never")
        ]
        total += 1
        same += said[0].verdict == said[1].verdict
        emulated, native = (s.report for s in said)
        flips = [r.flips if r and r.flips is not None else None for r in (emulated, native)]
        # Flips are near coincidences that both runs toss alike or apart: Poisson on the sum.
        near = None in flips or abs(flips[0] - flips[1]) <= 3 * math.sqrt(sum(flips) + 1)
        flips_near += near
        spreads = [
            r.standardised.spread if r and r.standardised else None for r in (emulated, native)
        ]
        ratio = spreads[0] / spreads[1] if None not in spreads and spreads[1] else None
        if ratio is not None and math.isfinite(ratio):
            with_error += 1
            errors_near += 0.9 <= ratio <= 1.1
        odd = said[0].verdict != said[1].verdict or not near
        odd = odd or (ratio is not None and not 0.9 <= ratio <= 1.1)
        if odd or said[0].error or said[1].error:
            words = (said[0].verdict, said[1].verdict, *flips, f"{ratio:.2f}" if ratio else "")
            rows.append((case.name, precision, *words, said[0].error or said[1].error))
            print(*rows[-1], sep=" | ", flush=True)
    return rows, (
        f"Same verdict on {common.share(same, total)} pairs; flip counts within sampling noise on "
        f"{common.share(flips_near, total)}; error within 10 % on "
        f"{common.share(errors_near, with_error)}."
    )


def seconds(model: nn.Module, inputs: Any, precision: str, emulated: bool) -> float:
    """One forward pass of a batch."""
    from pytest_fp16.engine.emulate import Emulation

    copy_, convert, context = judge.prepared(model, precision, "cpu")
    with context:
        if emulated:
            context.enter_context(Emulation("cpu"))
        judge.called(copy_, inputs, convert)
        return common.clock(lambda: judge.called(copy_, inputs, convert), 3)


def prices(quick: bool) -> tuple[list, str]:
    """Emulated and native passes against float32."""
    rows, totals = [], [0.0, 0.0, 0.0]
    for name, model, batches in subjects():
        if quick and name not in ("mlp", "resnet20"):
            continue
        inputs = batches[0][0]
        plain = seconds(model, inputs, "32-true", False)
        for precision in ALL[::2]:
            emulated = seconds(model, inputs, precision, True)
            native = seconds(model, inputs, precision, False)
            totals = [a + b for a, b in zip(totals, (plain, emulated, native), strict=True)]
            row = (name, precision, f"{plain:.3f} s", f"{emulated / plain:.2f}")
            rows.append((*row, f"{native / plain:.2f}"))
    return rows, (
        f"Emulation costs {totals[1] / totals[0]:.2f} times float32 in all, native 16-bit "
        f"{totals[2] / totals[0]:.2f} times."
    )


def main() -> None:
    """Compare verdicts, then prices."""
    options = common.options(
        __doc__,
        ("--only", {"default": ""}),
        ("--device", {"choices": ("cpu", "cuda"), "default": "cpu"}),
    )
    table = price = ""
    if options.device == "cpu":
        costs, price = prices(options.quick)
        torch.set_num_threads(options.threads)
        table = common.table(("model", "precision", "float32", "emulated", "native"), costs)
    rows, agreement = compare(options.quick, options.only, options.device)
    headers = ("case", "precision", "emulated", "native", "flips", "native flips", "error", "")
    common.write(
        "emulation" if options.device == "cpu" else "emulation-cuda",
        f"Emulation against native kernels, {options.device}",
        f"{agreement} {price}\n\n{table}\n\nPairs that differ:",
        headers,
        rows,
        quick=options.quick or bool(options.only),
    )


if __name__ == "__main__":
    main()
