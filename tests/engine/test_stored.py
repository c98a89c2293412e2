"""What a cast makes infinite of the values that a model stores, and when that is meant."""

import pytest
import torch
from torch import nn

from pytest_fp16.engine.batching import cast_module
from pytest_fp16.engine.stored import BeforeCast, emptied
from pytest_fp16.mixing import keep_in_float32
from pytest_fp16.theory.rounding import BFLOAT16, FLOAT16


def stored(model, fmt=FLOAT16):
    before = BeforeCast(model, fmt)
    return {s.name: s for s in before.cast(cast_module(model, fmt.dtype))}


def holding(values, persistent=True):
    model = nn.Linear(2, 2)
    model.register_buffer("held", values, persistent=persistent)
    return model


@pytest.mark.parametrize("persistent", [True, False])
def test_a_buffer_that_leaves_the_range(persistent):
    found = stored(holding(torch.tensor([1.0, 99_123.4, float("-inf"), 7e4]), persistent))
    assert found["held"].surprising
    assert (found["held"].count, found["held"].infinite) == (4, 2)
    assert found["held"].largest == pytest.approx(99_123.4)
    assert found["weight"].infinite == 0
    assert 0 < found["weight"].largest < 1


def test_a_running_variance_and_a_weight():
    model = nn.BatchNorm1d(13)
    model.running_var[3] = 99_000.0
    model.weight.data[5] = -1e5 + 12
    found = stored(model)
    assert [n for n, s in found.items() if s.surprising] == ["weight", "running_var"]


def test_the_largest_number_that_still_rounds_to_a_finite_one():
    assert stored(holding(torch.tensor([65_519.0, 1.0])))["held"].infinite == 0
    assert stored(holding(torch.tensor([65_520.0, 1.0])))["held"].surprising


def test_what_stays_in_float32_and_what_is_no_number_of_the_format():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[0].running_var.fill_(99_000.0)
    model[1].register_buffer("steps", torch.tensor(10**9))
    model[1].register_buffer("turns", torch.tensor(1e9 + 0j))
    assert set(stored(keep_in_float32(model, ["0"]))) == {"1.weight", "1.bias"}


def test_nan_and_empty_tensors_are_no_infinities():
    found = stored(holding(torch.tensor([float("nan"), 1e5])))
    assert (found["held"].infinite, found["held"].largest) == (1, 1e5)
    assert "held" not in stored(holding(torch.empty(0)))


def test_sparse_values_are_seen():
    values = torch.eye(3) * 99_123.4
    assert stored(holding(values.to_sparse()))["held"].infinite == 3


CAUSAL = torch.ones(4, 4).triu(1)

MEANT = {
    "added to scores": CAUSAL * -1e9,
    "beside positions": torch.arange(16.0).view(4, 4).masked_fill(CAUSAL.bool(), -1e6),
    "the smallest number": CAUSAL * torch.finfo(torch.float32).min,
    "one round number": torch.tensor([[0.0, -1e5], [0.0, 0.0]]),
    "alone": torch.tensor(-1e9),
    "a power of two": torch.tensor(-(2.0**32)),
    "subtracted from scores": CAUSAL * 1e9,
    "no limit": torch.tensor([0.5, torch.finfo(torch.float32).max]),
}
NOT_MEANT = {
    "one measurement": torch.tensor([3.0, 99_123.4, 12.0]),
    "a round one": torch.tensor([3.0, 99_000.0, 1.0]),
    "several": torch.tensor([-99_123.4, -1e9, 0.0]),
    "a mean": torch.tensor([-99_123.4, 0.0, 0.0]),
    "all are so large": torch.full((4,), 99_000.0),
    "among ones": torch.tensor([99_000.0, 99_000.0, 1.0, 1.0]),
    "the base of a rotary embedding": torch.tensor(1e6),
}


@pytest.mark.parametrize("values", MEANT.values(), ids=MEANT)
def test_a_mask_is_no_surprise(values):
    found = stored(holding(values.clone()))["held"]
    assert found.infinite
    assert not found.surprising


@pytest.mark.parametrize("values", NOT_MEANT.values(), ids=NOT_MEANT)
def test_a_number_is(values):
    assert stored(holding(values.clone()))["held"].surprising


def test_bfloat16_loses_only_what_stands_for_infinity():
    model = holding(torch.tensor([99_123.4, torch.finfo(torch.float32).max]))
    found = stored(model, BFLOAT16)["held"]
    assert (found.infinite, found.surprising) == (1, False)


def test_what_a_cast_makes_zero_of_buffers_is_told_by_its_size():
    model = nn.Module()
    for name, values in (("tiny", [0.0, 1e-9, -3e-9, 1.0]), ("zero", [0.0, 1.0]), ("index", [0])):
        model.register_buffer(name, torch.tensor(values))
    before = dict(model.named_buffers())
    assert emptied(before, model) == {}
    assert emptied(before, model.half()) == {"tiny": pytest.approx(3e-9)}
    assert emptied({}, model) == {}
