"""A cure: averages of weights that stay in float32 when the model is cast.

A teacher or an exponential average is a copy of what is trained, and moves by a small part of the
difference in each step: less than half a step of the format is none. Mixed precision keeps it in
float32, as it does the weights and the optimizer's state, and does not tell them apart.
"""

from __future__ import annotations

from torch import nn


def copies_of_trained(model: nn.Module) -> list[str]:
    """The outermost modules without a trained weight, whose weights have a trained one's shapes."""
    trained = {_shapes(module) for _, module in model.named_modules() if _all(module, True)}
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and not inside and _all(module, False) and _shapes(module) in trained:
            found.append(name)
    return found


def _all(module: nn.Module, trained: bool) -> bool:
    weights = list(module.parameters())
    return bool(weights) and all(w.requires_grad == trained for w in weights)


def _shapes(module: nn.Module) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(weight.shape) for weight in module.parameters())
