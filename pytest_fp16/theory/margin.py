"""Margins between classes: the paper's δ, Γ and lemma (arXiv 2305.10947, section 3), ties, flips.

Shapes: N inputs, P positions with one decision each (1 for plain classification), C classes.
"""

from __future__ import annotations

import math

import torch

#: Times the size of those that compete: what is so far below them is not meant to be chosen.
_FAR_BELOW = 100


def top_two(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the largest and the second largest class, both of shape [N, P].

    Raises:
        ValueError: fewer than two classes.
    """
    if logits.shape[-1] < 2:
        raise ValueError(f"a margin needs at least two classes (got {logits.shape[-1]})")
    indices = logits.nan_to_num(nan=-torch.inf).topk(2, dim=-1).indices
    return indices[..., 0], indices[..., 1]


def margin(logits: torch.Tensor, top: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """z_top − z_other, shape [N, P]."""
    return pick(logits, top) - pick(logits, other)


def pick(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The logit of one class per decision: [N, P, C], [N, P] -> [N, P]."""
    return logits.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Softmax, or the values themselves where they already are probabilities."""
    return logits if _are_probabilities(logits) else logits.softmax(-1)


def _are_probabilities(values: torch.Tensor) -> bool:
    sums = values.sum(-1)
    return bool((values >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def floating_point_error(reference: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    """δ(x): largest absolute difference of the probabilities, shape [N, P].

    The reference tells whether both are probabilities: in 16 bits their sum strays from one.
    """
    if _are_probabilities(reference):
        return (reference - candidate).abs().amax(-1)
    return (reference.softmax(-1) - candidate.softmax(-1)).abs().amax(-1)


def classification_tolerance(reference: torch.Tensor) -> torch.Tensor:
    """Γ(x): largest minus second largest probability, shape [N, P]."""
    two = probabilities(reference).topk(2, dim=-1).values
    return two[..., 0] - two[..., 1]


def certified_by_lemma(reference: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    """Γ(x) > 2δ(x): the predicted class must be the same. Shape [N, P], bool.

    The paper states ≥; with equality a tie can fall either way, so only > is claimed.
    """
    return classification_tolerance(reference) > 2 * floating_point_error(reference, candidate)


def flips_and_ties(
    candidate: torch.Tensor, reference_top: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the predicted class differs, and where it ties with the reference's class.

    A tie that includes the reference's class is a tie, not a flip: 16-bit logits often tie exactly.
    A row that holds NaN is a flip, and so is a tie at infinity: an overflow decided nothing.

    Returns:
        Two bool tensors of shape [N, P].
    """
    best = candidate.amax(-1)  # NaN where any class is NaN
    at_reference = pick(candidate, reference_top)
    holds = at_reference == best
    tied = holds & ((candidate == best.unsqueeze(-1)).sum(-1) > 1)
    lost = tied & best.isinf()
    return ~holds | lost, tied & ~lost


def lost_values(reference: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """How many values of each input are NaN or infinite where the reference's are finite, [N].

    A model that sets classes it rejects to -inf may reject another one, but no more of them.
    """
    own, values = (t.reshape(len(t), math.prod(t.shape[1:])) for t in (reference, values))
    if bool(values.isfinite().all()):
        return torch.zeros(len(values), dtype=torch.long, device=values.device)
    finite = own.isfinite()
    lost = (values.isnan() & finite).sum(1)
    for infinite in (math.inf, -math.inf):
        here = values == infinite
        more = here.sum(1) - (own == infinite).sum(1)
        lost += torch.minimum(more.clamp(min=0), (here & finite).sum(1))
    return lost


def hidden(logits: torch.Tensor) -> torch.Tensor:
    """Classes that a mask keeps from being chosen, whatever constant it has: -1e8 is no logit.

    They are told by their size beside that of the classes that compete, in whatever unit.

    Args:
        logits: of decisions, [..., C].

    Returns:
        Those further below zero than a hundred times the usual first and second, bool [..., C].
    """
    if not logits.numel() or logits.shape[-1] < 2:
        return torch.zeros_like(logits, dtype=torch.bool)
    first, second = logits.topk(2, -1).values.abs().unbind(-1)
    usual = torch.maximum(first.nanmedian(), second.nanmedian())
    return (logits < -_FAR_BELOW * usual) & (usual > 0)
