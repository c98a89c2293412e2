"""The option that says where the data lies, and the trained models, cached between runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fashion_data import load, missing
from fashion_models import ResNet20, ViT, train
from torch import Tensor, nn

Batches = list[tuple[Tensor, Tensor]]
Trainer = Callable[[type[nn.Module]], nn.Module]
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options of this example."""
    group = parser.getgroup("fashion", "Fashion-MNIST example")
    group.addoption(
        "--fashion-mnist",
        type=Path,
        default=DEBIAN,
        metavar="FOLDER",
        help="Folder of the four idx files (default: where Debian's dataset-fashion-mnist is)",
    )
    group.addoption(
        "--fashion-train",
        type=int,
        default=12_000,
        help="Images to train on (default: %(default)s)",
    )
    group.addoption(
        "--fashion-test", type=int, default=1_000, help="Images to evaluate (default: %(default)s)"
    )


@pytest.fixture(scope="session")
def folder(request: pytest.FixtureRequest) -> Path:
    """The folder of Fashion-MNIST; skips with a reason where it is not complete."""
    path: Path = request.config.getoption("--fashion-mnist")
    absent = missing(path)
    if absent:
        pytest.skip(
            f"no Fashion-MNIST in {path} (no {absent[0]}): install Debian's package "
            "dataset-fashion-mnist, or name the folder with --fashion-mnist=FOLDER"
        )
    return path


@pytest.fixture(scope="session")
def eval_batches(folder: Path, request: pytest.FixtureRequest) -> Batches:
    """The first test images, in batches of 100."""
    x, y = load(folder, "test")
    count = request.config.getoption("--fashion-test")
    return list(zip(x[:count].split(100), y[:count].split(100), strict=True))


@pytest.fixture(scope="session")
def trained(folder: Path, request: pytest.FixtureRequest) -> Trainer:
    """A function that gives a model trained from a fixed seed, or from pytest's cache."""
    count = request.config.getoption("--fashion-train")
    cache = request.config.cache.mkdir("fashion")

    def get(make: type[nn.Module]) -> nn.Module:
        torch.manual_seed(0)
        model = make()
        path = Path(cache) / f"{make.__name__}-{count}.pt"
        if path.is_file():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model.eval()
        x, y = load(folder, "train")
        train(model, x[:count], y[:count])
        torch.save(model.state_dict(), path)
        return model

    return get


@pytest.fixture(scope="session")
def resnet20(trained: Trainer) -> nn.Module:
    """A trained ResNet-20."""
    return trained(ResNet20)


@pytest.fixture(scope="session")
def vit(trained: Trainer) -> nn.Module:
    """A trained vision transformer."""
    return trained(ViT)
