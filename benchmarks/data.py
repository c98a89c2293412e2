"""Real data for the benchmarks: Fashion-MNIST from its idx files, scikit-learn's digits.

Nothing is downloaded. Fashion-MNIST is read from where Debian's package ``dataset-fashion-mnist``
puts it; set ``FP16_FASHION_MNIST`` to read the same four files from elsewhere.
"""

from __future__ import annotations

import gzip
import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FASHION_DEFAULT = "/usr/share/datasets/fashion-mnist"
FASHION_VARIABLE = "FP16_FASHION_MNIST"


def fashion_folder(folder: str | Path | None = None) -> Path:
    """The folder of Fashion-MNIST: the argument, else the environment's, else Debian's."""
    path = Path(folder or os.environ.get(FASHION_VARIABLE) or FASHION_DEFAULT)
    if not (path / "train-images-idx3-ubyte.gz").is_file():
        raise FileNotFoundError(
            f"no Fashion-MNIST in {path}: install Debian's package dataset-fashion-mnist, or set "
            f"{FASHION_VARIABLE} to a folder that holds train-images-idx3-ubyte.gz and its three "
            "siblings"
        )
    return path


def read_idx(path: Path) -> np.ndarray:
    """One idx file of unsigned bytes: a magic number with the number of dimensions, then sizes."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is no idx file of unsigned bytes")
    rank = raw[3]
    shape = np.frombuffer(raw, ">i4", rank, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


@cache
def fashion(split: str = "test", folder: str | None = None) -> tuple[Tensor, Tensor]:
    """Images [N, 1, 28, 28], standardised with the training set's mean and spread, and labels."""
    stem = {"train": "train", "test": "t10k"}[split]
    root = fashion_folder(folder)
    images = torch.from_numpy(read_idx(root / f"{stem}-images-idx3-ubyte.gz").copy())
    labels = torch.from_numpy(read_idx(root / f"{stem}-labels-idx1-ubyte.gz").copy())
    return (images.float().unsqueeze(1) / 255 - 0.2860) / 0.3530, labels.long()


@cache
def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Scikit-learn's 1797 digits of 8x8 as ((train x, y), (test x, y)), x [N, 1, 8, 8] in 0..1."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    order = np.random.default_rng(0).permutation(len(raw.target))
    x = torch.tensor(raw.images[order] / 16, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(raw.target[order]).long()
    return (x[:1197], y[:1197]), (x[1197:], y[1197:])


def batches(*tensors: Tensor, size: int = 100) -> list[tuple]:
    """Batches ``(inputs, labels)``: the last tensor is the labels, the others the inputs."""
    parts = list(zip(*(t.split(size) for t in tensors), strict=True))
    return [(p[0] if len(p) == 2 else tuple(p[:-1]), p[-1]) for p in parts]
