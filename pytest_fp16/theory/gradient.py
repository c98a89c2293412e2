"""Rounding noise of a gradient beside the mini-batch noise that training lives with anyway.

With g the 32-bit gradient of one batch, V the trace of its covariance over batches and e the
error of the 16-bit gradient of the same batch, ρ = ‖e‖²/V. Stochastic gradient descent at batch
size B sees noise V = S/B, so rounding that adds ρV is harmless while ρ is small: it acts like a
batch smaller by the factor 1/(1+ρ). Errors of rounding are proportional to u‖g‖, so ρ grows with
u² and with B, and no fixed threshold on ρ alone is right for large batches: an error within
(16u)²‖g‖² is granted whatever V is.

Thresholds were chosen before the cases they are tested on (docs/explanation/gradient-check.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor

#: Largest share of the batch noise that rounding may add, over all parameters together.
RHO_TOTAL = 0.5
#: The same for one parameter tensor: the worst of many needs more room.
RHO_TENSOR = 2.0
#: Relative error, in units of roundoff, that is granted however small the batch noise is.
GRANTED = 16.0
#: A gradient whose projection on the true one leaves this range is biased.
GAIN_TOTAL = (0.5, 2.0)
#: A tensor that keeps less than this share of its gradient no longer learns.
GAIN_TENSOR = 0.25
#: A tensor whose 32-bit gradient moves by a tenth (of its squared size by this share) when weights
#: change in their last bits is zero but for rounding (a bias before a normalisation).
MEANINGLESS = 0.01
#: Growth is even where its second half differs from its first by no more than this share.
EVENLY = 0.25


@dataclass(frozen=True)
class Noise:
    """What 16 bits did to the gradient of one tensor, or of all together.

    Attributes:
        rho: mean ‖e‖² over the batches tried, divided by the variance over batches.
        allowed: the largest harmless rho, with the granted relative error.
        bias: ‖mean of e‖² in units of the variance, less what its spread explains (at least 0).
        gain: projection of the 16-bit gradient on the 32-bit one; 1 is perfect.
        relative: ‖e‖/‖g‖.
        zeroed: share of non-zero entries that became zero.
        zeroed_norm: share of ‖g‖² in those entries.
    """

    rho: float
    allowed: float
    bias: float
    gain: float
    relative: float
    zeroed: float
    zeroed_norm: float

    @property
    def excess(self) -> float:
        """rho over what is allowed; above 1 is too much."""
        return self.rho / self.allowed if self.allowed else (math.inf if self.rho else 0.0)


def batch_variance(gradients: Sequence[Tensor]) -> float:
    """Trace of the covariance of a gradient over batches (unbiased), from at least two."""
    stack = torch.stack([g.detach().double().flatten() for g in gradients])
    return float((stack - stack.mean(0)).square().sum() / (len(stack) - 1))


@dataclass(frozen=True)
class Sums:
    """What `noise` needs of one tensor over all batches tried; tensors add up.

    Attributes:
        count: batches tried.
        size: Σ‖g‖².
        error: Σ‖e‖².
        mean_error: ‖mean of e‖².
        spread: Σ‖e − mean of e‖².
        dot: Σ⟨c, g⟩ with c the 16-bit gradient.
        nonzero, zeroed: entries of g that are not zero, and those of them that are in c.
        zeroed_size: Σ‖g‖² over the latter.
        finite: whether every c is.
    """

    count: int
    size: float = 0.0
    error: float = 0.0
    mean_error: float = 0.0
    spread: float = 0.0
    dot: float = 0.0
    nonzero: int = 0
    zeroed: int = 0
    zeroed_size: float = 0.0
    finite: bool = True

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.count,
            self.size + other.size,
            self.error + other.error,
            self.mean_error + other.mean_error,
            self.spread + other.spread,
            self.dot + other.dot,
            self.nonzero + other.nonzero,
            self.zeroed + other.zeroed,
            self.zeroed_size + other.zeroed_size,
            self.finite and other.finite,
        )


def sums(reference: Sequence[Tensor], candidate: Sequence[Tensor]) -> Sums:
    """The sums over one tensor's gradients: one pair per batch, of the same shape."""
    r = torch.stack([g.detach().double().flatten() for g in reference])
    c = torch.stack([g.detach().double().flatten() for g in candidate])
    if not bool(c.isfinite().all()):
        return Sums(len(r), size=float(r.square().sum()), finite=False)
    e = c - r
    mean = e.mean(0)
    lost = (c == 0) & (r != 0)
    return Sums(
        len(r),
        float(r.square().sum()),
        float(e.square().sum()),
        float(mean.square().sum()),
        float((e - mean).square().sum()),
        float((c * r).sum()),
        int((r != 0).sum()),
        int(lost.sum()),
        float(r[lost].square().sum()),
    )


def noise(of: Sums, variance: float, unit_roundoff: float, share: float = RHO_TENSOR) -> Noise:
    """Hold the error of gradients against their variance over batches.

    Args:
        of: the sums of one tensor, or of many added up.
        variance: of the reference over batches (`batch_variance`).
        unit_roundoff: of the candidate's format.
        share: largest part of the variance that rounding may add.
    """
    if not of.finite:
        return Noise(math.inf, share, math.inf, math.nan, math.inf, 0.0, 0.0)
    error, n = of.error / of.count, of.count
    # The mean of n errors keeps a n-th of their variance even where they are unbiased.
    bias = max(of.mean_error - of.spread / (n * (n - 1)), 0.0) if n > 1 else 0.0
    floor = (GRANTED * unit_roundoff) ** 2 * of.size / n
    scale = variance or (floor or 1.0)
    return Noise(
        rho=error / scale,
        allowed=share + floor / scale,
        bias=bias / scale,
        gain=of.dot / of.size if of.size else 1.0,
        relative=math.sqrt(of.error / of.size) if of.size else 0.0,
        zeroed=of.zeroed / max(of.nonzero, 1),
        zeroed_norm=of.zeroed_size / of.size if of.size else 0.0,
    )


def meaningless(gradient: Tensor, nudged: Tensor) -> bool:
    """Whether a 32-bit gradient is zero but for rounding.

    Args:
        gradient: the gradient.
        nudged: the same with the weights changed in their last bits.
    """
    change = float((nudged - gradient).double().square().sum())
    return change >= MEANINGLESS * float(gradient.double().square().sum())


def best_loss_scale(gradients: Sequence[Tensor], smallest: float, largest: float) -> float:
    """The power of two that lifts gradients out of underflow without overflow.

    Half of the range above the largest gradient is left for what was not seen.

    Args:
        gradients: 32-bit gradients.
        smallest, largest: the format's smallest normal and largest finite number.
    """
    sizes = torch.cat([g.detach().abs().flatten() for g in gradients])
    sizes = sizes[(sizes > 0) & sizes.isfinite()]
    if not len(sizes):
        return 1.0
    low = float(sizes.quantile(0.01)) if len(sizes) < 2**20 else float(sizes.min())
    wanted = math.log2(smallest / low) if low < smallest else 0.0
    room = math.log2(math.sqrt(largest) / float(sizes.max()))
    return float(2.0 ** max(math.floor(min(math.ceil(wanted), room)), 0))


@dataclass(frozen=True)
class Movement:
    """How far the candidate went along the reference's way.

    Attributes:
        gain: projection of the candidate's displacement on the reference's.
        size: length of the candidate's displacement over the reference's.
        length: length of the reference's displacement.
    """

    gain: float
    size: float
    length: float

    @property
    def distance(self) -> float:
        """Length of the difference of the displacements over the reference's."""
        return math.sqrt(max(self.size**2 - 2 * self.gain + 1, 0.0))


def movement(reference: Tensor, candidate: Tensor) -> Movement:
    """Compare two displacements from the same start; NaN where the candidate is not finite."""
    r, c = reference.double().flatten(), candidate.double().flatten()
    length = float(r.norm())
    if not length:
        return Movement(1.0, 1.0 if not float(c.norm()) else math.inf, 0.0)
    return Movement(float(r @ c) / length**2, float(c.norm()) / length, length)


def learns_slowly(
    start: Sequence[float],
    half: Sequence[float] | None,
    end: Sequence[float],
    candidate: Sequence[float],
) -> bool:
    """Whether a candidate learns at less than half the speed of the reference.

    It does where its loss is above the one that the reference had after half as many steps, and
    where it has made less than half of the reference's progress; both beyond what the batches
    scatter (twice the standard error of the mean difference).

    Args:
        start, half, end: the reference's losses of the same batches before, after half of the
            steps (None if unknown) and after all.
        candidate: its losses after all steps.
    """
    if not learnt(start, end):
        return False  # the reference itself has learnt nothing to speak of
    progress, lost = fmean(start) - fmean(end), fmean(candidate) - fmean(end)
    if lost > progress / 2 and _above(candidate, end):
        return True
    return half is not None and _above(half, end) and _above(candidate, half)


def learnt(start: Sequence[float], end: Sequence[float]) -> bool:
    """Whether losses of the same batches have fallen, beyond what the batches scatter."""
    return _above(start, end)


def _above(larger: Sequence[float], smaller: Sequence[float]) -> bool:
    """Whether paired losses differ by more than twice the standard error of their mean."""
    differences = [a - b for a, b in zip(larger, smaller, strict=True)]
    spread = stdev(differences) if len(differences) > 1 else 0.0
    return fmean(differences) > 2 * spread / math.sqrt(len(differences))


def extrapolated(first: Tensor, second: Tensor, blocks: float) -> float:
    """Length of a displacement that goes on as it began, by a geometric series.

    Args:
        first, second: displacements over two equally long blocks of steps.
        blocks: how many such blocks there will be.
    """
    a, b = first.double().flatten(), second.double().flatten()
    size = float(a.square().sum())
    if not size:
        return float(b.norm()) * blocks
    ratio = min(max(float(a @ b) / size, 0.0), 1.0)
    reached = blocks if ratio > 1 - 1e-9 else (1 - ratio**blocks) / (1 - ratio)
    return math.sqrt(size) * reached


def reached_at_the_end(begin: Tensor, middle: Tensor, end: Tensor, blocks: float) -> float | None:
    """The largest magnitude of what grows evenly, once it has gone on so; None where it does not.

    Args:
        begin, middle, end: before, between and after two equally long blocks of steps.
        blocks: how many such blocks the whole training has.
    """
    first, second = (middle - begin).double(), (end - middle).double()
    if not bool(first.any()) or float((second - first).norm()) > EVENLY * float(first.norm()):
        return None
    return float((begin.double() + (first + second) / 2 * blocks).abs().max())
