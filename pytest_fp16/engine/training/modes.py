"""Which modules train while a model is trained: all of them, or those that a Trainer lets be.

A loop of a user's own calls ``model.train()``, which sets every module. Lightning's Trainer has
left modes as they are since 2.2, so that a teacher put into eval mode by its module stays there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from pytest_fp16.engine.training.lightning import lightning_base

#: The first release of Lightning whose Trainer leaves modes alone.
_LEAVES_MODES = (2, 2)


def to_train(model: nn.Module) -> nn.Module:
    """Put a model into the modes it is trained in; the same model."""
    return model if _keeps_its_modes(model) else model.train()


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[nn.Module]:
    """The model, each of whose modules is in the same mode afterwards."""
    # Something may stand in the model's place, to see whether it is used: it has no modules.
    whole = issubclass(type(model), nn.Module)
    modes = [(module, module.training) for module in model.modules()] if whole else []
    whole_mode = model.training
    try:
        yield model
    finally:
        model.train(whole_mode)  # which a module may have its own way of: adapters are taken out
        for module, mode in modes:
            module.training = mode


def _keeps_its_modes(model: nn.Module) -> bool:
    base = lightning_base(model)
    if base is None:
        return False
    version = getattr(sys.modules[base.__module__.partition(".")[0]], "__version__", "0.0")
    numbers = version.split(".")[:2]
    return all(n.isdigit() for n in numbers) and tuple(map(int, numbers)) >= _LEAVES_MODES
