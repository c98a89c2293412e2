"""Buffers that stay in float32: the cure, and what it is proposed for."""

import copy

import torch
from torch import nn

from pytest_fp16.diagnosis.kept_buffers import keep_buffers, kept_buffers
from pytest_fp16.precision import precision
from pytest_fp16.report.model import Culprit

LOW = precision("bf16-true")


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("step", torch.tensor(0.1))
        self.register_buffer("table", torch.linspace(0, 1, 4))
        self.register_buffer("whole", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        return x * self.table


def net():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), Counting())


def at(module, operation, mechanism="absorption"):
    return Culprit(module=module, operation=operation, mechanism=mechanism, evidence="")


def test_the_named_ones_are_not_cast_and_all_else_is():
    model = keep_buffers(net(), ["2.step"]).to(torch.bfloat16)
    assert model[2].step.dtype is torch.float32
    assert float(model[2].step) == float(torch.tensor(0.1))
    assert model[2].table.dtype is model[0].weight.dtype is torch.bfloat16
    again = copy.deepcopy(model).half()
    assert again[2].step.dtype is torch.float32
    assert again(torch.ones(2, 4).half()).dtype is torch.float16


def test_the_buffer_at_fault_is_kept():
    (cure,) = kept_buffers(net(), LOW, at("2", "step"))
    assert cure.description.startswith("keep the buffer 2.step in float32")
    assert "torch.long" in cure.description
    assert (cure.points_to, cure.operation) == ("2", "step")
    assert cure.amendment.model(net()).half()[2].step.dtype is torch.float32
    (table,) = kept_buffers(net(), LOW, at("2", "table", "underflow"))
    assert "torch.long" not in table.description


def test_all_but_statistics_of_norms_are_kept_where_nothing_is_known():
    (cure,) = kept_buffers(net(), LOW, None)
    model = cure.amendment.model(net()).half()
    assert {n for n, b in model.named_buffers() if b.dtype is torch.float32} == {
        "2.step",
        "2.table",
    }
    assert cure.operation == ""


def test_a_layer_takes_what_a_buffer_has_made_float32():
    (cure,) = kept_buffers(net(), LOW, at("2", "table"))
    for changed in (cure.amendment.model(net()[::2]), copy.deepcopy(cure.amendment.model(net()))):
        model = nn.Sequential(changed[-1], changed[0]).bfloat16()
        assert model(torch.ones(2, 4).bfloat16()).dtype is torch.bfloat16
        assert model[0](torch.ones(2, 4).bfloat16()).dtype is torch.float32
    assert "cast back (.to(x.dtype)) where a layer takes a result of it" in cure.description


def test_there_is_nothing_to_keep():
    assert kept_buffers(net(), precision("bf16-mixed"), at("2", "step")) == []
    assert kept_buffers(net(), LOW, at("1", "running_var")) == []
    assert kept_buffers(net(), LOW, at("<optimizer>", "")) == []
    assert kept_buffers(nn.Linear(2, 2), LOW, None) == []


def test_its_control_has_float32_with_the_numbers_of_16_bits():
    """A count that stands still in bfloat16 stands still there, too."""
    (cure,) = kept_buffers(net(), LOW, None)
    model = cure.control.model(net()).bfloat16()
    assert model[2].table.dtype is torch.float32
    assert torch.equal(model[2].table, torch.linspace(0, 1, 4).bfloat16().float())
    model[2].step.fill_(256.0)
    for _ in range(3):
        model[2].step += 1
        model[2](torch.ones(2, 4))
    assert float(model[2].step) == 256.0
    (known,) = kept_buffers(net(), LOW, at("2", "step"))
    assert known.control is None
