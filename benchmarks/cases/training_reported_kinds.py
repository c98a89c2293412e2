"""Tensors of several kinds that meet in a training, after what issue trackers report.

As `training_reported`: written anew, and labelled by the judge before the gradient check answered.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe


class Binarised(torch.autograd.Function):
    """Weights by their signs; the slope passes straight through."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        signs = weight.sign() * weight.abs().mean()
        ctx.save_for_backward(x, signs)
        return F.linear(x, signs)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, signs = ctx.saved_tensors
        return grad.mm(signs), grad.t().mm(x)


class Binary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 96)
        self.weight = nn.Parameter(nn.Linear(96, 96).weight.detach().clone())
        self.norm, self.last = nn.LayerNorm(96), nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.flatten(1)).relu()
        return self.last(self.norm(Binarised.apply(h, self.weight)).relu())


@case(MIXED, TRUE)
def binary_weights() -> dict:
    """A backward pass of its own, without custom_fwd (pytorch/pytorch#38487)."""
    return recipe(Binary)


class Average:
    """Averaged weights, in an object that is no module."""

    def __init__(self, net: nn.Module, decay: float, dtype: torch.dtype | None) -> None:
        self.decay, self.dtype = decay, dtype
        self.kept = {n: self.own(p) for n, p in net.named_parameters()}

    def own(self, p: Tensor) -> Tensor:
        return p.detach().clone().to(self.dtype or p.dtype)

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        for name, p in net.named_parameters():
            kept = self.kept[name]
            if self.dtype is None and kept.dtype != p.dtype:  # the model was cast since
                kept = self.kept[name] = kept.to(p.dtype)
            kept.lerp_(p.detach(), 1 - self.decay)


class Averaged(nn.Module):
    """Is evaluated with the average."""

    def __init__(self, decay: float, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.net = mlp()
        self.ema = Average(self.net, decay, dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.ema.update(self.net)
            return self.net(x)
        held = {n: t.to(x.dtype) for n, t in self.ema.kept.items()}
        return torch.func.functional_call(self.net, held, (x,))


@case(TRUE, MIXED)
def average_of_another_kind() -> dict:
    """lerp_ of float32 towards half (lucidrains/ema-pytorch#36)."""
    return recipe(partial(Averaged, 0.95, torch.float32))


@case("bf16-true", MIXED)
def average_of_its_own() -> dict:
    """An average in the weights' type (d8ahazard/sd_dreambooth_extension#1417)."""
    return recipe(partial(Averaged, 0.9992, None), epochs=80)


class Factored(nn.Linear):
    """K-FAC: the slope of the weight times the inverse of its inputs' covariance."""

    def __init__(self, *size: int) -> None:
        super().__init__(*size)
        self.seen: Tensor | None = None
        self.register_forward_pre_hook(self.keep)
        self.weight.register_post_accumulate_grad_hook(self.turn)

    @staticmethod
    def keep(layer: Factored, args: tuple[Tensor]) -> None:
        if layer.training:
            layer.seen = args[0].detach()

    def turn(self, weight: Tensor) -> None:
        if self.seen is None:
            return
        covariance = self.seen.t() @ (self.seen / len(self.seen))
        d, q = torch.linalg.eigh(covariance)
        weight.grad = ((weight.grad @ q) / (d + 0.1)) @ q.t()


@case(TRUE, MIXED)
def kronecker() -> dict:
    """K-FAC's eigenvectors of what half layers saw (after alecwangcq/KFAC-Pytorch)."""
    make = lambda: nn.Sequential(nn.Flatten(), Factored(64, 48), nn.ReLU(), nn.Linear(48, 10))  # noqa: E731
    return recipe(make, optimizer=partial(SGD, lr=0.02))


class Scheduled(nn.Module):
    """A denoiser that is told its step, and looks the step's noise up by its value."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(65, 96, 64)
        self.register_buffer("steps", torch.arange(1000, 0, -1).float())
        self.register_buffer("sigmas", torch.linspace(1, 0.001, 1000))

    def sigma(self, t: Tensor) -> Tensor:
        steps = self.steps.to(t)
        index = [(steps == one).nonzero().item() for one in t]
        return self.sigmas[index].to(t)[:, None]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.body(torch.cat([x.flatten(1), (t / 1000)[:, None]], -1))


def flowing(model: Scheduled, batch: tuple[Tensor, Tensor]) -> Tensor:
    (x, _), clean = batch
    index = torch.randint(0, 1000, (len(x),), device=x.device)
    t = model.steps[index].to(x.dtype)
    sigma, noise = model.sigma(t), torch.randn_like(clean)
    found = model((1 - sigma) * clean + sigma * noise, t)
    return F.mse_loss(found, noise - clean)


@case("bf16-true", f"16-true {MIXED}")
def looked_up_steps() -> dict:
    """(steps == t).nonzero().item(), where 1000 is also 999 (after huggingface/diffusers)."""
    from benchmarks import data
    from benchmarks.data import batches

    (x, _), (a, _) = data.digits()
    x, a = x.flatten(1), a.flatten(1)
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    none, half = torch.zeros(len(x)), torch.full((len(a),), 512.0)
    given = {"train_data": batches(x, none, x, size=64), "task": "regression", "epochs": 25}
    given["eval_data"] = batches(0.488 * a + 0.512 * noise, half, noise - a, size=200)
    given["optimizer"] = partial(SGD, lr=0.05)
    return recipe(Scheduled, loss=None, training_step=flowing, **given)


class Quantised(nn.Module):
    """torch's own observers between two layers."""

    def __init__(self) -> None:
        super().__init__()
        from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

        make = partial(FakeQuantize, MovingAverageMinMaxObserver, quant_min=0, quant_max=255)
        self.first, self.seen, self.last = nn.Linear(64, 64), make(), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.seen(self.first(x.flatten(1)).relu()))


@case(sound=f"{TRUE} {MIXED}")
def fake_quantised() -> dict:
    """FakeQuantize, whose scale is cast with the rest (after pytorch/pytorch's torch.ao)."""
    return recipe(Quantised)


class Seeing(nn.Module):
    """Rows of a picture take the places that a text has kept for them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.rows = nn.Embedding(3, 32), nn.Linear(8, 32)
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True)
        self.head = nn.Linear(32, 10)
        self.register_buffer("text", torch.tensor([0, *[1] * 8, 2]))

    def forward(self, x: Tensor) -> Tensor:
        text = self.text.expand(len(x), -1)
        tokens, seen = self.words(text), self.rows(x.squeeze(1))
        mask = (text == 1).unsqueeze(-1).expand_as(tokens)
        return self.head(self.layer(tokens.masked_scatter(mask, seen))[:, -1])


@case(MIXED, TRUE)
def image_tokens() -> dict:
    """masked_scatter of float32 words and half rows (after huggingface/transformers)."""
    return recipe(Seeing, optimizer=partial(SGD, lr=0.05))
