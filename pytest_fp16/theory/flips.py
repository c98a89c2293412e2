"""How many predictions may flip: a Poisson-binomial distribution of Φ(−(g+b)/σ).

The flips of different inputs are independent, each with its own small probability; the
distribution of their number is the convolution of Bernoulli distributions (Hong, 2013,
doi:10.1016/j.csda.2012.10.006), built here by divide and conquer with FFT convolutions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from scipy.stats import norm, poisson

Array = NDArray[np.float64]

#: The share of healthy models that keep within the flips allowed, before the granted model error.
LEVEL = 0.999
_NEGLIGIBLE = 1e-9


def flip_probability(margin: Array, sigma: Array) -> Array:
    """Φ(−margin/σ) per decision; with σ = 0, one where the margin is negative, a half where zero.

    Where σ or the margin is not finite the probability is one: nothing can be promised.
    """
    margin, sigma = np.asarray(margin, np.float64), np.asarray(sigma, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = norm.cdf(-margin / sigma)
    exact = sigma == 0
    p = np.where(exact, np.where(margin < 0, 1.0, np.where(margin == 0, 0.5, 0.0)), p)
    unbounded = np.isposinf(margin) & np.isfinite(sigma)
    p = np.where(unbounded, 0.0, p)
    return np.where(np.isnan(margin) | np.isnan(sigma) | np.isinf(sigma), 1.0, p)


def distribution(p: Array) -> Array:
    """Probability of 0, 1, 2, … flips given each decision's probability.

    Probabilities below 1e-9 are pooled into one Poisson variable (Le Cam's theorem bounds its
    total-variation error by the sum of their squares).
    """
    p = np.asarray(p, np.float64).ravel()
    small = p < _NEGLIGIBLE
    rate = float(p[small].sum())
    pmf = _convolve_all(p[~small])
    if rate > 0:
        tail = poisson.pmf(np.arange(int(poisson.ppf(1 - 1e-12, rate)) + 2), rate)
        pmf = np.convolve(pmf, tail)
    found: Array = pmf / pmf.sum()
    return found


def _convolve_all(p: Array) -> Array:
    if len(p) <= 64:
        pmf = np.ones(1)
        for q in p:
            pmf = np.convolve(pmf, (1 - q, q))
        return pmf
    half = len(p) // 2
    found: Array = np.clip(fftconvolve(_convolve_all(p[:half]), _convolve_all(p[half:])), 0, None)
    return found


class FlipCount:
    """The distribution of the number of flips, fed batch by batch.

    Each batch's distribution is convolved with what came before; tails that no quantile reaches
    are dropped, so its size does not grow with the number of inputs.
    """

    _TAIL = 1e-15

    def __init__(self) -> None:
        self.pmf = np.ones(1)
        self.offset = 0

    def add(self, p: Array) -> None:
        """Add decisions with these probabilities to flip."""
        if not np.size(p):
            return
        pmf = distribution(p)
        long = min(len(pmf), len(self.pmf)) > 64
        pmf = np.clip(fftconvolve(self.pmf, pmf), 0, None) if long else np.convolve(self.pmf, pmf)
        kept = np.flatnonzero(pmf > self._TAIL)
        self.pmf = pmf[kept[0] : kept[-1] + 1] / pmf[kept[0] : kept[-1] + 1].sum()
        self.offset += int(kept[0])

    def allowed(self, level: float = LEVEL) -> int:
        """The smallest k with P(flips ≤ k) ≥ `level`."""
        return self.offset + int(np.searchsorted(np.cumsum(self.pmf), level - 1e-12))
