"""Directions in which the errors of several values are looked at, one for each row of values.

The mean square of an error's part in a direction of signs is that of its entries, if each sign is
its own. In one direction for all rows it is not where entries err alike, as the colours of a pixel
do: their errors cancel, or add up, in every row. So each row has one of 64 directions, chosen by
its values, between which the rows of a Hadamard matrix balance out: any two entries (but for those
a multiple of 64 apart) have the same sign as often as they have not.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

#: Directions to choose from, a power of two.
_MANY = 64
_LOW = 0xFFFFFFFF
_MIXES = 1640531527  # 2³² over the golden ratio, less 2³⁰: Knuth's multiplicative hash


def directions(rows: Tensor) -> Tensor:
    """A direction of length one for each row of values [..., D]: entries ±1/√D, alike in number."""
    size = rows.shape[-1]
    signs, flips = _signs(size, str(rows.device))
    chosen = _chosen(rows)
    columns = torch.arange(size, device=rows.device) % _MANY
    return signs * flips[chosen][..., columns]


def _chosen(rows: Tensor) -> Tensor:
    """Which direction each row has, by the bits of its values: the same wherever it is asked."""
    bits = rows.detach().float().contiguous().view(torch.int32).sum(-1, dtype=torch.int64)
    return (((bits & _LOW) * _MIXES) & _LOW) >> (32 - _MANY.bit_length() + 1)


@cache
def _signs(size: int, device: str) -> tuple[Tensor, Tensor]:
    """Signs for all rows, over √size, [size], and the choices of what turns some of them, [64, 64].

    A direction is turned about where most of its signs are negative, so that an error that all
    entries share is seen with its sign.
    """
    generator = torch.Generator().manual_seed(size)
    signs = torch.randint(0, 2, (size,), generator=generator).float().mul_(2).sub_(1)
    matrix = torch.ones(1, 1)
    while len(matrix) < _MANY:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    each = torch.zeros(_MANY).index_add_(0, torch.arange(size) % _MANY, signs)
    total = matrix @ each
    about = torch.where(total == 0, matrix[:, 0] * signs[0], total).sign()
    return (signs / size**0.5).to(device), (matrix * about[:, None]).to(device)
