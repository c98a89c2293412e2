"""Labelled cases: models that are healthy in 16 bits, and models planted to fail."""

from benchmarks.cases.base import ALL, HEALTHY, HELD_OUT, PLANTED, Healthy, Planted, load

__all__ = ["ALL", "HEALTHY", "HELD_OUT", "PLANTED", "Healthy", "Planted", "load"]
