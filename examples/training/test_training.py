"""May this small network be trained in 16 bits?

Run me with ``pytest --fp16-conformance examples/training``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pytest_fp16 import Training, fp16_equivalent

Batches = list[tuple[Tensor, Tensor]]
Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def make_model() -> nn.Module:
    """A fresh network: every seed and every precision starts from one of its own."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def training(digits: tuple[Batches, Batches], optimizer: Optimizer, epochs: int = 5) -> Training:
    """Everything that a training of `make_model` needs."""
    train_data, eval_data = digits
    return Training(
        model=make_model,
        optimizer=optimizer,
        loss=F.cross_entropy,
        train_data=train_data,
        eval_data=eval_data,
        epochs=epochs,
        name="digits",
    )


@fp16_equivalent(precisions=["16-mixed", "bf16-mixed"])
def test_mixed(digits: tuple[Batches, Batches]) -> Training:
    """Weights in float32, products in 16 bits."""
    return training(digits, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))


@fp16_equivalent(precisions=["16-true"])
def test_all_in_float16(digits: tuple[Batches, Batches]) -> Training:
    """Everything in float16, with an epsilon that float16 can hold."""
    return training(digits, lambda p: torch.optim.Adam(p, lr=1e-3, eps=1e-4))


# The condition: without the flag the test is one step in float32, which passes.
@pytest.mark.xfail(
    "config.getoption('--fp16-conformance')",
    reason="Adam's default epsilon of 1e-8 rounds to zero in float16: 0/0",
)
@fp16_equivalent(precisions=["16-true"])
def test_default_epsilon_in_float16(digits: tuple[Batches, Batches]) -> Training:
    """A planted failure, kept so that you see one: try --runxfail."""
    return training(digits, lambda p: torch.optim.Adam(p, lr=1e-3))
