"""Held-out cases of lengths, committees and streams: what is counted, multiplied and added up."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import FP16, Built, built, fitted, healthy, planted


class Last(nn.Module):
    """The last frame that counts, found by how many do."""

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        last = mask.sum(-1).long() - 1
        return frames.gather(1, last[:, None, None].expand(-1, 1, frames.shape[-1]))[:, 0]


class Reader(nn.Module):
    """A number from the last frame of a recording, each read together with the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(6, 24, 2)
        self.pick, self.leave = Last(), nn.Linear(24, 2)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        hidden = self.enter(F.pad(frames.transpose(1, 2), (1, 0))).relu().transpose(1, 2)
        return self.leave(self.pick(hidden, mask))


def recordings(kind: torch.dtype) -> Built:
    """Walks of 300 to 700 steps, padded; what is asked of the last step and its length."""
    random = torch.Generator().manual_seed(0)
    frames = torch.randn(300, 700, 6, generator=random)
    lengths = torch.randint(300, 700, (300,), generator=random)
    mask = (torch.arange(700) < lengths[:, None]).to(kind)
    at = torch.arange(300)
    y = torch.stack([frames[at, lengths - 1, 0].abs(), frames[at, lengths - 2, 1]], -1)
    train = (frames[:200], mask[:200], y[:200])
    model = fitted(Reader, train, loss=F.mse_loss, epochs=30, batch=50)
    return built(model, (frames[200:], mask[200:], y[200:]), size=50)


@planted(
    "absorption", "pick", "sum", fails=("bf16-true",), task="regression",
    also=("precision-loss",), family="audio",
)  # fmt: skip
def length_of_a_float_mask() -> Built:
    """transformers#18080, #19369: the collator's mask was cast, and its sum of 301 is 302."""
    return recordings(torch.float32)


@healthy("regression")
def length_of_a_bool_mask() -> Built:
    """The mend of it: a mask of integers is not cast, nor is its sum."""
    return recordings(torch.bool)


class Committee(nn.Module):
    """Five readers of digits, their probabilities multiplied, or logarithms averaged."""

    def __init__(self, by_logs: bool) -> None:
        super().__init__()
        self.members = nn.ModuleList(nn.Linear(64, 10) for _ in range(5))
        self.by_logs = by_logs

    def forward(self, x: Tensor) -> Tensor:
        said = torch.stack([member(x.flatten(1)) for member in self.members])
        if self.by_logs:
            return said.log_softmax(-1).mean(0)
        return said.softmax(-1).prod(0).log() / 5


def committee(by_logs: bool) -> Built:
    """Digits, read by a committee that is fairly sure."""
    train, test = data.digits()
    return built(fitted(lambda: Committee(by_logs), train, epochs=8), test)


@planted("underflow", "", "prod", fails=("16-true",), moot=("16-mixed",), family="ensemble")
def committee_by_a_product() -> Built:
    """A product of experts: of five probabilities of 0.01 nothing is left in float16.

    Under autocast CUDA multiplies in float32; what of it a CPU does is not claimed.
    """
    return committee(False)


@healthy()
def committee_by_logarithms() -> Built:
    """The same sum in logarithms."""
    return committee(True)


class Stream(nn.Module):
    """A residual stream that every layer adds to, and a norm at its end."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.enter = nn.Linear(64, 32)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(6))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x.flatten(1)) * self.gain
        for layer in self.layers:
            h = h + self.gain * layer(F.normalize(h, dim=-1) * 5)
        return self.head(self.norm(h))


def stream(gain: float) -> Built:
    """Digits; the norm makes the gain of no importance in float32."""
    train, test = data.digits()
    model = fitted(lambda: Stream(1.0), train, epochs=20)
    model.gain = gain
    return built(model, test)


@planted("overflow", "", "mul add linalg_vector_norm", fails=FP16, family="transformer")
def stream_beyond_the_range() -> Built:
    """Massive activations (transformers#9295 is of their kin): a stream of 30000 and more."""
    return stream(20000.0)


@healthy()
def stream_within_the_range() -> Built:
    """The same stream at some thousands, whose squares no kernel takes in 16 bits."""
    return stream(300.0)
