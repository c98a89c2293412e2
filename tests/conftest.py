"""What every test may use; torch on one thread, because the suite shares its machine."""

from __future__ import annotations

import pytest
import torch
from torch import nn

try:
    from hypothesis import settings
except ModuleNotFoundError:  # pytest reads this file for --help too, beside which it need not be
    settings = None
else:
    # No deadline: the first call of a kernel is slow. The same examples in every run, so that only
    # a change of the code turns CI red; `--hypothesis-profile=explore` looks for new ones.
    settings.register_profile("reproducible", deadline=None, derandomize=True)
    settings.register_profile("explore", deadline=None, max_examples=2000)
    settings.load_profile("reproducible")


def pytest_configure(config):
    torch.set_num_threads(1)


def pytest_sessionstart(session):
    if settings is None:
        raise pytest.UsageError(
            "hypothesis is not installed; the tests of pytest-fp16 itself need: "
            "pip install -c constraints.txt -e '.[test]'"
        )


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


class Computes(nn.Module):
    """A module that computes a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Net(nn.Module):
    """An encoder, the part under test (a module, or a function) in a nested module, and a head."""

    def __init__(self, part, gain=1.0):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        part = part if isinstance(part, nn.Module) else Computes(part)
        self.core = nn.ModuleDict({"part": part})
        self.head, self.gain = nn.Linear(32, 10), gain

    def forward(self, x):
        return self.head(self.core["part"](self.encoder(x) * self.gain))


@pytest.fixture
def make_net(digits):
    """A function that trains a `Net` for a moment around a part."""
    (x, y), _ = digits

    def make(part, gain=1.0, steps=40):
        torch.manual_seed(0)
        model = Net(part, gain)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return model.eval()

    return make
