"""The native canary: a few inputs through the device's own 16-bit kernels before an emulated run.

It shows that every operation has a kernel here, and that emulation agrees with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.batching import take
from pytest_fp16.engine.candidate import Candidate, DtypeObserver
from pytest_fp16.engine.drawn_alike import DrawnAlike
from pytest_fp16.engine.emulation.refusal import UnsupportedOperation
from pytest_fp16.engine.emulation.wording import (
    comes_of_values,
    first_line,
    is_missing_kernel,
    mixes_dtypes,
)
from pytest_fp16.engine.untouched import untouched

#: Inputs the canary takes: float16 on a CPU is slow.
INPUTS = 4
#: Its outputs part from emulation's by more than accumulation order explains.
LARGE_DIFFERENCE = 0.1


@dataclass(frozen=True)
class CanaryFindings:
    """What a few inputs showed.

    Attributes:
        text: one sentence for the report.
        error: what the native run raised, or None.
        emulation_error: what the emulated run raised, or None.
        unsupported: the native run raised because an operation has no kernel.
        mixed_dtypes: it raised because an operation refuses tensors of different dtypes, which no
            device promotes.
        difference: largest difference of the two runs, relative to the largest output; where that
            is large, of emulation of this device's own kernels.
        on_target: only emulation of the target's kernels raised: what they give stops the program.
    """

    text: str
    error: BaseException | None = None
    emulation_error: BaseException | None = None
    unsupported: bool = False
    mixed_dtypes: bool = False
    difference: float | None = None
    on_target: bool = False


def _lacks_kernel(error: BaseException) -> bool:
    return is_missing_kernel(error) or isinstance(error, UnsupportedOperation)


def refused(
    error: BaseException, emulation_error: BaseException | None, device: str
) -> CanaryFindings:
    """The findings where the device's own kernels stopped the program.

    Args:
        error: what they raised.
        emulation_error: what emulation raised, if it did.
        device: their device type.
    """
    unsupported = _lacks_kernel(error)
    words = "has no 16-bit kernel for an operation" if unsupported else "raised"
    said = first_line(error)
    text = f"the canary on {device} {words}: {said[:160]}"
    mixed_dtypes = not unsupported and mixes_dtypes(said)
    return CanaryFindings(text, error, emulation_error, unsupported, mixed_dtypes)


def spoken_for(what: str, device: str, target: str) -> str:
    """Whose those numbers are that a canary gave, where they are far from emulation's."""
    return (
        f"; the other {what} are those of {device}'s own kernels, the verdict speaks for {target}"
    )


def run_canary(
    candidate: Candidate,
    inputs: Any,
    n: int,
    seed: int,
    observer: DtypeObserver,
    count: int = INPUTS,
) -> CanaryFindings:
    """Run a few inputs natively and emulated, and compare.

    Args:
        candidate: what is about to run emulated.
        inputs: the first batch, of n inputs.
        seed: the random state of both runs.
        observer: records the dtypes of the emulated program.
        count: how many inputs; n or more for all, where a batch cannot be cut.
    """
    few = inputs if count >= n else take(inputs, n, list(range(count)))
    emulated, emulation_error = _attempt(candidate, few, seed, emulated=True, observer=observer)
    native, error = _attempt(candidate, few, seed)
    alone = error or emulation_error
    if count < n and alone is not None and _lacks_kernel(alone):
        # A larger batch may take other kernels, as that of cdist does: it is what counts.
        whole = run_canary(candidate, inputs, n, seed, observer, n)
        if whole.error is None and whole.emulation_error is None:
            text = f"{whole.text}; {count} inputs alone raised: {first_line(alone)[:160]}"
            return replace(whole, text=text)
    device = candidate.device.type
    if error is not None:
        return refused(error, emulation_error, device)
    assert native is not None, "unreachable: no error and no output"
    if emulated is None:
        text, own = f"the canary ran on {device}, emulation did not", None
        if device != candidate.target and emulation_error and comes_of_values(emulation_error):
            own, _ = _attempt(candidate, few, seed, emulated=True, kernels=device)
        if own is not None:
            text = f"the canary ran natively on {device}, whose kernels give other values"
        return CanaryFindings(text, None, emulation_error, on_target=own is not None)
    difference = _difference(native, emulated)
    if difference > LARGE_DIFFERENCE:  # they may have drawn other numbers
        alike = DrawnAlike(candidate.target)
        again, _ = _attempt(candidate, few, seed, observer=alike)
        if again is not None and alike.drew:
            native, difference = again, _difference(again, emulated)
    said = f"emulation differs by {difference:.1e} of the largest output"
    text = f"the canary ran natively on {device}; {said}"
    if difference > LARGE_DIFFERENCE and device != candidate.target:
        own, _ = _attempt(candidate, few, seed, emulated=True, kernels=device)
        if own is not None:
            difference = _difference(native, own)
            text += f", of this device's kernels by {difference:.1e}"
        text += spoken_for("outputs", device, candidate.target)
    return CanaryFindings(text, difference=difference)


def _attempt(
    candidate: Candidate, inputs: Any, seed: int, **options: Any
) -> tuple[Tensor | None, BaseException | None]:
    """(outputs, None) or (None, what was raised); the model stays as it is."""
    with untouched(candidate.model, weights=candidate.habits.writes):
        try:
            return candidate.outputs(inputs, seed, **options), None
        except Exception as error:
            return None, error


def _difference(native: Tensor, emulated: Tensor) -> float:
    if native.shape != emulated.shape:  # as many frames, or boxes, as the values ask for
        return float("inf")
    both = native.isfinite() & emulated.isfinite()
    if not bool(both.any()):
        return 0.0 if torch.equal(native.isfinite(), emulated.isfinite()) else float("inf")
    scale = float(emulated[both].abs().max()) or 1.0
    return float((native - emulated)[both].abs().max()) / scale
