"""Which weights a copy of a model was copied from, as long as they are there."""

from __future__ import annotations

import weakref

from torch import nn

Weights = list[tuple[str, "weakref.ref[nn.Parameter]"]]

_ORIGINALS: weakref.WeakKeyDictionary[nn.Module, Weights] = weakref.WeakKeyDictionary()


def note(copied: nn.Module, original: nn.Module) -> None:
    """Remember whose copy a model is."""
    own = [(name, weakref.ref(p)) for name, p in original.named_parameters()]
    _ORIGINALS[copied] = own + originals(original)


def originals(copied: nn.Module) -> Weights:
    """The names and weights of the model, and of the one that was a copy of in turn."""
    return _ORIGINALS.get(copied, [])
