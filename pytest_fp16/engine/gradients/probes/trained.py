"""The weights that a training moves, and whether they are still numbers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def trained_weights(model: nn.Module) -> list[str]:
    """Their names, in the model's order: that of a set changes with the process, and so do sums."""
    return [name for name, p in model.named_parameters() if p.requires_grad]


def all_finite(model: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Whether they are finite, among tensors of the model by name."""
    return all(bool(tensors[name].isfinite().all()) for name in trained_weights(model))
