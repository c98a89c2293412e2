"""Window functions and frequencies, which ATen composes in the dtype that is asked for.

A window of cosines begins with whole numbers in that dtype, and multiplies, takes cosines and adds
there (``TensorFactories.cpp``), on every device: of 1,024 points in bfloat16 many share a number.
A Kaiser window is one kernel of such numbers. Frequencies of a Fourier transform are made so, too
(``SpectralOps.cpp``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

#: Runs one operation of the program.
Step = Callable[..., Any]

_aten: Any = torch.ops.aten


def _window(shape: Callable[..., Any]) -> Callable[..., Any]:
    """A window from how its values come from whole numbers: periodic, it is one longer and cut."""

    def made(step: Step, count: int, periodic: bool = True, *more: float, **like: Any) -> Any:
        if count <= 1:
            return step(_aten.ones.default, [count], **like)
        size = count + bool(periodic)
        window = shape(step, step(_aten.arange.default, size, **like), size, *more)
        return step(_aten.slice.Tensor, window, 0, 0, count) if periodic else window

    return made


def _cosine(step: Step, places: Any, factor: float, weight: float) -> Any:
    angle = step(_aten.mul.Tensor, places, factor)
    return step(_aten.mul.Tensor, step(_aten.cos.default, angle), weight)


def _hamming(step: Step, x: Any, size: int, alpha: float = 0.54, beta: float = 0.46) -> Any:
    return step(_aten.add.Tensor, _cosine(step, x, 2 * math.pi / (size - 1), -beta), alpha)


def _hann(step: Step, x: Any, size: int) -> Any:
    return _hamming(step, x, size, 0.5, 0.5)


def _blackman(step: Step, x: Any, size: int) -> Any:
    angle = step(_aten.mul.Tensor, x, math.pi / (size - 1))
    part = step(_aten.sub.Tensor, _cosine(step, angle, 4, 0.08), _cosine(step, angle, 2, 0.5))
    return step(_aten.add.Tensor, part, 0.42)


def _bartlett(step: Step, x: Any, size: int) -> Any:
    half = ((size - 1) >> 1) + 1
    rising = step(_aten.mul.Tensor, x, 2 / (size - 1))
    falling = step(_aten.slice.Tensor, rising, 0, half, size)
    falling = step(_aten.add.Tensor, step(_aten.mul.Tensor, falling, -1), 2)
    return step(_aten.cat.default, [step(_aten.slice.Tensor, rising, 0, 0, half), falling])


def _kaiser(step: Step, x: Any, size: int, beta: float = 12.0) -> Any:
    wide = step(_aten._to_copy.default, x, dtype=torch.float32)
    place = step(_aten.sub.Tensor, step(_aten.mul.Tensor, wide, 2 / (size - 1)), 1)
    inside = step(_aten.rsub.Scalar, step(_aten.mul.Tensor, place, place), 1)
    root = step(_aten.sqrt.default, step(_aten.clamp_min.default, inside, 0))
    value = step(_aten.special_i0.default, step(_aten.mul.Tensor, root, beta))
    most = float(torch.special.i0(torch.tensor(beta, dtype=torch.float64)))
    return step(_aten._to_copy.default, step(_aten.div.Tensor, value, most), dtype=x.dtype)


def _frequencies(step: Step, n: int, d: float = 1.0, **like: Any) -> Any:
    places = step(_aten.arange.default, n, **like)
    half = (n + 1) // 2
    below = step(_aten.sub.Tensor, step(_aten.slice.Tensor, places, 0, half, n), n)
    both = step(_aten.cat.default, [step(_aten.slice.Tensor, places, 0, 0, half), below])
    return step(_aten.mul.Tensor, both, 1 / (n * d))


def _half_frequencies(step: Step, n: int, d: float = 1.0, **like: Any) -> Any:
    return step(_aten.mul.Tensor, step(_aten.arange.default, n // 2 + 1, **like), 1 / (n * d))


#: What each consists of, from its own arguments.
WINDOWS: dict[OpOverload, Callable[..., Any]] = {
    **{
        getattr(packet, overload): _window(shape)
        for packet, shape in (
            (_aten.hann_window, _hann),
            (_aten.hamming_window, _hamming),
            (_aten.blackman_window, _blackman),
            (_aten.bartlett_window, _bartlett),
            (_aten.kaiser_window, _kaiser),
        )
        for overload in packet.overloads()
        if "out" not in overload
    },
    _aten.fft_fftfreq.default: _frequencies,
    _aten.fft_rfftfreq.default: _half_frequencies,
}
