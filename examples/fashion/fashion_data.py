"""Fashion-MNIST from its four idx files."""

from __future__ import annotations

import gzip
from pathlib import Path

import torch
from torch import Tensor

STEMS = {"train": "train", "test": "t10k"}
MEAN, SPREAD = 0.2860, 0.3530


def missing(folder: Path) -> list[str]:
    """Names of the files that `folder` lacks."""
    parts = ("images-idx3", "labels-idx1")
    names = [f"{stem}-{part}-ubyte.gz" for stem in STEMS.values() for part in parts]
    return [name for name in names if not (folder / name).is_file()]


def load(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Standardised images [N, 1, 28, 28] and labels [N] of the split ``"train"`` or ``"test"``."""
    stem = STEMS[split]
    images = _read_idx(folder / f"{stem}-images-idx3-ubyte.gz")
    labels = _read_idx(folder / f"{stem}-labels-idx1-ubyte.gz")
    return (images.float().unsqueeze(1) / 255 - MEAN) / SPREAD, labels.long()


def _read_idx(path: Path) -> Tensor:
    """An idx file of bytes: three bytes of type, one of rank, big-endian sizes, then the values."""
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    sizes = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=4 + 4 * rank).view(sizes)
