"""A list of parameters that answers what their model does."""

import copy
import pickle

import pytest
import torch
from torch import nn

from pytest_fp16.engine.containers import map_tensors
from pytest_fp16.engine.training.parameters import Parameters


def model():
    made = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    made.rate = 0.3
    return made


def test_it_is_the_list_an_optimizer_takes():
    held = model()
    given = Parameters(held.parameters(), held)
    assert isinstance(given, list)
    assert [id(p) for p in given] == [id(p) for p in held.parameters()]
    for make in (torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS):
        groups = make(given, lr=0.1).param_groups
        assert [id(p) for p in groups[0]["params"]] == [id(p) for p in given]
    assert (len(given[1:]), bool(Parameters([], held))) == (3, False)


def test_it_answers_what_its_model_does():
    held = model()
    given = Parameters(held.parameters(), held)
    assert [n for n, _ in given.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert list(given.modules()) == list(held.modules())
    assert next(given.parameters()) is held[0].weight
    assert given.get_submodule("2") is held[2]
    assert given.rate == 0.3
    with pytest.raises(AttributeError, match="'Sequential' object has no attribute 'decay'"):
        _ = given.decay


def test_its_copies_are_lists_alone():
    """An optimizer may keep it, and be copied: the model is no part of that."""
    held = model()
    given = Parameters(held.parameters(), held)
    for made in (copy.copy(given), copy.deepcopy(given), pickle.loads(pickle.dumps(given))):
        assert type(made) is list
        assert torch.equal(made[0], held[0].weight)
    mapped = map_tensors(given, lambda t: t.detach())
    assert len(mapped) == 4
    with pytest.raises(AttributeError, match="'Parameters' object has no attribute 'modules'"):
        mapped.modules()
    with pytest.raises(AttributeError, match="__array__"):
        _ = given.__array__
