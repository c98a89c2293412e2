"""What a model has carried along, in another one of the same modules."""

import torch
from torch import nn

from pytest_fp16.engine.carried import carry_over
from pytest_fp16.engine.untouched import formats_of
from tests.engine.test_untouched import Keeper


def test_weights_are_carried_over_where_they_are_asked_for():
    leader, model = Keeper(), Keeper()
    first = model.body.weight.detach().clone()
    leader(torch.ones(2, 3))
    carry_over(leader, model, None)
    assert torch.equal(model.body.weight, first)
    carry_over(leader, model, None, weights=True)
    assert torch.equal(model.body.weight, leader.body.weight)
    assert (model.count, model.ratio) == (1, 0.5)
    assert torch.equal(model.mean, leader.mean)


def test_a_memory_that_has_grown_is_carried_over():
    leader, model = Keeper(), Keeper().to(torch.bfloat16)
    leader.replaced = torch.ones(5, 3)
    carry_over(leader, model, torch.bfloat16, weights=True)
    assert torch.equal(model.replaced, torch.ones(5, 3, dtype=torch.bfloat16))
    assert leader.replaced.dtype == torch.float32


def test_modules_of_another_kind_keep_their_numbers():
    model = nn.Sequential(nn.Dropout(0.1))
    carry_over(nn.Sequential(nn.LeakyReLU(0.5)), model, None)
    assert model[0].p == 0.1


class Aliased(nn.Module):
    """Has its weights under other names, and averages of them in a list."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 3)
        self.trained, self.raw = list(self.body.parameters()), self.body.weight.data
        self.averages = [torch.zeros(3, 3)]


def test_weights_under_another_name_stay_the_weights():
    leader, model = Aliased(), Aliased()
    leader.averages[0] += 1
    carry_over(leader, model, torch.float16, weights=True)
    assert model.trained[0] is model.body.weight
    assert model.raw.data_ptr() == model.body.weight.data_ptr()
    assert torch.equal(model.averages[0], torch.ones(3, 3, dtype=torch.float16))


def test_a_buffer_that_modules_share_stays_shared():
    def pair():
        layers = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
        layers[1].running_mean = layers[0].running_mean
        return layers

    leader, model = pair(), pair()
    leader[0].running_mean += 1
    carry_over(leader, model, None, weights=True)
    assert model[0].running_mean is model[1].running_mean
    assert torch.equal(model[0].running_mean, torch.ones(3))


def test_state_is_carried_over_in_the_formats_of_the_other_model():
    leader, model = Keeper(), Keeper().half()
    with torch.no_grad():
        leader(torch.ones(2, 3))
    carry_over(leader, model, torch.float16)
    assert model.count == 1
    assert model.mean.dtype == torch.float16  # a buffer's own
    assert (model.plain.dtype, model.queue[0].dtype) == (torch.float16, torch.float16)
    assert torch.equal(model.plain.float(), leader.plain)
    model.plain += 1  # a copy of its own
    assert leader.plain[0] == 1
    carry_over(leader, model, None)
    assert model.plain.dtype == torch.float32


def test_state_is_carried_over_in_the_formats_that_are_known_of_it():
    leader, own, model = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    for keeper, mean in ((leader, torch.float32), (own, torch.float16)):
        keeper.wide, keeper.count = {"mean": torch.ones(2), "sum": [torch.ones(2)]}, torch.ones(1)
        keeper.recent = [torch.ones(2, dtype=mean)] * (1 if keeper is own else 3)
        keeper.mean, keeper.index = torch.ones(2, dtype=mean), torch.arange(2)
    own.count = own.count.double()
    leader.other = torch.ones(2)
    known = formats_of(own)
    assert known["wide[mean]"] == known["wide[sum][0]"] == known["wide"] == torch.float32
    assert (known["recent[0]"], known["recent"], known["count"]) == (
        torch.float16,
        torch.float16,
        torch.float64,
    )
    assert "index" not in known
    carry_over(leader, model, torch.bfloat16, formats=known)
    assert model.wide["mean"].dtype == model.wide["sum"][0].dtype == torch.float32
    assert [t.dtype for t in (model.mean, *model.recent)] == [torch.float16] * 4  # two are new
    assert (model.count.dtype, model.index.dtype) == (torch.float64, torch.int64)
    assert model.other.dtype == torch.bfloat16  # nothing is known of it
    model.wide["mean"] += 1  # a copy of its own
    assert torch.equal(leader.wide["mean"], torch.ones(2))
