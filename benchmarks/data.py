"""Real data for the benchmarks: Fashion-MNIST, scikit-learn's digits and more, docstrings as text.

Nothing is downloaded. Fashion-MNIST is read from where Debian's package ``dataset-fashion-mnist``
puts it; set ``FP16_FASHION_MNIST`` to read the same four files from elsewhere.
"""

from __future__ import annotations

import ast
import gzip
import importlib.util
import json
import os
import re
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CACHE = Path(__file__).parent / ".cache"
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


# Libraries whose docstrings are the text: real English, offline, and pinned by constraints.txt.
TOPICS = (
    ("torch/nn", "torch/optim"),
    ("torch/distributed",),
    ("torch/fx", "torch/jit"),
    ("numpy",),
    ("scipy/stats",),
    ("scipy/signal", "scipy/fft", "scipy/sparse"),
    ("sklearn",),
    ("asyncio", "email", "http", "multiprocessing", "logging", "unittest", "xml"),
)


def _roots(topic: str) -> list[Path]:
    package, _, rest = topic.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"the text benchmarks read the docstrings of {package}")
    return [Path(place) / rest for place in spec.submodule_search_locations or ()]


def _first_paragraphs(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Module)
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [" ".join(text.split("\n\n")[0].split()) for text in texts if text]


@cache
def docstrings(per_topic: int = 300) -> tuple[list[str], list[int]]:
    """First paragraphs of docstrings of 6 to 40 words, and the topic each belongs to, shuffled.

    Kept on disk: parsing four libraries takes seconds, and every script would pay them again.
    """
    stored = CACHE / f"docstrings-{per_topic}.json"
    if stored.is_file():
        return tuple(json.loads(stored.read_text(encoding="utf-8")))
    found: list[tuple[str, int]] = []
    for label, topics in enumerate(TOPICS):
        files = sorted(f for t in topics for root in _roots(t) for f in root.rglob("*.py"))
        texts = sorted({p for f in files if "test" not in str(f) for p in _first_paragraphs(f)})
        texts = [t for t in texts if 6 <= len(t.split()) <= 40]
        order = np.random.default_rng(label).permutation(len(texts))[:per_topic]
        found += [(texts[i], label) for i in order]
    order = np.random.default_rng(0).permutation(len(found))
    texts, labels = [found[i][0] for i in order], [found[i][1] for i in order]
    CACHE.mkdir(exist_ok=True)
    scratch = stored.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps([texts, labels]), encoding="utf-8")
    scratch.replace(stored)
    return texts, labels


@cache
def words(length: int = 24, vocabulary: int = 1200) -> tuple[Tensor, Tensor]:
    """The docstrings as word ids [N, length], 0 is padding and 1 unknown, and their topics."""
    texts, labels = docstrings()
    split = [re.findall(r"[a-z]+", t.lower())[:length] for t in texts]
    common = Counter(w for s in split for w in s).most_common(vocabulary - 2)
    index = {w: i + 2 for i, (w, _) in enumerate(common)}
    ids = torch.zeros(len(split), length, dtype=torch.long)
    for row, sentence in zip(ids, split, strict=True):
        for place, word in enumerate(sentence):
            row[place] = index.get(word, 1)
    return ids, torch.tensor(labels)


def text_split(length: int = 24) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """`words` as ((train ids, topics), (test ids, topics)), 600 for the test."""
    ids, labels = words(length)
    return (ids[:-600], labels[:-600]), (ids[-600:], labels[-600:])


@cache
def characters(length: int = 48) -> Tensor:
    """The docstrings as character ids [N, length] of 28: a to z, space and anything else."""
    text = " ".join(docstrings()[0]).lower()
    codes = [ord(c) - 97 if "a" <= c <= "z" else 26 + (c != " ") for c in text]
    return torch.tensor(codes[: len(codes) // length * length]).view(-1, length)


@cache
def tabular() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Breast-cancer measurements in their own units (0.001 to 4254): 313 to train, 256 to test."""
    from sklearn.datasets import load_breast_cancer

    raw = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(raw.target))
    x = torch.tensor(raw.data[order], dtype=torch.float32)
    y = torch.tensor(raw.target[order]).long()
    return (x[:-256], y[:-256]), (x[-256:], y[-256:])


@cache
def picture(size: int = 64) -> tuple[Tensor, Tensor]:
    """Scikit-learn's photograph of a temple as (coordinates in 0..1, brighter than the median)."""
    from sklearn.datasets import load_sample_image

    grey = torch.tensor(load_sample_image("china.jpg").mean(-1), dtype=torch.float32)
    small = torch.nn.functional.adaptive_avg_pool2d(grey[None], size)[0]
    axis = (torch.arange(size) + 0.5) / size
    coordinates = torch.cartesian_prod(axis, axis)
    return coordinates, (small > small.median()).long().flatten()


@cache
def tones(count: int, pitches: int = 24, length: int = 512, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy tones [N, length] with random phase and harmonics, and their pitch in semitones."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, pitches, (count,), generator=random)
    omega = 0.15 * 2 ** (labels / 12)
    steps = torch.arange(length)
    wave = torch.zeros(count, length)
    for harmonic in (1, 2, 3):
        phase = torch.rand(count, 1, generator=random) * 6.2832
        wave += torch.sin(harmonic * omega[:, None] * steps + phase) / harmonic**2
    return wave + 0.5 * torch.randn(count, length, generator=random), labels
