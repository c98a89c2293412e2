"""Tensors of different dtypes that meet are brought to the narrower."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from pytest_fp16.diagnosis.upcast import lines_in_float32
from pytest_fp16.engine.emulation.emulate import Emulation


def inputs():
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


class Mixing(nn.Module):
    """Its layer, and a place that it writes into, meet tensors of another dtype."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        out = torch.zeros(len(x), 8)
        out[torch.arange(len(x))] = x
        return self.last(out)


@pytest.mark.parametrize("emulated", [False, True])
def test_the_wider_is_narrowed_and_what_is_written_takes_the_dtype_of_its_place(emulated):
    torch.manual_seed(0)
    model = Mixing()
    exact = model(inputs())
    narrow = lines_in_float32(model.half(), ["elsewhere.py:1"], meeting="narrowed")
    with torch.no_grad(), Emulation("cuda") if emulated else nullcontext():
        got = narrow(inputs().half())
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.float(), exact, atol=3e-3, rtol=0)


@pytest.mark.parametrize("wrong", [lambda s, x: s.last(x[:, :3]), lambda s, x: x.missing])
def test_what_is_refused_for_anything_else_is_refused_as_before(wrong):
    class Wrong(Mixing):
        forward = wrong

    narrow = lines_in_float32(Wrong().half(), ["elsewhere.py:1"], meeting="narrowed")
    with pytest.raises((RuntimeError, AttributeError), match=r"shapes|missing"):
        narrow(inputs().half())
