"""Whether weights were written to: every way of doing so, and none that is none."""

import pytest
import torch
from torch import nn

from pytest_fp16.engine.checksums import Checksums


def counted(weight):
    with torch.no_grad():
        weight.add_(1)


def behind_autograd(weight):
    weight.data.add_(1)


def exchanged(weight):
    weight.data = weight.data.clone()


def past_torch(weight):
    weight.detach().numpy()[0, 0] += 1


def too_small_for_a_sum(weight):
    weight.data[0, 0] = torch.nextafter(weight[0, 0].detach(), torch.tensor(9.0))


@pytest.mark.parametrize(
    "write", [counted, behind_autograd, exchanged, past_torch, too_small_for_a_sum]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_write_is_seen(write, dtype):
    model = nn.Linear(64, 64).to(dtype)
    with torch.no_grad():
        model.weight[1, 0] = 1e6
    before = Checksums(model)
    model(torch.ones(2, 64, dtype=dtype))
    assert Checksums(model) == before
    write(model.weight)
    assert Checksums(model) != before


def test_another_parameter_is_another_weight():
    model = nn.Linear(3, 3)
    before = Checksums(model)
    model.weight = nn.Parameter(model.weight.detach().clone())
    assert Checksums(model) != before


def test_weights_without_memory_and_models_without_weights_have_none():
    model = nn.ReLU()
    assert Checksums(model) == Checksums(model)
    model.weight = nn.Parameter(torch.eye(3).to_sparse(), requires_grad=False)
    assert Checksums(model) == Checksums(model)


def test_equal_weights_have_equal_sums_wherever_they_lie():
    model, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.load_state_dict(model.state_dict())
    assert torch.equal(Checksums(model).sums, Checksums(other).sums)
