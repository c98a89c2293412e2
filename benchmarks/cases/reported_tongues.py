"""Held-out language: fake keys, sparse attention, copying, the bias of experts.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import FP16, TRUE, Built, built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron

BF16 = ("bf16-true", "bf16-mixed")


def decided(make: Callable[[], nn.Module], inputs: tuple[Tensor, ...], size: int = 128) -> Built:
    """A random model, and the classes it tells by itself of the inputs that it is surest of."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = make().eval()
        said = model(*inputs)
    two = said.topk(2).values
    sure = (two[:, 0] - two[:, 1]).argsort(descending=True)[: 3 * len(said) // 4].sort().values
    return built(model, (*(x[sure] for x in inputs), said.argmax(1)[sure]), size)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def search_hyperplane(x: Tensor, most: int = 100, mended: bool = False) -> Tensor:
    """A key that every query of x turns away from: a hyperplane with all of them on one side."""
    y = x.mean(1)
    for _ in range(most):
        wrong = torch.bmm(x, y.unsqueeze(-1)) <= 0
        if not wrong.any():
            if mended:
                wide = y.float()
                key = -1e5 * wide / wide.norm(dim=-1, keepdim=True) ** 2
                largest = 0.9 * torch.finfo(x.dtype).max / key.abs().amax(-1, keepdim=True)
                return (key * largest.clamp(max=1.0)).to(x.dtype)
            return -1e5 * y / y.norm(dim=-1, keepdim=True) ** 2
        y = y + (x * wrong).sum(1) / wrong.sum(1).clamp(min=1)
    raise ValueError("no hyperplane")


class Pressed(nn.Module):
    """Attention whose cache was compressed: keys that a head dropped are replaced by fake ones."""

    def __init__(self, dim: int, heads: int, mended: bool) -> None:
        super().__init__()
        self.heads, self.mended = heads, mended
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(dim, dim) for _ in range(4)
        )  # fmt: skip
        with torch.no_grad():
            self.q_proj.bias += 1.0
        self.masked_key_indices: tuple[Tensor, ...] | None = None

    def compress(self, keys: Tensor) -> None:
        """Each head drops the four keys of the smallest norm."""
        lost = keys.norm(dim=-1).topk(4, -1, largest=False).indices
        batch, head, _ = (torch.arange(n, device=keys.device) for n in lost.shape)
        self.masked_key_indices = (
            batch[:, None, None].expand_as(lost),
            head[None, :, None].expand_as(lost),
            lost,
        )

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (
            layer(x).view(shape).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        self.compress(k)
        fake = search_hyperplane(q.flatten(0, 1), mended=self.mended)
        fake = fake.view(q.shape[0], self.heads, -1)
        batch, head, index = self.masked_key_indices
        k[batch, head, index] = fake[batch, head]
        out = F.scaled_dot_product_attention(q, k, v)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class Served(nn.Module):
    """A layer of such attention between an embedding and a head."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.embed, self.attention = nn.Embedding(60, 32), Pressed(32, 4, mended)
        self.head = nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head((x + self.attention(x)).mean(1) * 8)


def texts(count: int = 384, length: int = 20, vocabulary: int = 60) -> Tensor:
    """Random words."""
    return torch.randint(0, vocabulary, (count, length), generator=torch.Generator().manual_seed(1))


@planted(
    "overflow",
    "attention",
    "mul div",
    fails=("16-true",),
    moot=("16-mixed", *BF16),
    family="attention",
)
def fake_keys_of_a_compressed_cache() -> Built:
    """kvpress#268: -1e5 times a direction leaves float16 before it is divided, in a helper."""
    return decided(lambda: Served(False), (texts(),))


@healthy(precisions=FP16)
def fake_keys_within_the_format() -> Built:
    """kvpress#268, as it was mended."""
    return decided(lambda: Served(True), (texts(),))


class EntmaxBisectFunction(torch.autograd.Function):
    """Entmax by bisection, as the package has it."""

    @staticmethod
    def _gp(x: Tensor, alpha: float) -> Tensor:
        return x ** (alpha - 1)

    @staticmethod
    def _p(x: Tensor, alpha: float) -> Tensor:
        return torch.clamp(x, min=0) ** (1 / (alpha - 1))

    @classmethod
    def forward(cls, ctx, x: Tensor, alpha: float, mended: bool, steps: int = 30) -> Tensor:  # type: ignore[no-untyped-def,override]
        dim, d = -1, x.shape[-1]
        if mended:
            x = x - x.max(dim=dim, keepdim=True).values
        x = x * (alpha - 1)
        max_val, _ = x.max(dim=dim, keepdim=True)
        tau_lo = max_val - cls._gp(torch.ones_like(max_val), alpha)
        tau_hi = max_val - cls._gp(torch.full_like(max_val, 1 / d), alpha)
        f_lo = cls._p(x - tau_lo, alpha).sum(dim) - 1
        dm = tau_hi - tau_lo
        for _ in range(steps):
            dm = dm / 2
            tau_m = tau_lo + dm
            p_m = cls._p(x - tau_m, alpha)
            f_m = p_m.sum(dim) - 1
            mask = (f_m * f_lo >= 0).unsqueeze(dim)
            tau_lo = torch.where(mask, tau_m, tau_lo)
        p_m = p_m / p_m.sum(dim=dim).unsqueeze(dim=dim)
        ctx.alpha = alpha
        return p_m


def entmax_bisect(x: Tensor, alpha: float = 1.5, mended: bool = False) -> Tensor:
    """The function users call."""
    return EntmaxBisectFunction.apply(x, alpha, mended)


class SparseAttention(nn.Module):
    """Scores far below zero, of which entmax makes weights."""

    def __init__(self, dim: int, mended: bool) -> None:
        super().__init__()
        self.query, self.mended = nn.Linear(dim, 1), mended
        with torch.no_grad():
            self.query.weight *= 12
            self.query.bias.fill_(-1600.0)

    def forward(self, x: Tensor) -> Tensor:
        weights = entmax_bisect(self.query(x).squeeze(-1), mended=self.mended)
        return (weights.unsqueeze(-1).to(x.dtype) * x).sum(1)


class Sparse(nn.Module):
    """Words, sparse attention over them, a head."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.embed, self.pool = nn.Embedding(60, 32), SparseAttention(32, mended)
        self.body = perceptron(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.body(self.pool(self.embed(ids)) * 3)


@planted(
    "absorption", "pool", "sub addmm mul", fails=("bf16-true",),
    moot=(*FP16, "bf16-mixed"), also=("precision-loss", "cancellation"), family="attention",
)  # fmt: skip
def entmax_of_scores_far_below_zero() -> Built:
    """entmax#30: largest minus one is the largest itself, all is zero, and 0 / 0 follows."""
    return decided(lambda: Sparse(False), (texts(),))


class Pointer(nn.Module):
    """A pointer-generator: words of the vocabulary, and those of the source beyond it."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.embed, self.score = nn.Embedding(60, 32), nn.Linear(32, 1)
        self.generate, self.vocabulary = nn.Linear(32, 1), nn.Linear(32, 20)
        self.mended = mended

    def final_dist(self, vocab: Tensor, attn: Tensor, p_gen: Tensor, ids: Tensor) -> Tensor:
        """Both distributions in one."""
        vocab, attn = p_gen * vocab, (1 - p_gen) * attn
        dtype = vocab.dtype if self.mended else torch.float32
        extra = torch.zeros(len(ids), 40, device=ids.device, dtype=dtype)
        extended = torch.cat([vocab, extra], dim=1)
        return extended.scatter_add(1, ids, attn)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        attn = torch.softmax(3 * self.score(x).squeeze(-1), dim=1)
        context = (attn.unsqueeze(-1) * x).sum(1)
        p_gen = torch.sigmoid(self.generate(context))
        vocab = torch.softmax(self.vocabulary(context), dim=1)
        return self.final_dist(vocab, attn, p_gen, ids)


@planted("unsupported-op", "", "scatter_add", fails=TRUE, family="types")
def pointers_beyond_the_vocabulary() -> Built:
    """pointer-generators: zeros of the default type make float32 of what 16 bits are added to."""
    return decided(lambda: Pointer(False), (texts(),))


class Gate(nn.Module):
    """A router whose experts are chosen with a bias, and weighted without it."""

    def __init__(self, dim: int, experts: int, centred: bool) -> None:
        super().__init__()
        self.top_k = 2
        self.weight = nn.Parameter(drawn(experts, dim, seed=3) * 0.5)
        bias = 34.5 * (not centred) + 0.14 * drawn(experts, seed=4)
        self.register_buffer("e_score_correction_bias", bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(x.type(torch.float32), self.weight.type(torch.float32))
        scores = logits.sigmoid()
        choice = scores + self.e_score_correction_bias.unsqueeze(0)
        index = torch.topk(choice, k=self.top_k, dim=-1, sorted=False)[1]
        weight = scores.gather(1, index)
        return index, weight / (weight.sum(-1, keepdim=True) + 1e-20) * 2.5


class Experts(nn.Module):
    """Experts, each of which is handed its own rows."""

    def __init__(self, dim: int, experts: int, centred: bool) -> None:
        super().__init__()
        self.gate = Gate(dim, experts, centred)
        self.experts = nn.ModuleList(perceptron(dim, dim, 16) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        index, weight = self.gate(x)
        out = torch.zeros(x.shape, dtype=weight.dtype, device=x.device)
        for i, expert in enumerate(self.experts):
            row, place = torch.where(index == i)
            if row.numel() > 0:
                said = expert(x[row]) * weight[row, place, None]
                out.index_add_(0, row, said.to(out.dtype))
        return out.type(x.dtype)


class Routed(nn.Module):
    """A word vector, experts, and a head."""

    def __init__(self, centred: bool) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(32), Experts(32, 8, centred)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mlp(self.norm(x)) * 12)


@planted(
    "precision-loss", "mlp.gate", "add", fails=("bf16-true",), moot=("16-true", "bf16-mixed"),
    also=("absorption", "cancellation"), family="stored",
)  # fmt: skip
def biases_of_experts_far_from_zero() -> Built:
    """tt-metal#47914, GLM: spreads of 0.1 around 34.5 are stored by quarters."""
    return decided(lambda: Routed(False), (drawn(384, 32),))


@healthy(precisions=("16-true", "16-mixed"))
def biases_of_experts_less_their_mean() -> Built:
    """tt-metal#47914: what all experts have in common chooses none."""
    return decided(lambda: Routed(True), (drawn(384, 32),))
