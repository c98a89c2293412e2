"""Does emulation say what native 16-bit kernels say, and at what price?

Claimed: the same verdicts on every model and case, flip counts that differ by no more than
sampling noise, error within 10 %; over the models at batch 128 at most 2 times the cost of
float32 in all, against native float16 side by side. The native kernels are the CPU's, or those of
a GPU with ``--device cuda`` (prices are the CPU's alone).
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks import common
from benchmarks.cases import judge
from benchmarks.cases.base import ALL, named
from benchmarks.cost import subjects
from benchmarks.forecast import Labels, by_case, pairs


@dataclass(frozen=True)
class Compared:
    """A case in one precision, emulated and native.

    Attributes:
        verdicts, flips, errors: of the emulated check, then of the native one.
        ratio: emulated error over native error, both in σ; None where there is none.
    """

    case: str
    precision: str
    verdicts: tuple[str, str]
    flips: tuple[int | None, int | None]
    errors: tuple[str, str]
    ratio: float | None

    @property
    def near(self) -> bool:
        """Flips are near coincidences that both runs toss alike or apart: Poisson on the sum."""
        one, other = self.flips
        if one is None or other is None:
            return True
        return abs(one - other) <= 3 * math.sqrt(one + other + 1)

    @property
    def alike(self) -> bool:
        """Whether the errors are within 10 %."""
        return self.ratio is None or 0.9 <= self.ratio <= 1.1

    @property
    def odd(self) -> bool:
        """Whether there is anything to show."""
        same = self.verdicts[0] == self.verdicts[1]
        return not (same and self.near and self.alike) or any(self.errors)

    @property
    def line(self) -> tuple[Any, ...]:
        """As the table shows it."""
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        said = (*self.verdicts, *self.flips, ratio, self.errors[0] or self.errors[1])
        return (self.case, self.precision, *said)


def compared(labels: Labels, device: str) -> list[Compared]:
    """Emulated against native, in each precision of a case."""
    case, found = named(labels[0]), []
    for precision, _ in labels[1]:
        said = [
            common.check_case(case, precision, device=device, target=device, emulate=mode)
            for mode in ("always", "never")
        ]
        spreads = [
            s.report.standardised.spread if s.report and s.report.standardised else None
            for s in said
        ]
        ratio = spreads[0] / spreads[1] if None not in spreads and spreads[1] else None
        found.append(
            Compared(
                case.name,
                precision,
                (said[0].verdict, said[1].verdict),
                tuple(s.report.flips if s.report else None for s in said),
                (said[0].error, said[1].error),
                ratio if ratio is not None and math.isfinite(ratio) else None,
            )
        )
    return found


def compare(options: argparse.Namespace) -> tuple[list, str]:
    """One case after another: what differs, and a summary."""
    items = by_case(pairs(options.device, options.only, options.quick))
    every: list[Compared] = []
    for found in common.spread(partial(compared, device=options.device), items, options):
        every += found
        for one in (one for one in found if one.odd):
            print(*one.line, sep=" | ", flush=True)
    share, with_error = common.share, [one for one in every if one.ratio is not None]
    same = sum(one.verdicts[0] == one.verdicts[1] for one in every)
    return [one.line for one in every if one.odd], (
        f"Same verdict on {share(same, len(every))} pairs; flip counts within sampling noise on "
        f"{share(sum(one.near for one in every), len(every))}; error within 10 % on "
        f"{share(sum(one.alike for one in with_error), len(with_error))}."
    )


def seconds(model: nn.Module, inputs: Any, precision: str, emulated: bool) -> float:
    """One forward pass of a batch."""
    from pytest_fp16.engine.emulation.emulate import Emulation

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
    rows, agreement = compare(options)
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
