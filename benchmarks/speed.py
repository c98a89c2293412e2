"""Time and memory of a batch at each precision against float32: evaluation, and a training step.

Measured by the product's own `pytest_fp16.speed`, on the networks of the paper's table at a batch
of 256; ratios of interleaved passes in one process. Meant for a GPU: on a CPU float16 is slower
than float32, and ``--quick`` there shows only that the command works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import common
from benchmarks.cases.base import ALL
from benchmarks.paper.data import Images
from benchmarks.paper.models import ROWS
from benchmarks.paper.train import Recipe, training
from pytest_fp16 import Evaluation
from pytest_fp16.settings import Settings
from pytest_fp16.speed import measure


def pedantic(
    target: Callable[[], Any],
    setup: Callable[[], Any],
    rounds: int,
    warmup_rounds: int,
    iterations: int,
) -> None:
    """What pytest-benchmark's function of that name does, without its bookkeeping."""
    for _ in range(warmup_rounds + rounds):
        setup()
        for _ in range(iterations):
            target()


def noise(batch: int) -> Images:
    """Images and labels nobody needs to load: time does not depend on them."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, 32, 32, generator=random)
    labels = torch.randint(0, 10, (batch,), generator=random)
    return Images("noise", (images, labels), (images, labels))


def row(name: str, images: Images, batch: int, settings: Settings, rounds: int | None) -> list:
    """The lines of one network: evaluation and training at each precision."""
    step = training(ROWS[name], images, Recipe(batch=batch, device=settings.device))
    subjects = {"evaluation": Evaluation(ROWS[name].make, step.eval_data), "training": step}
    lines = []
    for kind, subject in subjects.items():
        for precision in ALL:
            try:
                found = measure(subject, precision, settings, pedantic, rounds)
            except Exception as error:
                said = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
                lines.append((name, kind, precision, said, "", "", ""))
                continue
            memory = "unknown"
            if found.peak_memory and found.reference_peak_memory:
                memory = f"{found.peak_memory / found.reference_peak_memory:.2f}"
            over = "" if found.speedup_over_mixed is None else f"{found.speedup_over_mixed:.2f}x"
            milliseconds = f"{1000 * found.seconds:.2f}"
            lines.append(
                (name, kind, precision, milliseconds, f"{found.speedup:.2f}x", over, memory)
            )
        print(*lines[-len(ALL) :], sep="\n", flush=True)
    return lines


def main() -> None:
    """Measure every row and write the table."""
    options = common.options(
        __doc__,
        ("--device", {"default": "cuda" if torch.cuda.is_available() else "cpu"}),
        ("--batch", {"type": int, "default": 256}),
        ("--rows", {"default": ",".join(ROWS), "help": "names, separated by commas"}),
    )
    names, batch, rounds = options.rows.split(","), options.batch, None
    if options.quick:
        names, batch, rounds = ["ResNet-32", "ViT-8"], 8, 2
    settings = Settings(device=options.device)
    lines = [line for name in names for line in row(name, noise(batch), batch, settings, rounds)]
    common.write(
        "speed",
        "Time and memory of a batch in 16 bits",
        f"A batch of {batch} images of 3x32x32 on {options.device}; TF32 as torch sets it.",
        (
            "network",
            "what",
            "precision",
            "ms",
            "float32 / this",
            "mixed / this",
            "memory / float32",
        ),
        lines,
        quick=options.quick,
    )


if __name__ == "__main__":
    main()
