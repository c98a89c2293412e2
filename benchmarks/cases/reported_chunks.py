"""Held-out sums that run on: delta rules in chunks, norms and energies of streams, integral images.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import FP16, TRUE, Built, healthy, planted
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import drawn


def l2norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Unit vectors, as flash-linear-attention makes them."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + eps)


def chunk_gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunk: int, solve: bool
) -> Tensor:
    """Gated delta rule, chunk by chunk: what a chunk adds to a state by a triangular system."""
    n, h, t, d = k.shape
    q = q * d**-0.5
    v_beta, k_beta = v * beta[..., None], k * beta[..., None]
    q, k, v, k_beta, v_beta = (x.view(n, h, -1, chunk, d) for x in (q, k, v, k_beta, v_beta))
    g = g.view(n, h, -1, chunk).cumsum(-1)
    mask = torch.triu(torch.ones(chunk, chunk, dtype=torch.bool, device=q.device))
    decay = (g[..., :, None] - g[..., None, :]).tril().exp().tril()
    attn = -((k_beta @ k.transpose(-1, -2)) * decay).masked_fill(mask, 0)
    eye = torch.eye(chunk, dtype=attn.dtype, device=attn.device)
    if solve:
        system = eye - attn
        value = torch.linalg.solve_triangular(system, v_beta, upper=False, unitriangular=True)
        k_cumdecay = torch.linalg.solve_triangular(
            system, k_beta * g.exp()[..., None], upper=False, unitriangular=True
        )
    else:
        for i in range(1, chunk):
            row, sub = attn[..., i, :i].clone(), attn[..., :i, :i].clone()
            attn[..., i, :i] = row + (row[..., None] * sub).sum(-2)
        attn = attn + eye
        value = attn @ v_beta
        k_cumdecay = attn @ (k_beta * g.exp()[..., None])
    state = torch.zeros(n, h, d, d, dtype=value.dtype, device=value.device)
    out = []
    for i in range(t // chunk):
        inner = ((q[:, :, i] @ k[:, :, i].transpose(-1, -2)) * decay[:, :, i]).masked_fill(
            mask.triu(1), 0
        )
        new = value[:, :, i] - k_cumdecay[:, :, i] @ state
        out.append((q[:, :, i] * g[:, :, i, :, None].exp()) @ state + inner @ new)
        last = g[:, :, i, -1, None]
        state = (
            state * last[..., None].exp()
            + (k[:, :, i] * (last - g[:, :, i]).exp()[..., None]).transpose(-1, -2) @ new
        )
    return torch.cat(out, dim=2)


class GatedDeltaNet(nn.Module):
    """Qwen3-Next's layer, without its convolution: keys that replace what they had written."""

    def __init__(self, dim: int, heads: int, wide: bool, solve: bool) -> None:
        super().__init__()
        self.heads, self.wide, self.solve = heads, wide, solve
        self.in_proj_qkv, self.in_proj_ba = nn.Linear(dim, 3 * dim), nn.Linear(dim, 2 * heads)
        self.dt_bias, self.A_log = (
            nn.Parameter(torch.ones(heads)),
            nn.Parameter(torch.log(torch.linspace(0.2, 2.0, heads))),
        )
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.in_proj_qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        b, a = self.in_proj_ba(x).view(n, t, 2, self.heads).permute(2, 0, 3, 1)
        beta = b.sigmoid()
        g = -self.A_log.float().exp()[:, None] * F.softplus(a.float() + self.dt_bias[:, None])
        q, k = l2norm(q), l2norm(k)
        if self.wide:
            q, k, v, beta = (y.float() for y in (q, k, v, beta))
        else:
            g = g.to(q.dtype)
        y = chunk_gated_delta_rule(q, k, v, g, beta, 8, self.solve).to(x.dtype)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class Served(nn.Module):
    """Two layers of it between norms, and which of six a text is."""

    def __init__(self, wide: bool, solve: bool, dim: int = 32) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(200, dim), nn.Linear(dim, 6)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.layers = nn.ModuleList(GatedDeltaNet(dim, 4, wide, solve) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for norm, layer in zip(self.norms, self.layers, strict=False):
            x = x + layer(norm(x))
        return self.head(self.norms[-1](x).mean(1))


def texts() -> tuple[Tensor]:
    """Words at random."""
    return (torch.randint(0, 200, (300, 24), generator=torch.Generator().manual_seed(1)),)


@planted("unsupported-op", "layers.0", "linalg_solve_triangular triangular_solve",
         fails=TRUE, fails_cpu=("16-mixed", "bf16-mixed"), family="language")  # fmt: skip
def delta_rules_by_a_triangular_system() -> Built:
    """transformers#47625: solve_triangular is made for float32; a port leaves out the cast."""
    return settled(partial(Served, False, True), texts())


@healthy()
def delta_rules_by_a_triangular_system_in_float32() -> Built:
    """transformers#47625: what a chunk needs is made float32 first."""
    return settled(partial(Served, True, True), texts())


@healthy()
def delta_rules_row_by_row() -> Built:
    """The same system by substitution, in the type of the keys: writes into rows of a matrix."""
    return settled(partial(Served, False, False), texts())


class CumulativeLayerNorm(nn.Module):
    """Conv-TasNet's norm for streams: by the mean and the spread of all frames so far."""

    def __init__(self, dim: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps
        self.gain, self.bias = (
            nn.Parameter(torch.ones(1, dim, 1)),
            nn.Parameter(torch.zeros(1, dim, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        channel, time = x.shape[1:]
        cum_sum, cum_pow_sum = x.sum(1).cumsum(1), x.pow(2).sum(1).cumsum(1)
        count = torch.arange(channel, channel * (time + 1), channel, device=x.device).type(x.type())
        mean = cum_sum / count.view(1, -1)
        var = (cum_pow_sum - 2 * mean * cum_sum) / count.view(1, -1) + mean.pow(2)
        std = (var + self.eps).sqrt()
        x = (x - mean.unsqueeze(1)) / std.unsqueeze(1)
        return x * self.gain + self.bias


class TasNet(nn.Module):
    """An encoder of a wave, that norm, and which of four speaks."""

    def __init__(self, dim: int = 128) -> None:
        super().__init__()
        self.encoder, self.norm = nn.Conv1d(1, dim, 8, stride=4), CumulativeLayerNorm(dim)
        self.head = nn.Linear(dim, 4)

    def forward(self, wave: Tensor) -> Tensor:
        x = F.relu(self.encoder(wave.unsqueeze(1)))
        return self.head(self.norm(x)[..., -120:].mean(2))


@planted("overflow", "norm", "_to_copy", fails=FP16, family="speech")
def frames_normed_by_all_before_them() -> Built:
    """naplab/Conv-TasNet's cLN: 512 frames of 128 channels are no count of float16."""
    loud = torch.linspace(0.2, 1.5, 2480) * drawn(96, 1, seed=3).exp()
    return settled(TasNet, (loud * drawn(96, 2480, seed=2),), 24)


class PCEN(nn.Module):
    """Energies of bands, each by a slow mean of its own, and a root."""

    def __init__(self, bands: int, s: float = 0.04, eps: float = 1e-12) -> None:
        super().__init__()
        self.s, self.eps = s, eps
        self.alpha, self.delta = (
            nn.Parameter(torch.full((bands, 1), 0.96)),
            nn.Parameter(torch.full((bands, 1), 2.0)),
        )
        self.root = nn.Parameter(torch.full((bands, 1), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        one_over_root = 1.0 / torch.max(self.root, torch.ones_like(self.root))
        mean, means = x[..., 0], []
        for frame in x.unbind(-1):
            mean = self.s * frame + (1 - self.s) * mean
            means.append(mean)
        floor = (self.eps + torch.stack(means, -1)) ** self.alpha
        return (x / floor + self.delta) ** one_over_root - self.delta**one_over_root


class Leaf(nn.Module):
    """Learned bands, their energies pooled and normed, and a class."""

    def __init__(self, bands: int = 16) -> None:
        super().__init__()
        self.filters = nn.Conv1d(1, bands, 25, stride=1, bias=False)
        self.pool, self.pcen = nn.AvgPool1d(32, 16), PCEN(bands)
        self.norm, self.head = nn.LayerNorm(bands), nn.Linear(bands, 5)

    def forward(self, wave: Tensor) -> Tensor:
        energy = self.pool(self.filters(wave.unsqueeze(1)).square())
        return self.head(self.norm(self.pcen(energy).mean(-1)))


@planted("underflow", "", "square pow avg_pool1d avg_pool2d div", fails=("16-true",),
         fails_cpu=("16-mixed",), family="speech",
         also=("eps-underflow", "precision-loss"))  # fmt: skip
def energies_by_a_mean_of_their_own() -> Built:
    """denfed/leaf-audio-pytorch: energies of a quiet wave are below 6e-8, and so is their floor."""
    quiet = 2e-4 * drawn(300, 1, seed=5).mul(0.5).exp()
    return settled(Leaf, (quiet * drawn(300, 480, seed=4).cumsum(1).diff(dim=1, n=1),))


class BoxFilter(nn.Module):
    """Sums over windows of any size for the price of one: by an integral image."""

    def __init__(self, radius: int) -> None:
        super().__init__()
        self.radius = radius

    def forward(self, x: Tensor) -> Tensor:
        r = self.radius
        s = F.pad(x.cumsum(-1).cumsum(-2), (1, 0, 1, 0))
        w = 2 * r + 1
        box = s[..., w:, w:] - s[..., w:, :-w] - s[..., :-w, w:] + s[..., :-w, :-w]
        return box / w**2


class Guided(nn.Module):
    """What is brighter than its surroundings, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.box, self.conv = BoxFilter(2), nn.Conv2d(1, 12, 5, stride=4)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = 8 * (x[..., 2:-2, 2:-2] - self.box(x))
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


@planted("cancellation", "box", "sub add cumsum", fails=("bf16-true",), family="vision",
         also=("absorption", "precision-loss"))  # fmt: skip
def surroundings_by_an_integral_image() -> Built:
    """wuhuikai/DeepGuidedFilter: thousands less thousands, for a mean over 25 pixels."""
    return settled(
        Guided, (torch.rand(200, 1, 80, 80, generator=torch.Generator().manual_seed(6)),)
    )
