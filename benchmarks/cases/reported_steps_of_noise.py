"""Held-out diffusion: sigma space, looked-up steps, times, tables of solvers, boundaries, ids.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import FP16, TRUE, Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_tongues import decided, drawn

BF16 = ("bf16-true", "bf16-mixed")


def sinusoidal_embedding_1d(dim: int, position: Tensor) -> Tensor:
    """As video models have it: computed in float64, handed on in the positions' own type."""
    sinusoid = torch.outer(
        position.type(torch.float64),
        torch.pow(
            10000,
            -torch.arange(dim // 2, dtype=torch.float64, device=position.device).div(dim // 2),
        ),
    )
    return torch.cat([torch.cos(sinusoid), torch.sin(sinusoid)], dim=1).to(position.dtype)


class FlowMatchScheduler:
    """No module: its tables are moved by nobody."""

    def __init__(self, steps: int = 50, shift: float = 5.0) -> None:
        sigmas = torch.linspace(1.0, 0.003, steps)
        self.sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
        self.timesteps = self.sigmas * 1000


class Wan(nn.Module):
    """A denoiser whose time arrives as an index into the scheduler's table."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.scheduler, self.mended = FlowMatchScheduler(), mended
        self.time_embedding = nn.Sequential(nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 16))
        self.patch, self.head = nn.Linear(8, 16), perceptron(16, 5)

    def model_fn(self, x: Tensor, timestep: Tensor) -> Tensor:
        embedding = sinusoidal_embedding_1d(32, timestep)
        t = self.time_embedding(4 * embedding.to(x.dtype))
        return self.head(torch.tanh(self.patch(x)) * (1 + t) + t)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        timestep = self.scheduler.timesteps.to(x.device)[index]
        if not self.mended:
            timestep = timestep.to(dtype=x.dtype)
        return self.model_fn(x, timestep)


def steps_of(count: int = 384) -> Tensor:
    """Indices of the first steps."""
    return torch.randint(0, 50, (count,), generator=torch.Generator().manual_seed(7))


@planted(
    "precision-loss", "", "_to_copy", fails=("bf16-true",), moot=("bf16-mixed",), family="casts",
)  # fmt: skip
def timesteps_in_the_models_type() -> Built:
    """DiffSynth-Studio#1025: 998.39 is 1000 in bfloat16, before it becomes an angle."""
    return decided(lambda: Wan(False), (drawn(384, 8), steps_of()))


@healthy(precisions=FP16)
def timesteps_cast_behind_their_angles() -> Built:
    """DiffSynth-Studio#1025, as it was mended."""
    return decided(lambda: Wan(True), (drawn(384, 8), steps_of()))


class Sigmas:
    """A scheduler that is asked for the sigma of a time."""

    def __init__(self) -> None:
        base = torch.linspace(1, 1000, 1000) / 1000
        self.sigmas = (3.0 * base / (1 + 2.0 * base)).flip(0)
        self.timesteps = self.sigmas * 1000


class Trained(nn.Module):
    """A denoised sample, as training scripts compute it."""

    def __init__(self) -> None:
        super().__init__()
        self.noise_scheduler = Sigmas()
        self.transformer = perceptron(9, 8)

    def get_sigmas(self, timesteps: Tensor, n_dim: int, dtype: torch.dtype) -> Tensor:
        sigmas = self.noise_scheduler.sigmas.to(device=timesteps.device, dtype=dtype)
        schedule_timesteps = self.noise_scheduler.timesteps.to(timesteps.device)
        step_indices = [(schedule_timesteps == t).nonzero().item() for t in timesteps]
        sigma = sigmas[step_indices].flatten()
        while len(sigma.shape) < n_dim:
            sigma = sigma.unsqueeze(-1)
        return sigma

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        timesteps = self.noise_scheduler.timesteps[index].to(device=x.device, dtype=x.dtype)
        sigma = self.get_sigmas(timesteps, n_dim=x.ndim, dtype=x.dtype)
        pred = self.transformer(torch.cat([x, timesteps[:, None] / 1000], 1))
        return x + pred * (-sigma)


@planted(
    "precision-loss", "", "_to_copy eq", fails=TRUE, also=("unsupported-op",), family="casts",
    task="regression",
)  # fmt: skip
def steps_looked_up_by_their_time() -> Built:
    """diffusers' training scripts: a time that was cast equals none of the table's."""
    index = 10 * steps_of(256) + 3
    return taught(Trained, (drawn(256, 8), index))


class Pix2Pix(nn.Module):
    """Guidance in sample space for a scheduler in sigma space, and back."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.unet, self.mended = perceptron(9, 8), mended

    def guided(self, latents: Tensor, sigma: float) -> Tensor:
        scaled = latents / (sigma**2 + 1) ** 0.5
        level = torch.full_like(scaled[:, :1], math.log(sigma) / 4)
        wide = torch.cat([scaled, level], 1)
        noise_pred = torch.cat([wide, wide * 0.9])
        noise_pred = latents.repeat(2, 1) / sigma + 0.02 * self.unet(noise_pred)
        if self.mended:
            text, image = noise_pred.chunk(2)
            return image + 7.5 * (text - image)
        noise_pred = latents.repeat(2, 1) - sigma * noise_pred
        text, image = noise_pred.chunk(2)
        noise_pred = image + 7.5 * (text - image)
        return (noise_pred - latents) / (-sigma)

    def forward(self, noise: Tensor) -> Tensor:
        sigmas = [4096.0, 60.0, 14.6, 3.0, 0.5]
        latents = noise * sigmas[0]
        for sigma, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            latents = latents + self.guided(latents, sigma) * (after - sigma)
        return latents


@planted(
    "overflow", "", "mul sub add", fails=("16-true",), moot=BF16,
    also=("cancellation", "precision-loss"), family="range", task="regression",
)  # fmt: skip
def guidance_in_sample_space() -> Built:
    """diffusers#6981: latents of sigma 4096 less sigma times noise, which cancels or overflows."""
    return taught(lambda: Pix2Pix(False), (2 * drawn(384, 8),))


class DPMSolver:
    """A solver's tables, in the type it was asked for."""

    def __init__(self, dtype: torch.dtype, device: torch.device, mended: bool) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        table = torch.float32 if mended else dtype
        scale = torch.sqrt((1 - betas).cumprod(0)).to(device, table)
        self.cumulative_scale_factors = scale
        self.noise_std = torch.sqrt(1 - scale**2)
        self.signal_to_noise_ratios = torch.log(scale) - torch.log(self.noise_std)
        self.timesteps = torch.linspace(999, 0, 21).round().long()
        self.dtype = dtype

    def step(self, x: Tensor, estimate: Tensor, step: int) -> Tensor:
        here, there = self.timesteps[step], self.timesteps[step + 1]
        ratio = self.signal_to_noise_ratios
        factor = torch.exp(ratio[here] - ratio[there])
        mixed = (self.noise_std[there] / self.noise_std[here]) * x
        mixed = mixed + (1 - factor) * self.cumulative_scale_factors[there] * estimate
        return mixed.to(self.dtype)


class Latent(nn.Module):
    """Twenty steps of a solver."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.unet, self.mended = perceptron(9, 8), mended

    def forward(self, x: Tensor) -> Tensor:
        solver = DPMSolver(x.dtype, x.device, self.mended)
        for step in range(20):
            level = torch.full_like(x[:, :1], step / 20)
            x = solver.step(x, self.unet(torch.cat([x, level], 1)), step)
        return x


@planted(
    "cancellation", "", "sub rsub", fails=("bf16-true",), moot=("16-true", "bf16-mixed"),
    also=("precision-loss", "absorption"), family="tables", task="regression",
)  # fmt: skip
def tables_of_a_solver() -> Built:
    """finegrain refiners#449: differences of logarithms of a table in bfloat16."""
    return taught(lambda: Latent(False), (drawn(384, 8),))


def scalings_for_boundary_conditions(
    timestep: Tensor, sigma_data: float = 0.5, timestep_scaling: float = 10.0
) -> tuple[Tensor, Tensor]:
    """How much of the input, and how much of the network, a consistency model hands out."""
    scaled = timestep_scaling * timestep
    c_skip = sigma_data**2 / (scaled**2 + sigma_data**2)
    c_out = scaled / (scaled**2 + sigma_data**2) ** 0.5
    return c_skip, c_out


class Consistent(nn.Module):
    """One step of a consistency model."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = perceptron(9, 5)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        timesteps = (index * 20 + 19).to(x.dtype)
        c_skip, c_out = (c[:, None] for c in scalings_for_boundary_conditions(timesteps))
        return c_skip * x[:, :5] + c_out * self.unet(torch.cat([x, timesteps[:, None] / 1000], 1))


@planted("overflow", "", "pow", fails=("16-true",), moot=BF16, family="range")
def boundaries_of_a_consistency_model() -> Built:
    """diffusers' LCM scripts: ten times 999, squared, is infinite, and so nothing is handed out."""
    return decided(Consistent, (drawn(384, 8), steps_of()))


class Rope(nn.Module):
    """Rotary angles of ids on several axes."""

    def __init__(self, dim: int, theta: float = 10000.0) -> None:
        super().__init__()
        self.dim, self.theta = dim, theta

    def rope(self, ids: Tensor) -> Tensor:
        scale = torch.arange(0, self.dim, 2, dtype=torch.float64, device=ids.device) / self.dim
        out = torch.einsum("...n,d->...nd", ids.to(torch.float64), 1.0 / self.theta**scale)
        return torch.stack([torch.cos(out), torch.sin(out)], -1).float()

    def forward(self, ids: Tensor) -> Tensor:
        return torch.cat([self.rope(ids[..., i]) for i in range(ids.shape[-1])], dim=-2)


class Flux(nn.Module):
    """One layer of joint attention over words at places up to 512, read at the last of them."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.pe_embedder, self.mended = Rope(16), mended
        self.qkv, self.head = nn.Linear(32, 96), perceptron(32, 5)
        with torch.no_grad():
            self.qkv.weight[:64] *= 3

    def apply_rope(self, x: Tensor, pe: Tensor) -> Tensor:
        one, other = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = pe.unbind(-1)
        out = torch.stack([one * cos - other * sin, one * sin + other * cos], -1)
        return out.flatten(-2).type_as(x)

    def forward(self, words: Tensor, ids: Tensor) -> Tensor:
        if not self.mended:
            ids = ids.to(words.dtype)
        pe = self.pe_embedder(ids)
        q, k, v = self.qkv(words).chunk(3, -1)
        q, k = self.apply_rope(q, pe), self.apply_rope(k, pe)
        return self.head(3 * F.scaled_dot_product_attention(q[:, -4:], k, v).mean(1))


def places() -> tuple[Tensor, Tensor]:
    """Words at places from 300 on, of two axes."""
    place = torch.arange(480, 512).expand(384, 32)
    return drawn(384, 32, 32, seed=15), torch.stack([place, place // 8], -1)


@planted("precision-loss", "", "_to_copy", fails=("bf16-true",), moot=("bf16-mixed",),
         also=("absorption",), family="casts")  # fmt: skip
def ids_in_the_models_type() -> Built:
    """OneTrainer#1177: ids of words up to 512, cast to bfloat16 with everything else."""
    return decided(lambda: Flux(False), places())


@healthy(precisions=FP16)
def ids_left_alone() -> Built:
    """OneTrainer#1177: ids stay whole numbers."""
    return decided(lambda: Flux(True), places())
