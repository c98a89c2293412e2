"""One training of a row at one precision and seed, by the authors' recipe.

SGD with learning rate 0.01 and momentum 0.9 (ViT: none), batches of 256, 100 epochs, cross entropy,
no augmentation, no schedule, no loss scaling but the mixed precision's own. There is no Adam in
their programs, so no epsilon that could round to zero: Adam's default of 1e-8 does in float16.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.paper.data import Batches, Images
from benchmarks.paper.models import Row
from benchmarks.paper.store import Run, fingerprint
from pytest_fp16 import Training
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.train import RunResult, train
from pytest_fp16.engine.training.trainee import initial_state
from pytest_fp16.precision import precision

_CODE = Path(__file__).parent / "models"
PRECISIONS = ("16-true", "32-true", "16-mixed")  # the order of the paper's columns


@dataclass(frozen=True)
class Recipe:
    """How every row is trained.

    Attributes:
        train, test: images used, None for all.
        emulate: run 16-bit precisions with each operation rounded, for want of 16-bit hardware.
    """

    epochs: int = 100
    batch: int = 256
    rate: float = 0.01
    train: int | None = None
    test: int | None = None
    device: str = "cpu"
    emulate: bool = True

    def fingerprint(self, images: Images) -> str:
        """Of the recipe, data, torch and our networks; runs of another are not mixed in."""
        return fingerprint(
            **asdict(self),
            data=images.name,
            torch=torch.__version__,
            code=[path.read_text(encoding="utf-8") for path in sorted(_CODE.rglob("*.py"))],
        )


def training(row: Row, images: Images, recipe: Recipe) -> Training:
    """What the library is handed."""

    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        every = list(parameters)
        groups = [
            {"params": [p for p in every if p.ndim > 1], "weight_decay": row.weight_decay},
            {"params": [p for p in every if p.ndim <= 1]},
        ]
        return torch.optim.SGD(groups, lr=recipe.rate, momentum=row.momentum)

    return Training(
        model=row.make,
        optimizer=optimizer,
        loss=F.cross_entropy,
        train_data=Batches(*images.train, recipe.batch, shuffle=True),
        eval_data=Batches(*images.test, recipe.batch, shuffle=False),
        epochs=recipe.epochs,
        name=row.name,
    )


def train_once(row: Row, images: Images, recipe: Recipe, name: str, seed: int) -> Run:
    """Train a fresh network and take its accuracy; a training that breaks is a result too."""
    subject, how = training(row, images, recipe), precision(name)
    place = Place(torch.device(recipe.device), target="cuda", emulated=recipe.emulate)
    emulated = place.emulated and how.dtype_name != "float32"
    with preserved_state():
        state = initial_state(subject, seed)
        clock = _Clock()
        result = train(subject, how, seed, state, place, tell=clock)
    return Run(
        recipe=recipe.fingerprint(images),
        row=row.name,
        precision=name,
        seed=seed,
        accuracy=result.score.value if result.score and not result.broke else None,
        seconds=None if emulated else clock.seconds,
        failure=None if result.ended == "finished" else _failure(result),
        device=torch.cuda.get_device_name() if recipe.device.startswith("cuda") else "cpu",
    )


class _Clock:
    """Seconds from here to the last step of a training; its evaluation is not counted."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.seconds = 0.0

    def __call__(self, epoch: int, step: int, loss: float) -> None:
        # The loss is a number on this side already, so the device has finished the step.
        self.seconds = time.perf_counter() - self.start


def _failure(result: RunResult) -> str:
    parts = [result.ended, result.error or ""]
    if result.failed_at is not None:
        parts.append("in epoch {}, step {}".format(*(place + 1 for place in result.failed_at)))
    return " ".join(part for part in parts if part)
