"""The standardised error (actual over predicted σ): limits for its spread and its mean.

If rounding errors were independent, of zero mean and uniform in ±ulp/2, the standardised errors of
n inputs would have root mean square 1 and mean 0. They are not quite: neighbouring pixels round
alike, repeated constants repeat their error. So the limits grant a model error, chosen once, before
the cases they are tested on (docs/explanation/tolerance.md): σ may be off by a factor of
`GRANTED_SPREAD`, the mean by `GRANTED_BIAS` σ; on top comes the sampling error at level `LEVEL`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, norm

#: A healthy prototype had spreads of 0.94 to 1.42 on eight (model, format) pairs.
GRANTED_SPREAD = 1.5
#: Sound kernels had means of 0.01 to 0.04, truncating ones −1.4 to −1.8.
GRANTED_BIAS = 0.5
LEVEL = 0.999
#: Errors of the 32-bit runs themselves, relative to the largest logit: below it nothing is claimed.
FLOAT32_NOISE = 2.0**-20


def spread_allowed(n: int) -> float:
    """Largest root mean square of n standardised errors: granted · √(χ²_level(n)/n)."""
    return GRANTED_SPREAD * math.sqrt(float(chi2.ppf(LEVEL, n)) / n)


def mean_allowed(n: int) -> float:
    """Largest |mean| of n standardised errors: granted bias plus its sampling error."""
    return GRANTED_BIAS + GRANTED_SPREAD * float(norm.ppf(0.5 + LEVEL / 2)) / math.sqrt(n)


class ErrorTotals:
    """Running totals of standardised errors; a histogram stands in for them for the median.

    Attributes:
        count: errors added.
        inputs: in how many inputs they were taken. The decisions of one input share its errors, so
            this is the number that limits follow from.
        exceeded: how many were beyond the first-order worst-case bound.
    """

    _WIDTH = 1 / 64
    _BINS = 1024

    def __init__(self) -> None:
        self.count = 0
        self.inputs = 0
        self.exceeded = 0
        self.total = 0.0
        self.squares = 0.0
        self.histogram = np.zeros(self._BINS + 1, np.int64)

    def add(self, errors: NDArray[np.float64], exceeded: int, inputs: int) -> None:
        """Add standardised errors, how many exceed their bound, and in how many inputs."""
        self.count += len(errors)
        self.inputs += inputs
        self.exceeded += exceeded
        self.total += float(errors.sum())
        self.squares += float(np.square(errors).sum())
        bins = np.minimum(np.abs(errors) / self._WIDTH, self._BINS).astype(np.int64)
        self.histogram += np.bincount(bins, minlength=self._BINS + 1)

    @property
    def mean(self) -> float:
        """Mean of the errors."""
        return self.total / self.count

    @property
    def spread(self) -> float:
        """Their root mean square."""
        return math.sqrt(self.squares / self.count)

    @property
    def median_abs(self) -> float:
        """Median magnitude, to within 1/64; 0.6745 for a standard normal variable."""
        half = np.searchsorted(np.cumsum(self.histogram), self.count / 2)
        return float(half + 0.5) * self._WIDTH
