"""Fourier transforms in 16 bits, which CUDA has for sizes that are powers of two, and no CPU has.

``torch.fft`` refuses them on a CPU before any operation is seen. While CUDA is meant they run in
float32 instead: the sum first, which cuFFT leaves in 16 bits, and then the scale of the norm. Those
of bfloat16, from torch 2.14 on, are handed over in 32 bits: torch has no such complex numbers there
(``_fft_r2c_cufft`` in ATen's ``SpectralOps.cpp``).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from pytest_fp16.engine.emulation.operations import WIDE
from pytest_fp16.engine.emulation.patching import replaced_everywhere
from pytest_fp16.engine.emulation.refusal import RefusedSizes
from pytest_fp16.engine.emulation.release import since

#: Whether each is the forward transform. Those of Hermitian signals are left to refuse.
_FORWARD = {
    f"{kind}{dims}": "i" not in kind
    for kind in ("fft", "rfft", "ifft", "irfft")
    for dims in ("", "2", "n")
}

#: The norm by which a transform is a plain sum.
_PLAIN = {True: "backward", False: "forward"}

_depth = 0


def refuses_sizes(sizes: Sequence[int]) -> bool:
    """Whether cuFFT has no transform of these sizes in half precision."""
    return any(n & (n - 1) for n in sizes)


@contextmanager
def transforms_as_on(
    target: str | None, as_one: Callable[[str], AbstractContextManager[Any]]
) -> Iterator[None]:
    """Let ``torch.fft`` take float16 on a CPU where CUDA is meant, however nested.

    Args:
        target: the device whose kernels are meant.
        as_one: what runs in the context it gives is one operation of that name.
    """
    global _depth
    if target != "cuda" or _depth:
        yield
        return
    taking = {name: _taking_halves(name, getattr(torch.fft, name), as_one) for name in _FORWARD}
    _depth += 1
    try:
        with replaced_everywhere(torch.fft, taking):
            yield
    finally:
        _depth -= 1


def _taking_halves(
    name: str, own: Callable[..., Tensor], as_one: Callable[[str], AbstractContextManager[Any]]
) -> Callable[..., Tensor]:
    many = name[-1] in "2n"
    defaults: dict[str, Any] = {
        "s" if many else "n": None,
        "dim": None if many else -1,
        "norm": None,
    }
    if name.endswith("2"):
        defaults["dim"] = (-2, -1)

    @functools.wraps(own)
    def call(input: Tensor, *args: Any, **kwargs: Any) -> Any:
        if has_torch_function((input,)):
            # Not by its own name: a function that holds itself keeps what a trace has until the
            # next collection of garbage.
            mine = getattr(torch.fft, name)
            return handle_torch_function(mine, (input,), input, *args, **kwargs)
        halves = isinstance(input, Tensor) and input.dtype in _taken()
        if not halves or input.device.type != "cpu" or "out" in kwargs:
            return own(input, *args, **kwargs)
        options = defaults | dict(zip(defaults, args, strict=False)) | kwargs
        size, dim, norm = (options[key] for key in defaults)
        wide = input.to(WIDE[input.dtype])
        with as_one(f"fft_{name}"):
            out = own(wide, size, dim, _PLAIN[_FORWARD[name]])
            sizes = _sizes(name, wide, out, size, dim)
            if refuses_sizes(sizes):
                raise RefusedSizes(f"fft_{name}", sizes)
            low = _rounded(out, input.dtype)
        scale = _scale(_FORWARD[name], norm, math.prod(sizes))
        return low if scale is None else low * scale

    return call


def _taken() -> tuple[torch.dtype, ...]:
    """What CUDA transforms in 16 bits."""
    halves = (torch.float16, torch.complex32)
    return (*halves, torch.bfloat16) if since(2, 14) else halves


def _rounded(out: Tensor, dtype: torch.dtype) -> Tensor:
    """A sum as cuFFT leaves it for a signal of that dtype, in the dtype that torch gives it."""
    if dtype is not torch.bfloat16:
        return out.to(torch.complex32 if out.is_complex() else torch.float16)
    parts = torch.view_as_real(out) if out.is_complex() else out
    parts = parts.bfloat16().float()
    return torch.view_as_complex(parts) if out.is_complex() else parts


def _sizes(name: str, given: Tensor, out: Tensor, size: Any, dim: Any) -> list[int]:
    """How many values each transformed dimension of the signal has."""
    if name[-1] not in "2n":
        dims, asked = [dim], [size]
    else:
        count = len(size) if dim is None and size is not None else given.dim()
        dims = list(range(-count, 0)) if dim is None else list(dim)
        asked = [None] * len(dims) if size is None else list(size)
    sizes = [out.shape[d] for d in dims]
    if name.startswith("rfft"):  # half of the spectrum is left out, in the last one
        last = asked[-1]
        sizes[-1] = given.shape[dims[-1]] if last in (None, -1) else last
    return sizes


def _scale(forward: bool, norm: str | None, n: int) -> float | None:
    if norm == "ortho":
        return 1 / math.sqrt(n)
    scaled = (norm == "forward") if forward else (norm in (None, "backward"))
    return 1 / n if scaled else None
