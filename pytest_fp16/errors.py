"""The mistakes a user can make, each with a sentence that says what to do.

Only misuse raises. A model that breaks in 16 bits is a verdict, never an exception.
"""

from __future__ import annotations


class FP16Error(Exception):
    """Base of every error this package raises on purpose."""


class SettingError(FP16Error, ValueError):
    """A setting (option, ini key, argument) has a value that cannot be used."""


class PrecisionError(SettingError):
    """An unknown, or an ambiguous, name of a precision."""


class DeviceError(SettingError):
    """The device asked for is not there."""


class DataError(FP16Error, ValueError):
    """The data cannot be evaluated: empty, single-use, wrong labels."""


class ModelError(FP16Error, ValueError):
    """The model cannot serve as a 32-bit reference: 16-bit already, uncopyable, no logits, NaN."""


class TorchError(FP16Error, RuntimeError):
    """The torch that is installed lacks something a run needs."""
