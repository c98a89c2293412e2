"""One reverse-mode pass through a traced program."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_fp16.engine.emulation.wording import first_line
from pytest_fp16.engine.tracing.sites import Sums
from pytest_fp16.engine.tracing.trace import Trace
from pytest_fp16.theory.rounding import Format


class NotDifferentiableError(Exception):
    """A reverse pass cannot be made; random rounding can."""


def backward(trace: Trace, canonical: Tensor, seeds: Tensor) -> dict[Format, Sums]:
    """What every rounding site contributes to the margins, for each format that is served.

    Args:
        trace: the traced program.
        canonical: its logits [N, P, C], with their graph.
        seeds: derivatives of margins with respect to the logits of the first inputs, [kept, P, C].

    Raises:
        NotDifferentiableError: none can be made.
    """
    contributions = trace.recorder.contributions
    contributions.reset()
    if trace.recorder.leaves and not canonical.requires_grad:
        raise NotDifferentiableError("the outputs carry no gradient")
    if trace.recorder.leaves:
        padded = torch.zeros_like(canonical)
        padded[: len(seeds)] = seeds
        _reverse(trace, canonical, padded)
    return contributions.sums


def _reverse(trace: Trace, canonical: Tensor, seeds: Tensor) -> None:
    finite = torch.isfinite(canonical)
    try:
        with torch.enable_grad():
            torch.autograd.grad(
                torch.where(finite, canonical, torch.zeros_like(canonical)),
                trace.recorder.leaves,
                seeds * finite,
                retain_graph=True,
                allow_unused=True,
            )
    except RuntimeError as error:
        raise NotDifferentiableError(f"no reverse pass ({first_line(error)[:80]})") from None
