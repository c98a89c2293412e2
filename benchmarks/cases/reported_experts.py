"""A held-out language model of experts in groups, chosen by scores and a bias beside them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import Built, built, fitted, healthy


class Rotary(nn.Module):
    """Cosines and sines of the positions, in float32."""

    def __init__(self, dim: int, length: int = 24) -> None:
        super().__init__()
        rate = 10000.0 ** -(torch.arange(0, dim, 2).float() / dim)
        angle = torch.arange(length).float()[:, None] * rate
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.float().chunk(2, -1)
        cos, sin = self.cos.float(), self.sin.float()
        return torch.cat([first * cos - second * sin, first * sin + second * cos], -1).type_as(x)


class LatentAttention(nn.Module):
    """Keys and values from one small latent; positions in a part of their own."""

    def __init__(self, dim: int, heads: int = 4, latent: int = 16, turned: int = 8) -> None:
        super().__init__()
        self.heads, self.size, self.turned = heads, dim // heads, turned
        self.q = nn.Linear(dim, heads * (self.size + turned), bias=False)
        self.down = nn.Linear(dim, latent + turned, bias=False)
        self.norm, self.up = (
            nn.RMSNorm(latent),
            nn.Linear(latent, heads * 2 * self.size, bias=False),
        )
        self.rotary, self.out = Rotary(turned), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, t, d = x.shape
        q = self.q(x).view(n, t, self.heads, -1).transpose(1, 2)
        q, q_turned = q.split([self.size, self.turned], -1)
        latent, k_turned = self.down(x).split([self.up.in_features, self.turned], -1)
        kv = self.up(self.norm(latent)).view(n, t, self.heads, -1).transpose(1, 2)
        k, v = kv.chunk(2, -1)
        k_turned = self.rotary(k_turned[:, None]).expand(-1, self.heads, -1, -1)
        q = torch.cat([q, self.rotary(q_turned)], -1)
        k = torch.cat([k, k_turned], -1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        return self.out(y.transpose(1, 2).reshape(n, t, d))


class Gate(nn.Module):
    """Two groups of four, two experts of sixteen: by sigmoid plus bias, weighed without it."""

    def __init__(self, dim: int, experts: int = 16, groups: int = 4, chosen: int = 2) -> None:
        super().__init__()
        self.experts, self.groups, self.chosen = experts, groups, chosen
        self.weight = nn.Parameter(torch.randn(experts, dim) * dim**-0.5)
        self.register_buffer("e_score_correction_bias", torch.full((experts,), 6.94))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.linear(x.float(), self.weight.float()).sigmoid()
        judged = self.judged(scores)
        grouped = judged.view(-1, self.groups, self.experts // self.groups)
        best = grouped.topk(2, dim=-1)[0].sum(-1).topk(2, dim=-1)[1]
        kept = torch.zeros_like(grouped[..., 0]).scatter_(1, best, 1)
        kept = kept[..., None].expand_as(grouped).reshape(-1, self.experts)
        which = judged.masked_fill(~kept.bool(), float("-inf")).topk(self.chosen, sorted=False)[1]
        weight = scores.gather(1, which)
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20) * 2.5
        if self.training:
            load = torch.bincount(which.flatten(), minlength=self.experts).float()
            self.e_score_correction_bias += 0.002 * (load.mean() - load).sign()
        return which, weight.type_as(x)

    def judged(self, scores: Tensor) -> Tensor:
        return scores + self.e_score_correction_bias


class Experts(nn.Module):
    """Gated perceptrons that see the tokens sent to them, and one that sees all."""

    def __init__(self, dim: int, gate: type[Gate]) -> None:
        super().__init__()
        self.gate = gate(dim)
        self.experts = nn.ModuleList(Perceptron(dim, 16) for _ in range(self.gate.experts))
        self.shared = Perceptron(dim, 16)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        which, weight = self.gate(flat)
        out = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            token, place = torch.where(which == index)
            said = expert(flat[token]) * weight[token, place, None]
            out.index_add_(0, token, said.to(out.dtype))
        return out.view_as(x) + self.shared(x)


class Perceptron(nn.Module):
    """SwiGLU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """Attention and a perceptron, dense or of experts."""

    def __init__(self, dim: int, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention = nn.RMSNorm(dim), LatentAttention(dim)
        self.norm2, self.mlp = nn.RMSNorm(dim), mlp

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class DeepExperts(nn.Module):
    """A dense layer, a layer of experts, a label for every word."""

    def __init__(self, gate: type[Gate], dim: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(1200, dim).requires_grad_(False)
        self.layers = nn.ModuleList(
            [Layer(dim, Perceptron(dim, 64)), Layer(dim, Experts(dim, gate))]
        )
        self.norm, self.head = nn.RMSNorm(dim), nn.Linear(dim, 7)

    def forward(self, ids: Tensor) -> Tensor:
        x, mask = self.embed(ids), ids != 0
        mask = mask | (~mask.any(1, keepdim=True))
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(self.norm(x))


def words(out: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the words, padding left out."""
    return F.cross_entropy(out.flatten(0, 1), labels.flatten(), ignore_index=-100)


def experts(gate: type[Gate]) -> Built:
    """Each word's own number modulo seven: what a router can send away by the word."""
    (ids, _), (test, _) = data.text_split()
    label = lambda t: torch.where(t != 0, t % 7, -100)  # noqa: E731
    train = (ids, label(ids))
    model = fitted(lambda: DeepExperts(gate), train, loss=words, epochs=14, rate=1e-2)
    return built(model, (test[:300], label(test[:300])))


@healthy()
def biases_beside_seven() -> Built:
    """sglang#31213: bfloat16 keeps eight biases of a band near seven; words remain."""
    return experts(Gate)
