"""What every test may use; torch on one thread, because the suite shares its machine."""

from __future__ import annotations

import pytest
import torch


def pytest_configure(config):
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def digits():
    """Scikit-learn's digits as ((train x, y), (test x, y)); x [N, 1, 8, 8] in 0..1."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.tensor(raw.images / 16, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(raw.target).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return (x[:1197], y[:1197]), (x[1197:], y[1197:])


@pytest.fixture
def digits_training(digits):
    """A function that makes a small training on digits; keywords replace its parts."""
    from torch import nn

    from pytest_fp16 import Training

    (train_x, train_y), (test_x, test_y) = digits

    def perceptron():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def make(batch=64, **changes):
        parts = {
            "model": perceptron,
            "optimizer": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
            "loss": nn.functional.cross_entropy,
            "train_data": list(zip(train_x.split(batch), train_y.split(batch), strict=True)),
            "eval_data": [(test_x, test_y)],
            "epochs": 2,
            "name": "digits",
        }
        return Training(**{**parts, **changes})

    return make
