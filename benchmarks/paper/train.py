"""One training of a row at one precision and seed, by the authors' recipe.

SGD with learning rate 0.01 and momentum 0.9 (ViT: none), batches of 256, 100 epochs, cross entropy,
no augmentation, no schedule, no loss scaling but the mixed precision's own. There is no Adam in
their programs, so no epsilon that could round to zero: Adam's default of 1e-8 does in float16.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.paper.data import Batches, Images
from benchmarks.paper.models import Row
from benchmarks.paper.store import Run, fingerprint
from pytest_fp16 import Training
from pytest_fp16.engine.emulate import Emulation
from pytest_fp16.engine.models import autocast
from pytest_fp16.engine.randomness import preserved_state, seed_everything
from pytest_fp16.precision import Precision, precision

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
    emulated = recipe.emulate and how.dtype_name != "float32"
    with preserved_state(), ExitStack() as stack:
        seed_everything(seed)
        model = subject.model().to(recipe.device)
        if emulated:
            stack.enter_context(Emulation(target="cuda"))
        if how.dtype_name != "float32" and not how.mixed:
            model = model.to(how.dtype)
        seconds, failure = _fit(model, subject, how, recipe.device)
        accuracy = _accuracy(model, subject.eval_data, how, recipe.device)
    return Run(
        recipe=recipe.fingerprint(images),
        row=row.name,
        precision=name,
        seed=seed,
        accuracy=accuracy,
        seconds=None if emulated else seconds,
        failure=failure,
        device=torch.cuda.get_device_name() if recipe.device.startswith("cuda") else "cpu",
    )


def _cast(x: Tensor, how: Precision) -> Tensor:
    return x if how.mixed else x.to(how.dtype)


def _fit(
    model: nn.Module, subject: Training, how: Precision, device: str
) -> tuple[float, str | None]:
    """Train; seconds spent, and how it broke if it did: then it ends within 50 steps."""
    optimizer, last = subject.optimizer(model.parameters()), torch.zeros(())
    scaler = torch.amp.GradScaler(device.split(":")[0], enabled=how.mixed)
    where = torch.device(device)
    model.train()
    start = _now(device)
    for epoch in range(subject.epochs):
        for place, (x, y) in enumerate(subject.train_data):
            optimizer.zero_grad()
            with autocast(how, where, "cuda") if how.mixed else nullcontext():
                loss = subject.loss(model(_cast(x, how)), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            last = loss.detach()
            # Looking at a loss waits for the device, so not at each.
            if place % 50 == 0 and not last.isfinite():
                return _now(device) - start, f"loss {float(last)} in epoch {epoch + 1}"
    broken = None if last.isfinite() else f"loss {float(last)} at the end"
    return _now(device) - start, broken


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def _accuracy(model: nn.Module, data: Iterable[Any], how: Precision, device: str) -> float:
    model.eval()
    right = count = 0
    for x, y in data:
        with autocast(how, torch.device(device), "cuda") if how.mixed else nullcontext():
            outputs = model(_cast(x, how))
        right += int((outputs.argmax(-1) == y).sum())
        count += len(y)
    return right / count
