"""Held-out voices: complex spectra and their norms, alignments that move on, periods of a voice.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import TRUE, Built, healthy, planted
from benchmarks.cases.reported_quantities import taught
from benchmarks.cases.reported_tongues import drawn


class ComplexConv2d(nn.Module):
    """Real and imaginary channels, one half each, by two convolutions."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.real_conv = nn.Conv2d(into // 2, out // 2, 3, padding=1)
        self.imag_conv = nn.Conv2d(into // 2, out // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        real, imag = torch.chunk(x, 2, 1)
        r = self.real_conv(real) - self.imag_conv(imag)
        i = self.imag_conv(real) + self.real_conv(imag)
        return torch.cat([r, i], 1)


class ComplexBatchNorm(nn.Module):
    """Whitens the two parts of a number by the inverse root of their covariance."""

    def __init__(self, features: int, eps: float = 1e-5) -> None:
        super().__init__()
        n = features // 2
        self.eps = eps
        for name in ("RMr", "RMi", "RVri"):
            self.register_buffer(name, torch.zeros(n))
        for name in ("RVrr", "RVii"):
            self.register_buffer(name, torch.ones(n))
        self.Wrr, self.Wii = nn.Parameter(torch.ones(n)), nn.Parameter(torch.ones(n))
        self.Wri = nn.Parameter(torch.empty(n).uniform_(-0.9, 0.9))
        self.Br, self.Bi = nn.Parameter(torch.zeros(n)), nn.Parameter(torch.zeros(n))

    def remember(self, xr: Tensor, xi: Tensor) -> None:
        """Running statistics, of one large batch."""
        self.RMr.copy_(xr.mean((0, 2, 3)))
        self.RMi.copy_(xi.mean((0, 2, 3)))
        a, b = xr - self.RMr.view(1, -1, 1, 1), xi - self.RMi.view(1, -1, 1, 1)
        self.RVrr.copy_((a * a).mean((0, 2, 3)))
        self.RVri.copy_((a * b).mean((0, 2, 3)))
        self.RVii.copy_((b * b).mean((0, 2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        xr, xi = torch.chunk(x, 2, 1)
        if self.training:
            self.remember(xr, xi)
        shape = (1, -1, 1, 1)
        xr, xi = xr - self.RMr.view(shape), xi - self.RMi.view(shape)
        vrr, vri = self.RVrr.view(shape) + self.eps, self.RVri.view(shape)
        vii = self.RVii.view(shape) + self.eps
        tau = vrr + vii
        delta = torch.addcmul(vrr * vii, vri, vri, value=-1)
        s = delta.sqrt()
        t = (tau + 2 * s).sqrt()
        rst = (s * t).reciprocal()
        urr, uii, uri = (s + vii) * rst, (s + vrr) * rst, -vri * rst
        wrr, wri, wii = (w.view(shape) for w in (self.Wrr, self.Wri, self.Wii))
        zrr, zri = wrr * urr + wri * uri, wrr * uri + wri * uii
        zir, zii = wri * urr + wii * uri, wri * uri + wii * uii
        yr = zrr * xr + zri * xi + self.Br.view(shape)
        yi = zir * xr + zii * xi + self.Bi.view(shape)
        return torch.cat([yr, yi], 1)


class Enhance(nn.Module):
    """DCCRN's: two complex layers, a mask by size and angle, the spectrum that it leaves."""

    def __init__(self, level: float, width: int = 12) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            nn.Sequential(ComplexConv2d(a, width), ComplexBatchNorm(width), nn.PReLU())
            for a in (2, width)
        )
        self.decoder = ComplexConv2d(width, 2)
        self.train()
        self(level * drawn(64, 2, 12, 10, seed=11))

    def forward(self, spectrum: Tensor) -> Tensor:
        real, imag = spectrum[:, 0], spectrum[:, 1]
        mags = torch.sqrt(real**2 + imag**2 + 1e-8)
        phase = torch.atan2(imag, real)
        out = spectrum
        for layer in self.encoder:
            out = layer(out)
        mask_real, mask_imag = self.decoder(out).unbind(1)
        mask_mags = (mask_real**2 + mask_imag**2) ** 0.5
        real_phase, imag_phase = mask_real / (mask_mags + 1e-8), mask_imag / (mask_mags + 1e-8)
        mask_phase = torch.atan2(imag_phase, real_phase)
        mags = torch.tanh(mask_mags) * mags
        phase = phase + mask_phase
        return torch.stack([mags * torch.cos(phase), mags * torch.sin(phase)], 1).flatten(1)


@planted(
    "underflow", "encoder.0.1", "addcmul mul reciprocal", fails=("16-true",),
    moot=("bf16-true", "bf16-mixed"), family="complex", task="regression",
)  # fmt: skip
def whitening_of_a_quiet_voice() -> Built:
    """huyanxin/DeepComplexCRN#31: variances of 1e-4 have a determinant that float16 has not."""
    return taught(lambda: Enhance(0.02), (0.02 * drawn(240, 2, 12, 10, seed=1),))


@healthy(task="regression")
def whitening_of_a_loud_voice() -> Built:
    """huyanxin/DeepComplexCRN: 1e-8 is zero in float16, where it is added to what is not."""
    return taught(lambda: Enhance(1.0), (drawn(240, 2, 12, 10, seed=1),))


class GravesAttention(nn.Module):
    """Coqui's: bells of logistic curves that move along the text, and never back."""

    COEF = 0.3989422917366028

    def __init__(self, query: int, heads: int, typed: bool) -> None:
        super().__init__()
        self.heads, self.eps, self.typed = heads, 1e-5, typed
        self.N_a = nn.Sequential(nn.Linear(query, query), nn.ReLU(), nn.Linear(query, 3 * heads))
        nn.init.constant_(self.N_a[2].bias[2 * heads :], 1.0)
        nn.init.constant_(self.N_a[2].bias[heads : 2 * heads], 2.0)

    def init_states(self, inputs: Tensor) -> None:
        self.J = torch.arange(0, inputs.shape[1] + 2.0).to(inputs.device) + 0.5
        self.mu_prev = torch.zeros(inputs.shape[0], self.heads).to(inputs.device)

    def forward(self, query: Tensor, inputs: Tensor, mask: Tensor) -> Tensor:
        gbk = self.N_a(query).view(query.size(0), -1, self.heads)
        g, b, k = gbk.unbind(1)
        sig = F.softplus(b) + self.eps
        mu = self.mu_prev + F.softplus(k)
        g = torch.softmax(g, dim=-1) + self.eps
        j = self.J[: inputs.size(1) + 1]
        phi = 1 / (1 + torch.sigmoid((mu.unsqueeze(-1) - j) / sig.unsqueeze(-1)))
        alpha = self.COEF * torch.sum(g.unsqueeze(-1) * phi, 1)
        alpha = alpha[:, 1:] - alpha[:, :-1]
        alpha[alpha == 0] = 1e-8
        alpha = alpha.masked_fill(~mask, 1e-8)
        self.mu_prev = mu
        if self.typed:
            alpha = alpha.to(inputs.dtype)
        return torch.bmm(alpha.unsqueeze(1), inputs).squeeze(1)


class Reader(nn.Module):
    """An encoded text, read by that attention and a recurrent cell, frame by frame."""

    def __init__(self, typed: bool, width: int = 16) -> None:
        super().__init__()
        self.encoder, self.cell = nn.Linear(10, width), nn.GRUCell(width, width)
        self.attention, self.out = GravesAttention(width, 4, typed), nn.Linear(2 * width, 4)
        with torch.no_grad():
            self.encoder.weight *= 6

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        inputs = self.encoder(text)
        self.attention.init_states(inputs)
        state = context = inputs.new_zeros(len(text), inputs.shape[-1])
        frames = []
        for _ in range(12):
            state = self.cell(context, state)
            context = self.attention(state, inputs, mask)
            frames.append(self.out(torch.cat([state, context], -1)))
        return torch.stack(frames, 1).flatten(1)


def texts() -> tuple[Tensor, Tensor]:
    """Texts of fourteen letters to twenty-four."""
    mask = torch.arange(24) < (14 + torch.arange(240).view(-1, 1) % 11)
    return drawn(240, 24, 10, seed=2), mask


@planted(
    "unsupported-op", "attention", "bmm", fails=TRUE, family="speech", task="regression",
    also=("precision-loss",),
)  # fmt: skip
def letters_by_logistic_bells() -> Built:
    """coqui-ai/TTS: places in float32 make float32 of the weights, and letters are half."""
    return taught(lambda: Reader(False), texts(), noise=0.02)


@healthy(task="regression")
def letters_by_logistic_bells_cast() -> Built:
    """coqui-ai/TTS, cast: differences of curves that are made in float32, and 1e-8 of nothing."""
    return taught(lambda: Reader(True), texts(), noise=0.02)
