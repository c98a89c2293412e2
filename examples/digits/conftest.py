"""Fixtures: the data as batches, and one trained model of each kind per session."""

from __future__ import annotations

import pytest
import torch
from digit_models import CNN, MLP, RMSNet, train
from sklearn.datasets import load_digits
from torch import Tensor, nn

Batches = list[tuple[Tensor, Tensor]]

# Networks as small as these are slower on two threads than on one.
torch.set_num_threads(1)


def batches(x: Tensor, y: Tensor, size: int) -> Batches:
    """The data cut into batches ``(images, labels)``."""
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """1797 images [N, 1, 8, 8] in 0..255 and their labels, shuffled."""
    raw = load_digits()
    order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(raw.images, dtype=torch.float32)[order].unsqueeze(1) * (255 / 16)
    return x, torch.tensor(raw.target)[order]


@pytest.fixture(scope="session")
def train_batches(digits: tuple[Tensor, Tensor]) -> Batches:
    """The first 1197 digits."""
    x, y = digits
    return batches(x[:1197], y[:1197], size=50)


@pytest.fixture(scope="session")
def eval_batches(digits: tuple[Tensor, Tensor]) -> Batches:
    """The 600 digits no model was trained on."""
    x, y = digits
    return batches(x[1197:], y[1197:], size=100)


@pytest.fixture(scope="session")
def trained(train_batches: Batches) -> dict[str, nn.Module]:
    """Each model, trained from a fixed seed."""
    models: dict[str, nn.Module] = {}
    for make in (MLP, CNN, RMSNet):
        torch.manual_seed(0)
        models[make.__name__] = train(make(), train_batches)
    return models
