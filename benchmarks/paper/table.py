"""The table of the paper (arXiv 2305.10947), trained again: ``python -m benchmarks.paper``.

Twelve networks in pure float16 (parameters, gradients and optimizer state), float32 and mixed
precision, over seeds; accuracies with spread, times, differences and speedups, in the paper's
columns and beside its figures. Finished trainings are stored at once; the same command goes on
from them, and ``--minutes`` ends it in time. On a CPU 16-bit operations are emulated (each rounded
once), which says nothing about time, so those columns stay empty.

    python -m benchmarks.paper --device cuda                  # as published: 100 epochs, 3 seeds
    python -m benchmarks.paper --device cuda --epochs 10 --minutes 60
    python -m benchmarks.paper --data ~/cifar-10-batches-py   # CIFAR-10, else Fashion-MNIST
    python -m benchmarks.paper --quick                        # one step of every row, on a CPU
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.data import CACHE
from benchmarks.paper.data import Images, load
from benchmarks.paper.models import ROWS, size
from benchmarks.paper.published import PUBLISHED, SOURCE
from benchmarks.paper.store import Run, Store
from benchmarks.paper.train import PRECISIONS, Recipe, train_once

#: Exit code where time ran out; benchmarks/gpu.py knows it.
UNFINISHED = 3

COLUMNS = (
    "network (million parameters)", "whose",
    "float16, %", "float32, %", "mixed, %",
    "float16, s", "float32, s", "mixed, s",
    "float16 - float32", "float16 - mixed",
    "float32 / float16", "mixed / float16",
)  # fmt: skip

Spread = tuple[float, float] | None


def planned(rows: Iterable[str], seeds: int) -> Iterator[tuple[str, str, int]]:
    """Row, precision, seed; seed by seed, so that whatever ended early is a table already."""
    for seed in range(seeds):
        for row in rows:
            for precision in PRECISIONS:
                yield row, precision, seed


def train_all(
    images: Images, recipe: Recipe, rows: Sequence[str], seeds: int, store: Store, minutes: float
) -> bool:
    """Train what the store lacks; False where time ran out before everything was done."""
    end, fingerprint = time.monotonic() + 60 * minutes, recipe.fingerprint(images)
    every = list(planned(rows, seeds))
    for done, (row, precision, seed) in enumerate(every):
        if (fingerprint, row, precision, seed) in store.runs:
            continue
        if time.monotonic() > end:
            return False
        run = train_once(ROWS[row], images, recipe, precision, seed)
        store.add(run)
        took = "emulated" if run.seconds is None else f"{run.seconds:.0f} s"
        said = f"{run.accuracy:.2%}" if run.accuracy is not None else run.failure
        print(f"{done + 1}/{len(every)} {row} {precision} seed {seed}: {said}, {took}", flush=True)
    return True


def _mean(values: Sequence[float]) -> Spread:
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _accuracy(spread: Spread, broken: int = 0) -> str:
    text = f"{spread[0]:.1f} ± {spread[1]:.1f}" if spread else ""
    return " ".join(part for part in (text, f"({broken} broke)" if broken else "") if part)


def _line(
    label: str,
    whose: str,
    accuracy: Sequence[Spread],
    seconds: Sequence[float | None],
    broken: Sequence[int] = (0, 0, 0),
) -> tuple[list[str], list[float | None]]:
    """A row as text, and its two differences and two speedups as numbers."""
    half, full, mixed = accuracy
    fast, slow, middle = seconds
    numbers = [
        half[0] - full[0] if half and full else None,
        half[0] - mixed[0] if half and mixed else None,
        slow / fast if slow and fast else None,
        middle / fast if middle and fast else None,
    ]
    cells = [label, whose, *map(_accuracy, accuracy, broken)]
    cells += ["" if s is None else f"{s:.0f}" for s in seconds]
    return cells + _derived(numbers), numbers


def _derived(numbers: Sequence[float | None]) -> list[str]:
    formats = ("{:+.1f}", "{:+.1f}", "{:.1f}x", "{:.1f}x")
    return ["" if n is None else f.format(n) for f, n in zip(formats, numbers, strict=True)]


def _ours(runs: Sequence[Run]) -> tuple[list[Spread], list[float | None], list[int]]:
    """Accuracies in percent, seconds, and trainings that broke, by precision."""
    accuracy, seconds, broken = [], [], []
    for precision in PRECISIONS:
        here = [r for r in runs if r.precision == precision]
        accuracy.append(_mean([100 * r.accuracy for r in here if r.accuracy is not None]))
        times = [r.seconds for r in here if r.failure is None and r.seconds is not None]
        seconds.append(statistics.fmean(times) if times else None)
        broken.append(sum(r.failure is not None for r in here))
    return accuracy, seconds, broken


def lines(runs: Sequence[Run], rows: Iterable[str]) -> list[list[str]]:
    """The table's lines: ours and the paper's for each row, and the means over rows."""
    cells: list[list[str]] = []
    numbers: dict[str, list[list[float | None]]] = {"ours": [], "paper": []}
    for row in rows:
        accuracy, seconds, broken = _ours([r for r in runs if r.row == row])
        with torch.device("meta"):
            millions = size(ROWS[row].make()) / 1e6
        ours = _line(f"{row} ({millions:.2f})", "ours", accuracy, seconds, broken)
        known = PUBLISHED[row]
        paper = _line(f"{row} ({known.millions:.2f})", "paper", known.accuracy, known.seconds)
        for whose, (text, derived) in (("ours", ours), ("paper", paper)):
            cells.append(text)
            numbers[whose].append(derived)
    for whose, found in numbers.items():
        columns = ([n for n in column if n is not None] for column in zip(*found, strict=True))
        means = [statistics.fmean(column) if column else None for column in columns]
        cells.append(["mean over rows", whose, *[""] * 6, *_derived(means)])
    return cells


def summary(runs: Sequence[Run], images: Images, recipe: Recipe, total: int) -> str:
    """What was trained, how much of it is done, and what broke."""
    done, broken = len(runs), [r for r in runs if r.failure]
    amount = f"{len(images.train[1])} images, {recipe.epochs} epoch(s), batch {recipe.batch}"
    how = "16-bit operations emulated" if recipe.emulate else "native kernels, TF32 off"
    text = f"{images.name}: {amount}; {how}. {done} of {total} trainings done, {len(broken)} broke."
    told = "; ".join(f"{r.row} {r.precision} seed {r.seed}: {r.failure}" for r in broken[:12])
    return f"{text} Broken: {told}." if told else text


_NOTES = f"""± is the standard deviation over seeds. "paper" is {SOURCE}; its
differences and speedups are computed from those columns. Every row is trained with SGD at 0.01, so
there is no Adam whose epsilon could vanish in float16. The authors ran TensorFlow on another GPU:
times compare within "ours" (the library's checks after each step counted) and within
"paper", not across. Their count for AlexNet, 2.09 million, is a tenth of what their program has."""


def _options() -> argparse.Namespace:
    return common.options(
        __doc__,
        ("--data", {"default": None, "help": "folder with CIFAR-10 (python or binary version)"}),
        ("--device", {"default": "cuda" if torch.cuda.is_available() else "cpu"}),
        ("--rows", {"default": ",".join(ROWS), "help": "names, separated by commas"}),
        ("--seeds", {"type": int, "default": 3}),
        ("--epochs", {"type": int, "default": 100}),
        ("--batch", {"type": int, "default": 256}),
        ("--train", {"type": int, "default": None, "help": "images to train on"}),
        ("--test", {"type": int, "default": None, "help": "images to test on"}),
        ("--store", {"type": Path, "default": common.RESULTS / "paper.jsonl"}),
    )


def _chosen(text: str) -> list[str]:
    rows = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in rows if name not in ROWS]
    if unknown or not rows:
        raise SystemExit(f"unknown rows {', '.join(unknown)}; known are {', '.join(ROWS)}")
    return rows


def main() -> None:
    """Train what is missing and write the table."""
    options: Any = _options()
    rows = _chosen(options.rows)
    if options.quick:
        options.epochs, options.batch, options.train, options.test = 2, 32, 32, 32
        options.seeds, options.store = 1, CACHE / "paper-quick.jsonl"
    recipe = Recipe(
        epochs=options.epochs,
        batch=options.batch,
        train=options.train,
        test=options.test,
        device=options.device,
        emulate=options.device == "cpu",
    )
    images = load(options.data).part(options.train, options.test).to(options.device)
    store = Store(options.store)
    if store.damaged:
        print(f"{options.store}: lines {store.damaged} are damaged; those trainings are done again")
    complete = train_all(images, recipe, rows, options.seeds, store, options.minutes)
    fingerprint = recipe.fingerprint(images)
    wanted = [(fingerprint, *one) for one in planned(rows, options.seeds)]
    runs = [store.runs[key] for key in wanted if key in store.runs]
    common.write(
        "paper-cpu" if recipe.emulate else "paper",
        "The paper's table, trained again",
        summary(runs, images, recipe, len(wanted)),
        COLUMNS,
        lines(runs, rows),
        _NOTES,
        quick=options.quick,
    )
    if not complete:
        print("time is up; the same command goes on from here")
        raise SystemExit(UNFINISHED)
