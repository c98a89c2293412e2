"""Optimizers, knowledge, desires, lengths of paths and spectra in 16 bits, after issue trackers.

As `training_reported`: written anew, labelled before the check answered, and asked of the judge.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.training import MIXED, TRUE, case, cnn, mlp, recipe
from benchmarks.data import batches

ADAM = partial(torch.optim.Adam, lr=3e-3, eps=1e-4)

# Optimizers ---------------------------------------------------------------------------------------


class AdaMod(torch.optim.Optimizer):
    """Adam whose rates are at most their own slow average."""

    def __init__(self, params: Any, lr: float = 1e-2, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.999), "beta3": 0.99, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                self.move(p, group, self.state[p])

    def move(self, p: Tensor, group: dict, state: dict) -> None:
        if not state:
            state["step"] = 0
            state["m"], state["v"], state["rate"] = (torch.zeros_like(p) for _ in range(3))
        (beta1, beta2), beta3 = group["betas"], group["beta3"]
        state["step"] += 1
        state["m"].mul_(beta1).add_(p.grad, alpha=1 - beta1)
        state["v"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
        denom = state["v"].sqrt().add_(group["eps"])
        size = math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        size = torch.full_like(denom, group["lr"] * size).div_(denom)
        state["rate"].mul_(beta3).add_(size, alpha=1 - beta3)
        p.add_(-torch.min(size, state["rate"]).mul_(state["m"]))


@case("16-true", MIXED)
def moderate_rates() -> dict:
    """rate / (√v + 1e-8) is infinite, times zero (after lancopku/AdaMod)."""
    return recipe(optimizer=AdaMod)


class SM3(torch.optim.Optimizer):
    """Adagrad whose squares are kept by row and by column only."""

    def __init__(self, params: Any, lr: float = 0.1, eps: float = 1e-30) -> None:
        super().__init__(params, {"lr": lr, "momentum": 0.9, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state, shape, rank = self.state[p], p.shape, p.dim()
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                    for i, size in enumerate(shape):
                        view = [1] * i + [size] + [1] * (rank - 1 - i)
                        state[i] = torch.zeros(view, dtype=p.dtype, device=p.device)
                update = state[0].clone()
                for i in range(1, rank):
                    update = torch.min(update, state[i])
                update = update + p.grad**2
                for i in range(rank):
                    others = [d for d in range(rank) if d != i]
                    largest = update.amax(others, keepdim=True) if others else update
                    torch.max(state[i], largest, out=state[i])
                update.add_(group["eps"]).rsqrt_().mul_(p.grad)
                state["momentum"].mul_(group["momentum"]).add_(update, alpha=1 - group["momentum"])
                p.add_(state["momentum"], alpha=-group["lr"])


@case("16-true", f"bf16-true {MIXED}")
def covered_squares() -> dict:
    """g / √(cover + 1e-30) of weights that have no gradient (after Enealor/PyTorch-SM3)."""
    return recipe(optimizer=SM3)


@case("16-true", f"bf16-true {MIXED}")
def covered_squares_conv() -> dict:
    """The same of convolutions, some channels of which are dead."""
    return recipe(cnn, optimizer=partial(SM3, lr=0.03), epochs=5)


class Counted(torch.optim.Optimizer):
    """AdamW that counts its steps in the type of the weights."""

    def __init__(self, params: Any, lr: float = 2e-3, eps: float = 1e-4) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.999), "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros((), dtype=p.dtype, device=p.device)
                    state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                p.mul_(1 - 0.01 * group["lr"])
                state["m"].lerp_(p.grad, 1 - beta1)
                state["v"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                t = state["step"].item()
                denom = (state["v"].sqrt() / math.sqrt(1 - beta2**t)).add_(group["eps"])
                p.addcdiv_(state["m"], denom, value=-group["lr"] / (1 - beta1**t))


@case(sound=f"{TRUE} {MIXED}")
def counted_steps() -> dict:
    """A count of steps that stops at 256 in bfloat16 (after pytorch/ao#4915)."""
    return recipe(optimizer=Counted, epochs=20)


# Knowledge and desires ----------------------------------------------------------------------------


@case(sound=f"{TRUE} {MIXED}")
def decoupled_knowledge() -> dict:
    """log of two masked sums, and logits less 1000 (after megvii-research/mdistiller's DKD)."""
    (x, y), (a, b) = data.digits()
    random = torch.Generator().manual_seed(0)
    taught = 10 * F.one_hot(y, 10) + 2 * torch.randn(len(y), 10, generator=random)

    def loss(z: Tensor, t: Tensor) -> Tensor:
        heat, y = 4.0, t.argmax(1)
        right = torch.zeros_like(z).scatter_(1, y.unsqueeze(1), 1).bool()

        def halves(p: Tensor) -> Tensor:
            return torch.cat([(p * right).sum(1, True), (p * ~right).sum(1, True)], 1)

        student, teacher = (halves(F.softmax(v / heat, 1)) for v in (z, t))
        sure = F.kl_div(torch.log(student), teacher, reduction="sum") * heat**2 / len(y)
        others = F.softmax(t / heat - 1000.0 * right, 1)
        told = F.log_softmax(z / heat - 1000.0 * right, 1)
        rest = F.kl_div(told, others, reduction="sum") * heat**2 / len(y)
        return F.cross_entropy(z, y) + 0.1 * (sure + rest)

    train, test = batches(x, taught, size=64), batches(a, b, size=200)
    return recipe(loss=loss, train_data=train, eval_data=test, optimizer=ADAM, epochs=15)


class Desired(nn.Module):
    """A policy over ten answers, and the one that it started from."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.start = mlp(), mlp().requires_grad_(False)
        self.start.load_state_dict(self.body.state_dict())

    def forward(self, x: Tensor) -> Any:
        z = self.body(x)
        return (z, self.start(x)) if self.training else z


@case("16-true", f"bf16-true {MIXED}")
def desired_answers() -> dict:
    """KTO: right or wrong answers against a clamped divergence (after huggingface/trl)."""
    (x, y), _ = data.digits()
    random = torch.Generator().manual_seed(0)
    said = torch.where(
        torch.arange(len(y)) % 3 == 0, y, torch.randint(0, 10, y.shape, generator=random)
    )
    said = torch.stack([said, (said == y).long()], 1)

    def loss(out: Any, said: Tensor) -> Tensor:
        z, start = out
        log_p, log_q = z.log_softmax(-1), start.log_softmax(-1)
        ratio = (log_p - log_q).gather(1, said[:, :1]).squeeze(1)
        other = said[:, :1].roll(1, 0)
        kl = (log_p - log_q).gather(1, other).mean().detach().clamp(min=0)
        good = said[:, 1] == 1
        keep = 1 - torch.sigmoid(0.5 * (ratio[good] - kl))
        drop = 1 - torch.sigmoid(0.5 * (kl - ratio[~good]))
        return torch.cat((keep, drop), 0).nanmean()

    def step(model: Any, batch: tuple) -> Tensor:
        return loss(model(batch[0]), batch[1])

    given = {"training_step": step, "loss": None, "optimizer": partial(ADAM, lr=5e-3)}
    return recipe(Desired, train_data=batches(x, said, size=64), epochs=40, **given)


# Lengths and spectra ------------------------------------------------------------------------------


class Lengths(nn.Module):
    """An autoencoder whose decoder is to be as steep everywhere, and keeps how steep it was."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = mlp(64, 64, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64))
        self.register_buffer("steep", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


@case(sound=f"{TRUE} {MIXED}")
def path_lengths() -> dict:
    """(length - mean)², whose mean moves by 0.01 (after rosinality/stylegan2-pytorch)."""
    (x, _), (a, _) = data.digits()

    def step(model: Any, batch: tuple) -> Tensor:
        x, target = batch
        code = model.encoder(x)
        made = model.decoder(code)
        noise = torch.randn_like(made) / math.sqrt(64)
        (slope,) = torch.autograd.grad((made * noise).sum(), code, create_graph=True)
        lengths = torch.sqrt(slope.pow(2).sum(1))
        mean = model.steep + 0.01 * (lengths.mean() - model.steep)
        model.steep.copy_(mean.detach())
        return F.mse_loss(made, target) + 0.1 * (lengths - mean).pow(2).mean()

    train, test = batches(x, x.flatten(1), size=64), batches(a, a.flatten(1), size=200)
    given = {"training_step": step, "loss": None, "task": "regression", "optimizer": ADAM}
    return recipe(Lengths, train_data=train, eval_data=test, epochs=15, **given)


class Waves(nn.Module):
    """A Fourier neural operator: the lowest modes are mixed, and the rest passes by."""

    def __init__(self, width: int = 16, modes: int = 40) -> None:
        super().__init__()
        self.lift, self.past, self.modes = nn.Conv1d(1, width, 1), nn.Conv1d(width, width, 1), modes
        mixed = torch.rand(width, width, modes, 2) / width**2
        self.mixed, self.head = nn.Parameter(mixed), nn.Linear(width, 24)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x.unsqueeze(1))
        spectrum = torch.fft.rfft(h)
        kept = torch.zeros_like(spectrum)
        low = spectrum[:, :, : self.modes]
        kept[:, :, : self.modes] = torch.einsum(
            "bix,iox->box", low, torch.view_as_complex(self.mixed)
        )
        h = F.gelu(torch.fft.irfft(kept, n=h.size(-1)) + self.past(h))
        return self.head(h.pow(2).mean(-1))


@case(TRUE)
def operator_waves() -> dict:
    """No transform in bfloat16, no complex product of halves (after neuraloperator)."""
    train, test = data.tones(1200, length=256), data.tones(400, length=256, seed=1)
    given = {"train_data": batches(*train, size=64), "eval_data": batches(*test, size=200)}
    return recipe(Waves, optimizer=partial(ADAM, lr=1e-2), epochs=15, **given)


# A backward pass of one's own ---------------------------------------------------------------------


class ParallelEntropy(torch.autograd.Function):
    """Cross entropy whose softmax is kept, and made in place."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, smooth: float) -> Tensor:
        logits = logits - torch.max(logits, dim=-1)[0].unsqueeze(dim=-1)
        rows = torch.arange(len(target), device=logits.device)
        predicted = logits[rows, target].clone().contiguous()
        exp = logits.clone()
        torch.exp(logits, out=exp)
        total = exp.sum(dim=-1)
        loss = torch.log(total) - predicted
        exp.div_(total.unsqueeze(dim=-1))
        ctx.share = smooth * logits.size(-1) / (logits.size(-1) - 1)
        if smooth > 0:
            loss = (1.0 - ctx.share) * loss - ctx.share * torch.log(exp).mean(dim=-1)
        ctx.save_for_backward(exp, target)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        softmax, target = ctx.saved_tensors
        out, rows = softmax.clone(), torch.arange(len(target), device=target.device)
        out[rows, target] -= 1.0 - ctx.share
        out -= ctx.share / softmax.size(-1)
        out.mul_(grad.unsqueeze(dim=-1))
        return out, None, None


def entropy(smooth: float) -> dict:
    loss = lambda z, y: ParallelEntropy.apply(8 * z, y, smooth).mean()  # noqa: E731
    return recipe(loss=loss, optimizer=partial(ADAM, lr=1e-2), epochs=15)


@case(sound=f"{TRUE} {MIXED}")
def parallel_entropy() -> dict:
    """log of a softmax that underflows, of which the slope knows nothing (after Megatron-LM's)."""
    return entropy(0.1)


@case(sound=f"{TRUE} {MIXED}")
def parallel_entropy_plain() -> dict:
    """The same without smoothing: no logarithm of what underflows."""
    return entropy(0.0)
