"""A held-out vocoder: frames to a complex spectrum, to samples by inverse transform and overlap."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import Built, built, fitted, healthy


class Block(nn.Module):
    """ConvNeXt in one dimension: depthwise, norm, two pointwise layers, a scale."""

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.depth = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1 / layers))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).transpose(1, 2))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.transpose(1, 2)


class Inverse(nn.Module):
    """The inverse short-time transform with padding of its own: irfft, window, fold, envelope."""

    def __init__(self, size: int, hop: int) -> None:
        super().__init__()
        self.size, self.hop = size, hop
        self.register_buffer("window", torch.hann_window(size))

    def forward(self, spec: Tensor) -> Tensor:
        pad = (self.size - self.hop) // 2
        frames = torch.fft.irfft(spec, self.size, dim=1, norm="backward")
        frames = frames * self.window[None, :, None]
        length = (spec.shape[-1] - 1) * self.hop + self.size
        y = self.folded(frames, length)
        squares = self.window.square().expand(1, spec.shape[-1], -1).transpose(1, 2)
        envelope = self.folded(squares, length)
        return y[:, pad : length - pad] / envelope[:, pad : length - pad]

    def folded(self, frames: Tensor, length: int) -> Tensor:
        return F.fold(frames, (1, length), (1, self.size), stride=(1, self.hop))[:, 0, 0]


class Head(nn.Module):
    """Log magnitudes and phases to a wave; a magnitude is at most a hundred."""

    def __init__(self, dim: int, size: int, hop: int) -> None:
        super().__init__()
        self.out, self.inverse = nn.Linear(dim, size + 2), Inverse(size, hop)

    def forward(self, x: Tensor) -> Tensor:
        mag, phase = self.out(x).transpose(1, 2).chunk(2, 1)
        mag = torch.exp(mag).clip(max=1e2)
        return self.inverse(self.spectrum(mag, phase.cos(), phase.sin()))

    def spectrum(self, mag: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return mag * (x + 1j * y)


class WideHead(Head):
    """The spectrum and its inverse in float32."""

    def spectrum(self, mag: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return mag.float() * (x.float() + 1j * y.float())


class Vocos(nn.Module):
    """Embedding, norm, blocks, norm, head."""

    def __init__(self, head: type[Head], dim: int = 48, bands: int = 20) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv1d(bands, dim, 7, padding=3), nn.LayerNorm(dim, eps=1e-6)
        self.blocks = nn.ModuleList(Block(dim, 3) for _ in range(3))
        self.last, self.head = nn.LayerNorm(dim, eps=1e-6), head(dim, 64, 16)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.norm(self.embed(mel).transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x.transpose(1, 2)))


def voices(count: int, seed: int, frames: int = 24) -> tuple[Tensor, Tensor]:
    """Two gliding tones, and what a vocoder is given of them: levels by band, with their phases."""
    random = torch.Generator().manual_seed(seed)
    steps = torch.arange(frames * 16) / (frames * 16)
    low, high = (torch.rand(count, 1, generator=random) for _ in range(2))
    phase = (8 + 6 * low) * steps + 5 * high * steps**2
    wave = torch.sin(2 * torch.pi * phase) + 0.5 * torch.sin(4 * torch.pi * phase)
    padded = F.pad(wave, (24, 24), mode="reflect")
    spec = torch.fft.rfft(padded.unfold(1, 64, 16) * torch.hann_window(64), dim=-1)[..., :10]
    return torch.cat([spec.real, spec.imag], -1).transpose(1, 2).contiguous() / 8, wave


def spoken(head: type[Head]) -> Built:
    """Waves again."""
    model = fitted(
        lambda: Vocos(head), voices(500, 0), loss=F.mse_loss, epochs=25, batch=50, rate=6e-3
    )
    return built(model, voices(120, 1), size=60)


@healthy(task="regression", precisions=("16-mixed", "bf16-true", "bf16-mixed"))
def spectra_of_half() -> Built:
    """vllm-omni#7538: complex numbers of two halves, inverted: by CUDA, for powers of two."""
    return spoken(Head)


@healthy(task="regression")
def spectra_of_floats() -> Built:
    """vllm-omni#7538: the spectrum and its inverse in float32."""
    return spoken(WideHead)
