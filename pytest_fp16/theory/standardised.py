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


def spread_allowed(n: int) -> float:
    """Largest root mean square of n standardised errors: granted · √(χ²_level(n)/n)."""
    return GRANTED_SPREAD * math.sqrt(float(chi2.ppf(LEVEL, n)) / n)


def mean_allowed(n: int) -> float:
    """Largest |mean| of n standardised errors: granted bias plus its sampling error."""
    return GRANTED_BIAS + GRANTED_SPREAD * float(norm.ppf(0.5 + LEVEL / 2)) / math.sqrt(n)


def spread(errors: NDArray[np.float64]) -> float:
    """Root mean square of the standardised errors."""
    return float(np.sqrt(np.mean(np.square(errors))))
