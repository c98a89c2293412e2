"""What refuses to be copied in a model: shared where it holds no weights, or named."""

import concurrent.futures
import logging
import tempfile
import threading

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.copies import make_model
from pytest_fp16.errors import ModelError


class Refuses:
    """As a handle to a library of another language does."""

    def __init__(self, held=None):
        self.held = held

    def __reduce_ex__(self, protocol):
        raise TypeError("no copies of this")


class Helper:
    def __init__(self):
        self.lock, self.counts = threading.Lock(), [0]


@pytest.mark.parametrize(
    "make",
    [
        threading.Lock,
        threading.Event,
        Refuses,
        lambda: logging.StreamHandler(),
        tempfile.TemporaryFile,
        lambda: concurrent.futures.ThreadPoolExecutor(1),
        lambda: (i for i in range(3)),
    ],
)
@pytest.mark.parametrize("place", [lambda x: x, lambda x: {"one": [x]}, lambda x: (x, 1)])
def test_what_holds_no_weights_is_shared(make, place):
    model = nn.Sequential(nn.Linear(2, 2))
    thing = make()
    model[0].thing = place(thing)
    ours = make_model(model)
    held = ours[0].thing
    while isinstance(held, (dict, list, tuple)):
        held = held["one"] if isinstance(held, dict) else held[0]
    assert held is thing
    assert ours[0].weight is not model[0].weight
    if hasattr(thing, "close"):
        thing.close()


def test_an_object_of_the_programs_shares_its_lock_alone():
    model = nn.Linear(2, 2)
    model.helper = Helper()
    ours = make_model(model)
    assert ours.helper.lock is model.helper.lock
    assert ours.helper.counts is not model.helper.counts


@pytest.mark.parametrize("held", [torch.ones(2), nn.Linear(2, 2), [{"a": (torch.ones(1),)}]])
def test_what_holds_tensors_is_named(held):
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].lock = threading.Lock()
    model[0].engine = {"of": Refuses(held)}
    said = r"copied for its attribute 0\.engine\['of'\] \(TypeError: no copies of this\); pass a f"
    with pytest.raises(ModelError, match=said):
        make_model(model)


def test_a_thread_that_runs_the_model_is_not_shared():
    model = nn.Linear(2, 2)
    model.worker = threading.Thread(target=model.forward)
    with pytest.raises(ModelError, match=r"for its attribute worker \(TypeError"):
        make_model(model)


def test_a_parameter_that_refuses_is_named():
    class Odd(nn.Parameter):
        def __deepcopy__(self, memo):
            raise RuntimeError("not this one")

    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight = Odd(torch.ones(2, 2))
    with pytest.raises(ModelError, match=r"for its attribute 0\.weight \(RuntimeError: not this"):
        make_model(model)


def test_a_model_with_a_lock_is_evaluated():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4)).eval()
    model.lock = threading.Lock()
    assert check(Evaluation(model, [torch.randn(64, 16)], labelled=False)).equivalent
    assert model[0].weight.dtype == torch.float32
