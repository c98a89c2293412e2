"""Held-out memory and state: scans in logarithms and in place, matrix memories, capacities, heads.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_tongues import decided, drawn

BF16 = ("bf16-true", "bf16-mixed")


def heinsen_associative_scan_log(log_coeffs: Tensor, log_values: Tensor) -> Tensor:
    """h = a h + b for positive a and b, by running sums in logarithms."""
    a_star = log_coeffs.cumsum(dim=1)
    log_h0_plus_b_star = (log_values - a_star).logcumsumexp(dim=1)
    return (a_star + log_h0_plus_b_star).exp()


class MinGRU(nn.Module):
    """A gate and a candidate, scanned in logarithms."""

    def __init__(self, dim: int, mended: bool) -> None:
        super().__init__()
        self.to_hidden_and_gate, self.mended = nn.Linear(dim, 2 * dim, bias=False), mended

    @staticmethod
    def log_g(x: Tensor) -> Tensor:
        return torch.where(x >= 0, (F.relu(x) + 0.5).log(), -F.softplus(-x))

    def forward(self, x: Tensor) -> Tensor:
        hidden, gate = self.to_hidden_and_gate(x).chunk(2, dim=-1)
        if self.mended:
            hidden, gate = hidden.float(), gate.float()
        log_coeffs, log_z = -F.softplus(gate), -F.softplus(-gate)
        out = heinsen_associative_scan_log(log_coeffs, log_z + self.log_g(hidden))
        return out.type_as(x)


class Minimal(nn.Module):
    """Words, such a layer, the last state."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(60, 24), MinGRU(24, mended)
        self.head = perceptron(24, 5)
        with torch.no_grad():
            self.rnn.to_hidden_and_gate.weight *= 1.5

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(ids))[:, -1])


def words(count: int = 256, length: int = 300) -> Tensor:
    """Long texts."""
    return torch.randint(0, 60, (count, length), generator=torch.Generator().manual_seed(8))


@planted(
    "cancellation", "rnn", "sub cumsum add logcumsumexp", fails=("bf16-true",),
    moot=("16-true",), also=("absorption", "precision-loss"), family="scans",
)  # fmt: skip
def scans_by_running_sums_of_logarithms() -> Built:
    """lucidrains/minGRU-pytorch: sums of -250 are known to one, and their exponentials to e."""
    return decided(lambda: Minimal(False), (words(),))


@healthy(precisions=("16-true", "16-mixed"))
def scans_by_running_sums_in_float32() -> Built:
    """minGRU-pytorch, with hidden and gate made float32 first."""
    return decided(lambda: Minimal(True), (words(),))


def parallel_stabilized_simple(
    queries: Tensor, keys: Tensor, values: Tensor, igate: Tensor, fgate: Tensor, eps: float = 1e-6
) -> Tensor:
    """xLSTM's matrix memory in parallel, as its package has it."""
    _, s, dh = queries.shape
    log_fgates = F.logsigmoid(fgate)
    ltr = torch.tril(torch.ones((s, s), dtype=torch.bool, device=queries.device))
    log_fgates_cumsum = torch.cat(
        [torch.zeros_like(log_fgates[:, :1]), torch.cumsum(log_fgates, dim=-2)], dim=-2
    )
    rep = log_fgates_cumsum.repeat(1, 1, s + 1)
    matrix = rep - rep.transpose(-2, -1)
    log_fg_matrix = torch.where(ltr, matrix[:, 1:, 1:], -float("inf"))
    log_d_matrix = log_fg_matrix + igate.transpose(-2, -1)
    max_log_d, _ = torch.max(log_d_matrix, dim=-1, keepdim=True)
    d_matrix = torch.exp(log_d_matrix - max_log_d)
    c_matrix = (queries @ (keys / math.sqrt(dh)).transpose(-2, -1)) * d_matrix
    normalizer = torch.maximum(c_matrix.sum(dim=-1, keepdim=True).abs(), torch.exp(-max_log_d))
    return (c_matrix / (normalizer + eps)) @ values


class MatrixLSTM(nn.Module):
    """Queries, keys, values and two gates."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.igate, self.fgate = (nn.Linear(dim, n) for n in (3 * dim, 1, 1))
        with torch.no_grad():
            self.fgate.bias.fill_(-1.5)
            self.fgate.weight *= 0.3
            self.igate.weight *= 4

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return parallel_stabilized_simple(q, k, v, self.igate(x), self.fgate(x))


class Extended(nn.Module):
    """Words and a matrix memory."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mlstm, self.head = nn.Embedding(60, 16), MatrixLSTM(16), perceptron(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(2 * self.mlstm(self.embed(ids))[:, -8:].mean(1))


@planted(
    "cancellation", "mlstm", "sub cumsum", fails=("bf16-true",), moot=("16-true", "bf16-mixed"),
    also=("absorption", "precision-loss"), family="scans", task="regression",
)  # fmt: skip
def forget_gates_by_differences_of_sums() -> Built:
    """xlstm: differences of running sums of logarithms near -500, which bfloat16 knows to two."""
    return taught(Extended, (words(96, 200),))


class PScan(torch.autograd.Function):
    """Blelloch's scan, written into views of its own operands, as mamba.py has it."""

    @staticmethod
    def up_down(a: Tensor, x: Tensor) -> None:
        n, length = x.shape[:2]
        levels = int(math.log2(length))
        aa, xa = a, x
        for _ in range(levels):
            t = xa.size(1)
            aa, xa = aa.view(n, t // 2, 2, -1), xa.view(n, t // 2, 2, -1)
            xa[:, :, 1].add_(aa[:, :, 1].mul(xa[:, :, 0]))
            aa[:, :, 1].mul_(aa[:, :, 0])
            aa, xa = aa[:, :, 1], xa[:, :, 1]
        for k in range(levels - 1, -1, -1):
            aa, xa = a[:, 2**k - 1 : length : 2**k], x[:, 2**k - 1 : length : 2**k]
            t = 2 * (xa.size(1) // 2)
            aa, xa = aa[:, :t].unflatten(1, (-1, 2)), xa[:, :t].unflatten(1, (-1, 2))
            xa[:, 1:, 0].add_(aa[:, 1:, 0].mul(xa[:, :-1, 1]))
            aa[:, 1:, 0].mul_(aa[:, :-1, 1])

    @staticmethod
    def forward(ctx, a_in: Tensor, x_in: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        a, x = a_in.clone(), x_in.clone()
        PScan.up_down(a, x)
        return x


class SSM(nn.Module):
    """A diagonal state space whose decays are near one."""

    def __init__(self, dim: int, states: int) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.log(0.004 * torch.arange(1, states + 1).float()))
        self.x_proj = nn.Linear(dim, states)
        self.dt = nn.Parameter(torch.zeros(states))

    def forward(self, u: Tensor) -> Tensor:
        delta = F.softplus(self.dt)
        a = torch.exp(delta * -torch.exp(self.A_log)).expand(*u.shape[:2], -1)
        return PScan.apply(a, delta * self.x_proj(u))


class Scanned(nn.Module):
    """A signal, a state space, what it holds at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.ssm, self.head = SSM(4, 8), perceptron(8, 5)

    def forward(self, u: Tensor) -> Tensor:
        return self.head(self.ssm(u)[:, -1] / 4)


@planted(
    "precision-loss", "ssm", "exp mul add _to_copy", fails=("bf16-true",), moot=("16-true",
    "bf16-mixed"), also=("absorption",), family="scans", task="regression",
)  # fmt: skip
def scans_in_place_of_decays_near_one() -> Built:
    """mamba.py: exp(-0.003) is one or 0.996 in bfloat16, five hundred times multiplied."""
    return taught(Scanned, (drawn(256, 512, 4, seed=16) + drawn(256, 1, 4, seed=11),))


def safe_one_hot(indices: Tensor, most: int) -> Tensor:
    """One-hot vectors, of what lies beyond them none."""
    return F.one_hot(indices.clamp(max=most), most + 1)[..., :-1]


class Top1Gating(nn.Module):
    """A router with a capacity: each expert takes its first tokens, at places counted by a sum."""

    def __init__(self, dim: int, experts: int, capacity: int) -> None:
        super().__init__()
        self.w_gating = nn.Parameter(0.3 * drawn(dim, experts, seed=17))
        self.experts, self.capacity = experts, capacity

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raw = torch.einsum("bnd,de->bne", x, self.w_gating).softmax(dim=-1)
        gate, index = raw.topk(k=1, dim=-1)
        mask = F.one_hot(index.squeeze(-1), self.experts).to(raw.dtype)
        position = (torch.cumsum(mask, dim=-2) - mask) * mask
        mask = mask * (position < float(self.capacity)).to(mask.dtype)
        place = position.sum(dim=-1)
        combine = (gate * mask)[..., None] * safe_one_hot(place.long(), self.capacity)[
            :, :, None, :
        ]
        return combine.bool().to(combine), combine


class Capacity(nn.Module):
    """Tokens sent to experts by place, and brought back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = Top1Gating(dim, 1, 400)
        self.w1 = nn.Parameter(drawn(1, dim, dim, seed=18) / 3)

    def forward(self, x: Tensor) -> Tensor:
        dispatch, combine = self.gate(x)
        inputs = torch.einsum("bnd,bnec->ebcd", x, dispatch)
        out = torch.tanh(torch.einsum("ebcd,edh->ebch", inputs, self.w1))
        return torch.einsum("ebcd,bnec->bnd", out, combine)


class Crowded(nn.Module):
    """Four hundred tokens, an expert, the mean of the last tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.moe, self.head = Capacity(8), perceptron(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(4 * self.moe(x)[:, -16:].mean(1))


@planted("absorption", "moe.gate", "cumsum", fails=("bf16-true",), moot=("bf16-mixed",),
         also=("precision-loss",), family="integers")  # fmt: skip
def places_of_tokens_counted_in_16_bits() -> Built:
    """lucidrains/mixture-of-experts: bfloat16 counts to 256, and later tokens share places."""
    return decided(Crowded, (drawn(24, 400, 8, seed=19),), 4)
