"""Held-out programs with ragged tensors, early exits and paths; some sound, some not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import FP16, TRUE, Built, built, fitted, healthy, planted
from benchmarks.cases.planted_other import per_token


class TiedModel(nn.Module):
    """A character model: tied embedding and head, complex rotary positions, soft-capped logits."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Embedding(28, dim), nn.Linear(dim, 3 * dim)
        self.norm, self.out = nn.RMSNorm(dim), nn.Linear(dim, 28, bias=False)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.out.weight = self.embed.weight
        angle = torch.outer(torch.arange(48.0), 100 ** (-torch.arange(0, dim, 2) / dim))
        self.turn = torch.polar(torch.ones_like(angle), angle)  # no buffer: it is never cast

    def rotated(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self.turn.to(x.device)).flatten(-2).type_as(x)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) * self.embed.weight.shape[1] ** 0.5
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        said = F.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v, is_causal=True)
        return torch.tanh(self.out(self.norm(x + said)) / 30) * 30


@healthy()
def tied_and_soft_capped() -> Built:
    """Gemma 2 and Llama: tanh(x / 30) · 30, and rotations as complex numbers from a buffer."""
    text = data.characters()
    text, follows = text[:1700], text[:1700].roll(-1, 1)
    model = fitted(TiedModel, (text[:1500], follows[:1500]), loss=per_token, epochs=15, rate=1e-2)
    return built(model, (text[1500:], follows[1500:]), 64)


class Ragged(nn.Module):
    """Texts of different length as one jagged tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = (
            nn.Embedding(1200, 24),
            nn.Linear(24, 24),
            nn.Linear(24, 8),
        )

    def forward(self, ids: Tensor) -> Tensor:
        length = (ids != 0).sum(1).clamp(min=1)
        words = self.embed(
            torch.cat([row[:n] for row, n in zip(ids, length.tolist(), strict=True)])
        )
        offsets = F.pad(length.cumsum(0), (1, 0))
        nested = torch.nested.nested_tensor_from_jagged(words, offsets)
        pooled = F.gelu(self.mix(nested)).to_padded_tensor(0.0).sum(1)
        return self.head(pooled / length[:, None].to(pooled.dtype))


@healthy()
def jagged_texts() -> Built:
    """segment-anything-fast#26: nested tensors of the jagged layout."""
    train, test = data.text_split()
    return built(fitted(Ragged, train, epochs=12, rate=1e-2), test)


class Halting(nn.Module):
    """Layers with a head each; an input leaves where its entropy is low enough."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(64, 48)
        self.layers = nn.ModuleList(nn.Linear(48, 48) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(48, 10) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.flatten(1)).relu()
        said = []
        for layer, head in zip(self.layers, self.heads, strict=True):
            x = x + layer(x).relu()
            said.append(head(x))
        if self.training:
            return sum(said) / 3
        out, left = torch.zeros_like(said[0]), torch.ones(len(x), dtype=torch.bool, device=x.device)
        for i, logits in enumerate(said):
            log = logits.log_softmax(-1)
            leaves = left & ((-(log.exp() * log).sum(-1) < 0.3) if i < 2 else left)
            out[leaves] = logits[leaves]
            left = left & ~leaves
        return out


@healthy()
def early_exits() -> Built:
    """DeeBERT: an input may leave a layer later, with another head's answer."""
    train, test = data.digits()
    return built(fitted(Halting, train), test)


class Nucleus(nn.Module):
    """Class probabilities, those outside the nucleus of 0.9 set to zero."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.body(x.flatten(1))
        if self.training:
            return logits
        ranked, order = logits.sort(-1)
        gone = ranked.softmax(-1).cumsum(-1) <= 0.1
        gone[:, -1] = False
        return logits.softmax(-1).masked_fill(gone.scatter(1, order, gone), 0)


@healthy()
def nucleus_of_probabilities() -> Built:
    """mlx-lm#1912, transformers#18984: who is in the nucleus may change, the likeliest stays."""
    train, test = data.digits()
    return built(fitted(Nucleus, train), test)


class Marginals(nn.Module):
    """Marginals of a chain of three tags, forwards and backwards in logarithms, -1e4 forbidden."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.score = nn.Embedding(28, 24), nn.Conv1d(24, 3, 3, padding=1)
        self.change = nn.Parameter(torch.randn(3, 3) * 0.1)
        self.register_buffer("forbidden", torch.tensor([[0.0, 0, 0], [0, 0, -1e4], [0, 0, 0]]))

    def forward(self, ids: Tensor) -> Tensor:
        scores = self.score(self.embed(ids).transpose(1, 2)).transpose(1, 2)
        change, ahead, back = self.change + self.forbidden, [scores[:, 0]], [scores[:, -1] * 0]
        for t in range(1, ids.shape[1]):
            ahead.append((ahead[-1][:, :, None] + change).logsumexp(1) + scores[:, t])
            back.append((change + (back[-1] + scores[:, -t])[:, None]).logsumexp(2))
        return torch.stack(ahead, 1) + torch.stack(back[::-1], 1)


@healthy(precisions=("16-true", "16-mixed", "bf16-mixed"))
def chain_marginals() -> Built:
    """Conditional random fields (lightseq#377): forbidden steps at -1e4, twelve letters."""
    text = data.characters(12)
    tag = lambda t: torch.where(t < 26, (t % 2), 2)  # noqa: E731
    train, test = (text[:2500], tag(text[:2500])), (text[2500:3100], tag(text[2500:3100]))
    return built(fitted(Marginals, train, loss=per_token, epochs=5), test)


class Reversible(nn.Module):
    """RevIN: a window's mean and spread taken off and given back, with its learned scale."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.weight, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True).detach()
        spread = torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5).detach()
        y = self.body((x - mean) / spread * self.weight + self.bias)
        return (y - self.bias) / (self.weight + 1e-10) * spread + mean


@healthy(task="regression")
def reversible_instance_norm() -> Built:
    """RevIN: 1e-10 beside a weight near one does nothing in any precision."""
    wave, pitch = data.tones(900, pitches=6)
    del pitch
    train, test = (wave[:700, :48], wave[:700, 48:52]), (wave[700:, :48], wave[700:, 48:52])
    make = lambda: Reversible(nn.Sequential(nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 4)))  # noqa: E731
    return built(fitted(make, train, loss=F.mse_loss), test)


class Ball(nn.Module):
    """Distances in Poincaré's ball to one point a class."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(10, 8) * 0.3)

    @staticmethod
    def inside(x: Tensor) -> Tensor:
        return x * torch.tanh(x.norm(dim=-1, keepdim=True)) / x.norm(dim=-1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.inside(x)[:, None], self.inside(self.centres)
        far = lambda t: 1 - (t**2).sum(-1).clamp(0, 1 - 1e-3)  # noqa: E731
        cosh = 1 + 2 * ((a - b) ** 2).sum(-1) / (far(a) * far(b))
        return -torch.log(cosh + torch.sqrt(cosh**2 - 1))


class Hyperbolic(nn.Module):
    """Features far out in the ball, and distances."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8))
        self.ball = Ball()

    def forward(self, x: Tensor) -> Tensor:
        return self.ball(self.body(x.flatten(1)))


@planted(
    "absorption", "ball", "clamp rsub div sum pow", fails=TRUE,
    also=("eps-underflow", "cancellation", "precision-loss", "overflow"), family="geometry",
)  # fmt: skip
def rim_of_the_ball() -> Built:
    """geomstats#273: a clamp to 1 - 1e-3 is one to 1 in bfloat16; 300 squared is too much."""
    train, test = data.digits()
    return built(fitted(Hyperbolic, train), test)


class Pooler(nn.Module):
    """Rows pooled, scaled by a root, and standardised by what training saw."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.register_buffer("bias", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(1) * x.shape[-1] ** 0.5
        return (x - self.bias) * self.scale


class Vision(nn.Module):
    """A body whose features are large, the pooler, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 48), nn.GELU(), nn.Linear(48, 32))
        self.pooler, self.head = Pooler(), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        places = x.flatten(1, 2) + torch.eye(8, device=x.device, dtype=x.dtype)
        return self.head(self.pooler(self.body(places)))


@planted("overflow", "pooler", "mul", fails=FP16, family="range")
def pooled_and_then_standardised() -> Built:
    """transformers#46277: Gemma 4's pooler multiplies by a root before it standardises."""
    train, test = data.digits()
    model = fitted(Vision, train, epochs=40)
    with torch.no_grad():
        for parameter in model.body[2].parameters():
            parameter.mul_(20000)
        model.pooler.scale.div_(20000)
    return built(model, test)
