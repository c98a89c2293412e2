"""Fixtures: scikit-learn's digits as batches for training and for evaluation."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

Batches = list[tuple[Tensor, Tensor]]

# Networks as small as these are slower on two threads than on one.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> tuple[Batches, Batches]:
    """(training batches, evaluation batches) of images [N, 64] in 0..1 and labels [N]."""
    raw = load_digits()
    order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(raw.data, dtype=torch.float32)[order] / 16
    y = torch.tensor(raw.target)[order]
    cut = [list(zip(a.split(64), b.split(64), strict=True)) for a, b in (
        (x[:1197], y[:1197]),
        (x[1197:], y[1197:]),
    )]  # fmt: skip
    return cut[0], cut[1]
