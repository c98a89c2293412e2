"""The images the table is trained on: CIFAR-10 where a folder with it is given, else Fashion-MNIST.

Fashion-MNIST stands in because it can be had offline: its 28x28 grey images are padded to 32x32 and
repeated in three channels. Both are standardised with one mean and one spread over all pixels, as
the authors do; nothing is augmented.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.data import fashion

_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
_RECORD = 1 + 3 * 32 * 32


@dataclass(frozen=True)
class Images:
    """Images [N, 3, 32, 32] float32 and labels [N] of a training and a test set."""

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def part(self, train: int | None, test: int | None) -> Images:
        """The first so many of each."""
        cut = [
            tuple(t[:count] for t in pair)
            for pair, count in ((self.train, train), (self.test, test))
        ]
        return Images(self.name, cut[0], cut[1])

    def to(self, device: str) -> Images:
        """The same, there: small enough to stay on a device while many networks are trained."""
        here = [tuple(t.to(device) for t in pair) for pair in (self.train, self.test)]
        return Images(self.name, here[0], here[1])


class _Numbers(pickle.Unpickler):
    """Unpickles arrays and builtin containers only: a data set must not run code."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),  # how Python 3 writes bytes in protocol 2
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise ValueError(f"the CIFAR-10 file asks for {module}.{name}, which no CIFAR-10 does")
        return super().find_class(module, name)


def _pickled(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with path.open("rb") as file:
        raw = _Numbers(file, encoding="bytes").load()
    return np.asarray(raw[b"data"], np.uint8), np.asarray(raw[b"labels"], np.uint8)


def _binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    raw = np.frombuffer(path.read_bytes(), np.uint8)
    if raw.size % _RECORD:
        raise ValueError(f"{path} holds {raw.size} bytes, no multiple of CIFAR-10's {_RECORD}")
    records = raw.reshape(-1, _RECORD)
    return records[:, 1:], records[:, 0]


def _read(root: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    if (root / name).is_file():
        return _pickled(root / name)
    if (root / f"{name}.bin").is_file():
        return _binary(root / f"{name}.bin")
    raise FileNotFoundError(
        f"no CIFAR-10 in {root}: neither {name} (python version) nor {name}.bin (binary version)"
    )


def cifar10(folder: str | Path) -> Images:
    """CIFAR-10 from the unpacked python or binary version, or from the folder that holds it.

    Raises:
        FileNotFoundError: a file of it is missing.
        ValueError: a file is not CIFAR-10's.
    """
    root = Path(folder)
    for inner in ("cifar-10-batches-py", "cifar-10-batches-bin"):
        root = root / inner if (root / inner).is_dir() else root
    parts = [_read(root, name) for name in _TRAIN]
    train = tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    sets = [_tensors(*train), _tensors(*_read(root, "test_batch"))]
    mean, spread = sets[0][0].mean(), sets[0][0].std()
    scaled = [((x - mean) / spread, y) for x, y in sets]
    return Images("CIFAR-10", scaled[0], scaled[1])


def _tensors(pixels: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(pixels.copy()).view(-1, 3, 32, 32).float()
    return images, torch.from_numpy(labels.copy()).long()


def fashion_images() -> Images:
    """Fashion-MNIST in CIFAR-10's shape; the border is black, as the images' own is."""

    def shaped(split: str) -> tuple[Tensor, Tensor]:
        x, y = fashion(split)
        return F.pad(x, (2, 2, 2, 2), value=float(x.min())).expand(-1, 3, -1, -1), y

    return Images("Fashion-MNIST, padded to 32x32", shaped("train"), shaped("test"))


def load(folder: str | Path | None) -> Images:
    """CIFAR-10 of that folder, or Fashion-MNIST where none is named."""
    return cifar10(folder) if folder else fashion_images()


class Batches:
    """Labelled batches, in a new order of torch's global generator in each pass where asked."""

    def __init__(self, x: Tensor, y: Tensor, size: int, shuffle: bool) -> None:
        self.x, self.y, self.size, self.shuffle = x, y, size, shuffle

    def __len__(self) -> int:
        return -(-len(self.y) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.y)
        order = torch.randperm(count) if self.shuffle else torch.arange(count)
        for index in order.split(self.size):
            # A batch of one has no spread, which batch normalisation over 1x1 images needs.
            if self.shuffle and len(index) < 2:
                continue
            here = index.to(self.y.device)
            yield self.x[here].contiguous(), self.y[here]
