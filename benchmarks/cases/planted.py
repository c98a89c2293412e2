"""Every planted failure: importing this fills the register.

Each is a model trained in float32 in which the defect does no harm, as in the public threads these
are modelled on; nothing is planted by editing results.
"""

from benchmarks.cases import planted_other, planted_precision, planted_range

__all__ = ["planted_other", "planted_precision", "planted_range"]
