"""What theory says about one batch, whichever way it was found."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

#: "probable" means every margin above this many σ.
PROBABLE_SIGMAS = 4.0


@dataclass
class TheoryBatch:
    """What theory says about one batch; float32 tensors of shape [N, P] unless noted.

    Attributes:
        logits: predicted logits of the candidate, [N, P, C] (or values [N, D]).
        margin: predicted margin g + b of the reference's top class over its runner-up.
        sigma: predicted standard deviation of that margin.
        bound: first-order worst case, or None where only random rounding was possible.
        bounded, probable: certified in that sense, bool.
        overflowed, undecided: inputs that overflow somewhere, that lie near a discrete decision;
            bool, [N].
        noisy_classes: with random rounding, the class of each run, [R, N, P]; −1 where it is NaN.
        noisy_logits: the logits of the last of these runs, [N, P, C].
        noisy_lost: whether each of these runs loses an output that the reference has, bool, [R].
        average: of values rounded at random, the runs' mean, [N, P, C].
        scatter: the runs' mean square distance from `average`, summed over an input's values, [N].
    """

    logits: Tensor
    margin: Tensor
    sigma: Tensor
    bound: Tensor | None
    bounded: Tensor
    probable: Tensor
    overflowed: Tensor
    undecided: Tensor
    noisy_classes: Tensor | None = None
    noisy_logits: Tensor | None = None
    noisy_lost: Tensor | None = None
    average: Tensor | None = None
    scatter: Tensor | None = None

    def on_host(self) -> TheoryBatch:
        """The same in the memory of the CPU, where totals are kept."""
        held = ((f.name, getattr(self, f.name)) for f in fields(self))
        return replace(self, **{name: t.cpu() for name, t in held if t is not None})


class OtherShapeError(RuntimeError):
    """Rounding changes how many numbers the model returns."""


def require_shape(logits: Tensor, reference: Tensor) -> None:
    """Raise OtherShapeError where canonical logits have another shape than the reference's."""
    if logits.shape != reference.shape:
        there, here = (tuple(t.shape[1:]) for t in (reference, logits))
        raise OtherShapeError(f"an input's outputs have the shape {here} and not {there}")


def concatenate(parts: list[TheoryBatch]) -> TheoryBatch:
    """The theory of a batch from that of its chunks."""

    def join(name: str) -> Any:
        values = [getattr(p, name) for p in parts]
        return None if values[0] is None else torch.cat(values)

    return TheoryBatch(**{f.name: join(f.name) for f in fields(TheoryBatch)})


def differ(alone: Tensor, together: Tensor, unsure: Tensor) -> bool:
    """Whether the logits of some inputs change with their batch, beyond the order of sums.

    Which values fall back onto an operand may hang on that order, too: in a deep model a few of
    many thousands do otherwise, which moves its logits by less than what they are uncertain by.

    Args:
        alone, together: canonical logits of a few inputs, [N, P, C].
        unsure: how far they may move unnoticed, [N, P].
    """
    finite = alone.isfinite() & together.detach().isfinite()
    gap = torch.where(finite, alone - together.detach(), torch.zeros_like(alone)).abs()
    scale = torch.where(finite, alone, torch.zeros_like(alone)).abs().amax()
    most = torch.maximum(1e-3 * scale, unsure.nan_to_num(0, 0, 0).unsqueeze(-1))
    return bool((gap > most).any())
