"""Classes made at run time behave like any other class of a module."""

from __future__ import annotations

import copy
import inspect
import pickle
from abc import ABC
from typing import Any, Generic, TypeVar

import pytest
import torch
from torch import Tensor, nn

from pytest_fp16.mixing import keep_in_float32
from pytest_fp16.variants import Variant, variant

T = TypeVar("T")


class Doubled(Variant):
    _fp16_prefix = "Doubled"

    def _fp16_run(self, own: Any, args: Any, kwargs: Any) -> Any:
        return 2 * own(self, *args, **kwargs)


class Negated(Variant):
    _fp16_prefix = "Negated"

    def _fp16_run(self, own: Any, args: Any, kwargs: Any) -> Any:
        return -own(self, *args, **kwargs)


class Shift(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return scale * x + self.by


def changed(module: nn.Module, kind: type[Variant]) -> nn.Module:
    module.__class__ = variant(kind, type(module))
    return module


def test_a_module_changes_what_it_computes_and_nothing_else() -> None:
    module = changed(Shift(3.0), Doubled)
    assert module(torch.ones(1), scale=2.0).item() == 10.0
    assert isinstance(module, Shift)
    assert type(module).__name__ == "DoubledShift"
    assert inspect.signature(module.forward) == inspect.signature(Shift(3.0).forward)


class AbstractFirst(ABC, Shift):
    """Whose objects have another layout than those of a subclass with a base before it."""


class GenericFirst(Generic[T], Shift):
    pass


@pytest.mark.parametrize("base", [AbstractFirst, GenericFirst, Shift])
def test_whichever_base_is_the_first(base: type[Shift]) -> None:
    module = changed(changed(base(3.0), Doubled), Negated)
    assert module(torch.ones(1)).item() == -8.0
    twin = pickle.loads(pickle.dumps(copy.deepcopy(module)))
    assert type(twin) is type(module)
    assert twin.half()(torch.ones(1).half()).item() == -8.0
    kept = keep_in_float32(nn.Sequential(nn.Linear(1, 1), base(3.0)), ["1"]).half()
    assert kept[1](torch.ones(1).half()).dtype is torch.float16


def test_every_module_of_a_class_gets_the_same_class() -> None:
    assert variant(Doubled, Shift) is variant(Doubled, Shift)
    assert variant(Doubled, Shift) is not variant(Negated, Shift)


def test_it_is_copied_and_pickled_with_its_state() -> None:
    module = changed(Shift(3.0), Doubled)
    for twin in (copy.copy(module), copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(twin) is type(module)
        assert twin(torch.ones(1)).item() == 8.0


def test_a_variant_of_a_variant_is_both() -> None:
    module = changed(changed(Shift(3.0), Doubled), Negated)
    twin = pickle.loads(pickle.dumps(module))
    assert module(torch.ones(1)).item() == twin(torch.ones(1)).item() == -8.0
