"""Held-out sequences: places beyond the words, loud recordings, words in time, distances of genes.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import Built, healthy, planted
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import decided, drawn


class MRoPE(nn.Module):
    """Ideogram 4's angles: three axes, interleaved, of positions that are made float32."""

    inv_freq: Tensor

    def __init__(self, head_dim: int, base: int, section: tuple[int, ...]) -> None:
        super().__init__()
        inv_freq = 1.0 / (base ** (torch.arange(0, head_dim, 2).float() / head_dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.section = section

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        pos = position_ids.permute(2, 0, 1).to(dtype=torch.float32)
        inv_freq = self.inv_freq.to(dtype=torch.float32)[None, None, :, None]
        freqs = inv_freq.expand(3, pos.shape[1], -1, 1) @ pos.unsqueeze(2)
        freqs = freqs.transpose(2, 3)
        mixed = freqs[0].clone()
        for axis in (1, 2):
            index = torch.arange(axis, self.section[axis] * 3, 3, device=mixed.device)
            mixed[..., index] = freqs[axis][..., index]
        emb = torch.cat((mixed, mixed), dim=-1)
        return emb.cos(), emb.sin()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """A rotation of halves."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


class ImageTokens(nn.Module):
    """Patches of a picture whose places begin where no word has one, and one layer of attention."""

    def __init__(self, dim: int = 24, offset: int = 65536) -> None:
        super().__init__()
        self.offset = offset
        self.enter, self.qkv = nn.Linear(12, dim), nn.Linear(dim, 3 * dim)
        self.rope, self.head = MRoPE(dim, 5_000_000, (4, 4, 4)), nn.Linear(dim, 5)
        with torch.no_grad():
            self.qkv.bias[: 2 * dim] += 3 * torch.randn(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x, side = self.enter(x), int(x.shape[1] ** 0.5)
        place = torch.arange(x.shape[1], device=x.device)
        ids = torch.stack((torch.zeros_like(place), place // side, place % side), dim=-1)
        cos, sin = self.rope((ids + self.offset).expand(len(x), -1, -1))
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        x = F.scaled_dot_product_attention(rotated(q, cos, sin), rotated(k, cos, sin), v)
        return self.head(x[:, -1])


@planted(
    "overflow",
    "rope",
    "bmm matmul _to_copy",
    fails=("16-mixed", "bf16-mixed"),
    also=("precision-loss", "absorption"),
    family="rotary",
)
def patches_beyond_the_words() -> Built:
    """diffusers#13920: positions of 65536 are made float32, and autocast's product is not."""
    return settled(ImageTokens, (drawn(300, 16, 12, seed=1),))


class FilterbankFeatures(nn.Module):
    """NeMo's: pre-emphasis, powers in float32, a mel bank, logarithms, each band normed in time."""

    fb: Tensor

    def __init__(self, n_fft: int = 1024, bands: int = 24) -> None:
        super().__init__()
        self.n_fft, self.preemph, self.log_zero_guard_value = n_fft, 0.97, 2**-24
        self.register_buffer("window", torch.hann_window(n_fft))
        edges = torch.linspace(0, n_fft // 2, bands + 2).unsqueeze(1)
        bins = torch.arange(n_fft // 2 + 1).unsqueeze(0)
        rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
        fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
        self.register_buffer("fb", torch.minimum(rise, fall).clamp(min=0) / 20)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((x[:, :1], x[:, 1:] - self.preemph * x[:, :-1]), dim=1)
        with torch.autocast(x.device.type, enabled=False):
            frames = x.float().unfold(1, self.n_fft, self.n_fft // 2) * self.window.float()
            x = torch.view_as_real(torch.fft.rfft(frames)).transpose(1, 2)
        x = torch.sqrt(x.pow(2).sum(-1) + 0.0).pow(2.0)
        x = torch.matmul(self.fb.to(x.dtype), x)
        x = torch.log(x + self.log_zero_guard_value)
        mean, std = x.mean(dim=2, keepdim=True), x.std(dim=2, keepdim=True) + 1e-5
        return (x - mean) / std


class Recognizer(nn.Module):
    """Features, two convolutions in time, a class."""

    def __init__(self) -> None:
        super().__init__()
        self.featurizer = FilterbankFeatures()
        self.encoder = nn.Sequential(nn.Conv1d(24, 24, 3), nn.ReLU(), nn.Conv1d(24, 24, 3))
        self.decoder = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.featurizer(x).to(self.decoder.weight.dtype)
        return self.decoder(self.encoder(x).mean(-1))


def recordings(loud: float) -> Tensor:
    """Two gliding tones and noise."""
    t = torch.arange(8192) / 16000
    low = 200 + 150 * drawn(240, 1, seed=2).sigmoid() + 300 * t * drawn(240, 1, seed=3)
    tones = (2 * math.pi * low * t).sin() + 0.3 * (2 * math.pi * 9.3 * low * t).sin()
    return loud * (tones + 0.05 * drawn(240, 8192, seed=4))


@planted(
    "overflow",
    "featurizer",
    "bmm matmul _to_copy",
    fails=("16-mixed",),
    fails_cpu=("bf16-mixed",),
    family="spectra",
)
def recordings_at_full_scale() -> Built:
    """NVIDIA-NeMo/Speech#11541: powers are float32 up to the product, which autocast narrows."""
    return settled(Recognizer, (recordings(12.0),))


@healthy()
def recordings_of_usual_level() -> Built:
    """NVIDIA-NeMo/Speech: a guard of 2^-24 is the smallest number of float16, and one."""
    return settled(Recognizer, (recordings(0.2),))


def median_filter(x: Tensor, width: int) -> Tensor:
    """Whisper's, by sorting windows."""
    x = F.pad(x, (width // 2, width // 2, 0, 0), mode="reflect")
    return x.unfold(-1, width, 1).sort()[0][..., width // 2]


class Aligner(nn.Module):
    """Which frame a word was said in: weights of two heads, standardized over all words."""

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        q, k = (x.unflatten(-1, (2, -1)).transpose(1, 2) for x in (q, k))
        weights = F.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
        std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
        weights = (weights - mean) / std
        return median_filter(weights, 3).mean(dim=1)


class Timed(nn.Module):
    """Queries of words, keys of frames, and where the first word is."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.query, self.key, self.aligner = nn.Linear(dim, dim), nn.Linear(dim, dim), Aligner()
        with torch.no_grad():
            for layer in (self.query, self.key):
                layer.weight.mul_(0.4).add_(torch.eye(dim))

    def forward(self, words: Tensor, frames: Tensor) -> Tensor:
        return self.aligner(self.query(words), self.key(frames))[:, 0]


def spoken() -> tuple[Tensor, Tensor]:
    """Eight words, thirty frames of speech, and silence, which no word looks at."""
    words, frames = drawn(240, 8, 16, seed=5) + 1.5, drawn(240, 30, 16, seed=6)
    silence = 0.2 * drawn(240, 6, 16, seed=8) - 3
    return words, torch.cat((frames, silence), dim=1)


@planted(
    "underflow",
    "aligner",
    "_softmax std_mean var_mean sub div",
    fails=("16-true",),
    fails_cpu=("16-mixed",),
    moot=("bf16-true", "bf16-mixed"),
    family="alignment",
)
def words_in_time_and_silence() -> Built:
    """transformers#23205: of what no word looks at there is no spread in float16, and 0 / 0."""
    return decided(Timed, spoken())


def gamma_pdf(x: Tensor, concentration: Tensor, rate: Tensor) -> Tensor:
    """By logarithms: the density, less its normalization."""
    unnormalized = torch.xlogy(concentration - 1.0, x) - rate * x
    return torch.exp(unnormalized - (torch.lgamma(concentration) - concentration * rate.log()))


def positional(length: int, features: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Enformer's three kinds of features of distance, and all of them with its sign."""
    distances = torch.arange(-length + 1, length, device=device)
    far = distances.abs().to(dtype).unsqueeze(-1)
    half_life = 2 ** torch.linspace(3.0, math.log2(length), features, device=device, dtype=dtype)
    widths = 2 ** torch.arange(1, features + 1, device=device).to(dtype) - 1
    stddev = length / (2 * features)
    mean = torch.linspace(length / features, length, features, device=device, dtype=dtype)
    gamma = gamma_pdf(far, (mean / stddev) ** 2, mean / stddev**2) + 1e-8
    parts = (
        torch.exp(-math.log(2.0) / half_life * far),
        (widths > far).to(dtype),
        gamma / gamma.amax(dim=-1, keepdim=True),
    )
    there = torch.cat(parts, dim=-1)
    return torch.cat((there, distances.sign().unsqueeze(-1) * there), dim=-1)


class Distant(nn.Module):
    """Attention by content and by features of distance."""

    def __init__(self, wide: bool, dim: int = 16, features: int = 8) -> None:
        super().__init__()
        self.wide, self.features = wide, features
        self.to_qkv, self.to_rel_k = nn.Linear(dim, 3 * dim), nn.Linear(6 * features, dim)
        self.rel_pos_bias = nn.Parameter(5 * torch.randn(dim))
        with torch.no_grad():
            self.to_rel_k.weight *= 2

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        n, weight = x.shape[1], self.to_rel_k.weight
        dtype = torch.float32 if self.wide else weight.dtype
        rel_k = self.to_rel_k(positional(n, self.features, dtype, x.device).to(weight.dtype))
        rel = (q + self.rel_pos_bias) @ rel_k.t()
        rel = F.pad(rel, (1, 0)).reshape(len(x), 2 * n, n)[:, 1:].reshape(len(x), n, 2 * n - 1)
        logits = (q @ k.transpose(-1, -2) + rel[..., :n]) * q.shape[-1] ** -0.5
        return logits.softmax(dim=-1) @ v


class Genes(nn.Module):
    """Bases, that attention, what is said of the middle."""

    def __init__(self, wide: bool = False) -> None:
        super().__init__()
        self.stem, self.attn, self.head = nn.Linear(4, 16), Distant(wide), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.attn(x)[:, ::16].flatten(1).unflatten(1, (-1, 16)).sum(1))


def bases() -> Tensor:
    """Sequences of 128 bases."""
    index = torch.randint(4, (200, 128), generator=torch.Generator().manual_seed(7))
    return F.one_hot(index, 4).float() * 2


@planted(
    "eps-underflow",
    "attn",
    "add div amax xlogy lgamma mul sub exp pow",
    fails=("16-true", "bf16-true"),
    also=("cancellation", "precision-loss"),
    family="positions",
)
def genes_by_densities_of_distance() -> Built:
    """enformer-pytorch: in the weight's dtype 1e-8 is zero, and logarithms of a thousand cancel."""
    return settled(Genes, (bases(),))


@healthy()
def genes_by_densities_in_float32() -> Built:
    """enformer-pytorch, before: densities in float32, cast when they are between zero and one."""
    return settled(lambda: Genes(wide=True), (bases(),))
