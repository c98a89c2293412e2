"""Fused attention as its kernels compute it: scores in float32, probabilities rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    dropout: float = 0.0,
    round_probabilities: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Attention with float32 scores and sums, and 16-bit probabilities in the product with `value`.

    Flash kernels (Dao et al., 2022) keep the unnormalised exp(s − max) in registers, convert it to
    16 bits for the tensor cores, and divide by its float32 sum at the end.

    Args:
        query, key, value: float32, shapes [..., L, E], [..., S, E], [..., S, V].
        mask: None, a bool mask or an additive float mask that broadcasts to [..., L, S].
        causal: mask the upper triangle.
        scale: factor of the scores, 1/√E if None.
        dropout: probability that a probability is dropped.
        round_probabilities: the rounding of the probabilities (or a recorder of the site).

    Returns:
        The output [..., L, V] and the log of the sums of exponentials [..., L], both float32.
    """
    if key.shape[-3] != query.shape[-3] and key.dim() >= 3:  # grouped queries
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = _scores(query, key, mask, causal, scale)
    largest = scores.amax(-1, keepdim=True).detach()
    # A row masked everywhere has no largest score; kernels give zeros there, not NaN.
    largest = torch.where(largest == -torch.inf, torch.zeros_like(largest), largest)
    weights = scores.sub_(largest).exp_()
    sums = weights.sum(-1, keepdim=True)
    if dropout:
        weights = torch.nn.functional.dropout(weights, dropout)
    out = round_probabilities(weights) @ value / torch.where(sums == 0, torch.ones_like(sums), sums)
    if out.dim() == 4:  # as kernels leave it in memory, so that heads can be viewed as one
        out = out.transpose(1, 2).contiguous().transpose(1, 2)
    return out, (sums.log() + largest).squeeze(-1)


def _scores(
    query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """The scores [..., L, S]; minus infinity where a key is masked."""
    scores = query @ key.transpose(-2, -1)
    scores *= scale if scale is not None else 1 / math.sqrt(query.shape[-1])
    if causal:
        keep = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~keep, -torch.inf)
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        )
    return scores
