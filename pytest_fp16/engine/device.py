"""Where a check runs: the device asked for, and whether 16-bit kernels are native there."""

from __future__ import annotations

import torch

from pytest_fp16.errors import DeviceError
from pytest_fp16.settings import Settings


def resolve_device(name: str) -> torch.device:
    """The device of that name; ``"auto"`` is CUDA where there is one, else the CPU.

    Raises:
        DeviceError: no such device here, or no such name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(
            f"unknown device {name!r}; name one such as 'cpu', 'cuda', 'cuda:1', 'mps' or 'auto'"
        ) from None
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise DeviceError(
                f"device {name!r} is not there: this machine has {found} CUDA device(s); "
                "use 'auto' or 'cpu' (emulated, target cuda)"
            )
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError(f"device {name!r} is not there; use 'auto' or 'cpu'")
    elif device.type != "cpu":
        raise DeviceError(f"device {name!r} is not supported; use 'cpu', 'cuda' or 'mps'")
    return device


def run_mode(settings: Settings, device: torch.device) -> str:
    """``"native"`` or ``"emulated"``: what `emulate` means on this device."""
    if settings.emulate == "auto":
        return "emulated" if device.type == "cpu" else "native"
    return "emulated" if settings.emulate == "always" else "native"


def effective_target(settings: Settings, device: torch.device, mode: str) -> str:
    """Whose 16-bit behaviour the verdict speaks for: a native run speaks for its own device."""
    return device.type if mode == "native" else settings.target


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a run failed because the device had no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)
