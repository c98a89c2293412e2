"""Pretrained models as their packages ship them: what is said of each, and what native kernels say.

None is trained, changed or labelled here, and none was looked at while rules were written. Voices
are made of harmonics, crystals of rock salt are strained and shaken. Each package carries its
weights: ``pip install silero-vad resemblyzer`` and ``pip install chgnet sevenn``, as far as the
versions at hand allow; what is missing, or does not import, is left out and said.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import common
from benchmarks.cases.base import ALL
from pytest_fp16 import Evaluation, check
from pytest_fp16.errors import FP16Error
from pytest_fp16.report.model import Report

RATE = 16_000
HEADERS = (
    *("model", "precision", "verdict", "forecast", "native here", "metric"),
    *("culprit", "cure", "seconds"),
)


def voices(count: int, seconds: float) -> Tensor:
    """Harmonics of wandering pitch with pauses and a little noise, [count, samples]."""
    random = np.random.default_rng(0)
    time_ = np.arange(int(RATE * seconds)) / RATE
    made = []
    for _ in range(count):
        wander = 1 + 0.02 * np.sin(2 * np.pi * random.uniform(3, 7) * time_)
        phase = 2 * np.pi * np.cumsum(random.uniform(80, 300) * wander) / RATE
        tones = (random.uniform(0.2, 1) / k * np.sin(k * phase) for k in range(1, 20))
        loud = np.clip(np.sin(2 * np.pi * random.uniform(1, 3) * time_), 0, 1)
        voice = sum(tones) * loud + random.normal(size=len(time_)) * 0.01
        made.append(0.7 * voice / np.abs(voice).max())
    return torch.tensor(np.stack(made), dtype=torch.float32)


def speakers() -> Evaluation:
    """Embeddings of voices by Resemblyzer: three layers of LSTM over 160 frames."""
    from resemblyzer import VoiceEncoder
    from resemblyzer.audio import wav_to_mel_spectrogram

    frames = [torch.from_numpy(wav_to_mel_spectrogram(v.numpy()))[:160] for v in voices(48, 1.7)]
    model = VoiceEncoder("cpu", verbose=False).eval()
    return Evaluation(model, [torch.stack(frames)], task="embedding")


def voice_activity() -> Evaluation:
    """The probability of speech by Silero: a TorchScript module that keeps a state."""
    from silero_vad import load_silero_vad

    def from_the_start(model: Any, x: Tensor) -> Tensor:
        model.reset_states()
        return model(x, RATE)

    return Evaluation(
        load_silero_vad(), [voices(64, 0.032)], forward=from_the_start, task="regression"
    )


def crystals(count: int) -> list[Any]:
    """Cells of rock salt, strained and shaken."""
    from ase.build import bulk

    random = np.random.default_rng(0)
    made = []
    for width in np.linspace(5.2, 6.2, count):
        cell = bulk("NaCl", "rocksalt", a=width, cubic=True)
        cell.positions += random.normal(size=cell.positions.shape) * 0.05
        made.append(cell)
    return made


def _chgnet(quantity: str) -> Evaluation:
    from chgnet.model import CHGNet
    from pymatgen.io.ase import AseAtomsAdaptor

    model = CHGNet.load(use_device="cpu", verbose=False).eval()
    read = AseAtomsAdaptor.get_structure
    graphs = [model.graph_converter(read(cell)) for cell in crystals(8)]

    def predict(model: Any, batch: list[Any]) -> Tensor:
        found = model(batch, task="ef" if quantity == "f" else "e")[quantity]
        return found if isinstance(found, Tensor) else torch.stack(list(found))

    return Evaluation(model, [graphs], forward=predict, task="regression")


def energies() -> Evaluation:
    """Energies per atom by CHGNet, an interatomic potential on lists of graphs."""
    return _chgnet("e")


def forces() -> Evaluation:
    """Forces by CHGNet, the gradient of its energy."""
    return _chgnet("f")


def equivariant_energies() -> Evaluation:
    """Energies by SevenNet-0, an equivariant network on merged graphs, which takes forces too.

    Two cells: what its many edges hold is recorded for a diagnosis, forces included.
    """
    import sevenn
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.train.dataload import unlabeled_atoms_to_graph
    from sevenn.util import model_from_checkpoint
    from torch_geometric.loader import DataLoader

    folder = Path(sevenn.__file__).parent / "pretrained_potentials" / "SevenNet_0__11Jul2024"
    model, config = model_from_checkpoint(str(next(folder.glob("*.pth"))))
    model.set_is_batch_data(True)
    made = [unlabeled_atoms_to_graph(cell, config["cutoff"], True) for cell in crystals(2)]
    batches = list(DataLoader([AtomGraphData.from_numpy_dict(g) for g in made], batch_size=8))

    def predict(model: Any, batch: Any) -> Tensor:
        return model(batch.clone())["inferred_total_energy"].unsqueeze(1)

    return Evaluation(model.eval(), batches, forward=predict, task="regression", labelled=False)


SUBJECTS: dict[str, Callable[[], Evaluation]] = {
    "silero-vad": voice_activity,
    "resemblyzer": speakers,
    "chgnet, energies": energies,
    "chgnet, forces": forces,
    "sevennet-0, energies": equivariant_energies,
}


@dataclass(frozen=True)
class Seen:
    """What one model gave: rows of the table, and why there are none."""

    rows: tuple[tuple[str, ...], ...] = ()
    missing: str = ""


def judged(name: str, quick: bool) -> Seen:
    """Every precision of one model, emulated for CUDA and run in this device's own kernels."""
    try:
        subject = SUBJECTS[name]()
    except Exception as error:  # not installed, or its own imports do not work here
        return Seen(missing=f"{name} ({type(error).__name__}: {str(error).splitlines()[0][:80]})")
    rows = []
    for precision in ALL[:1] if quick else ALL:
        start = time.process_time()
        report = check(subject, precision=precision)
        seconds = time.process_time() - start
        rows.append((name, precision, *_told(subject, report), f"{seconds:.1f}"))
        print(*rows[-1], sep=" | ", flush=True)
    return Seen(tuple(rows))


def _told(subject: Evaluation, report: Report) -> Iterator[str]:
    culprit, cure, metric = report.culprit, report.cure, report.metric
    yield report.verdict
    yield report.forecast.verdict if report.forecast else "-"
    yield _natively(subject, report.precision)
    yield f"{metric.reference:.4f} → {metric.candidate:.4f}" if metric else "-"
    yield f"{culprit.module}: {culprit.operation}, {culprit.mechanism}" if culprit else ""
    said = f"{'passes' if cure.verified else 'advice'}: {cure.description}" if cure else ""
    yield re.sub(r"\S*/site-packages/", "", said)


def _natively(subject: Evaluation, precision: str) -> str:
    try:
        found = check(subject, precision=precision, emulate="never")
    except FP16Error as error:
        return type(error).__name__
    return found.verdict


def main() -> None:
    """Check every model that can be loaded here."""
    options = common.options(__doc__)
    seen = [judged(name, options.quick) for name in SUBJECTS]
    rows = [row for found in seen for row in found.rows]
    missing = [found.missing for found in seen if found.missing]
    said = f"{len(rows)} checks of {len(seen) - len(missing)} subjects."
    left_out = f"Left out: {'; '.join(missing)}." if missing else ""
    common.write(
        "packages", "Pretrained models as their packages ship them", said, HEADERS, rows, left_out,
        quick=options.quick,
    )  # fmt: skip


if __name__ == "__main__":
    main()
