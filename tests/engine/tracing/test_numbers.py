"""Numbers that an operation only moves or compares with, as the emulated kernels take them."""

import pytest
import torch

from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.tracing.numbers import on_the_grid
from pytest_fp16.engine.tracing.recorder import Recorder
from pytest_fp16.engine.tracing.shadow import wrap_inputs
from pytest_fp16.engine.tracing.trace import Trace

X = torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0, 0.3])
#: Numbers that are moved or compared; 0.999 is one in bfloat16.
MOVED = {
    "clamp": lambda t: t.clamp(0, 0.999),
    "clip": lambda t: t.clip(max=0.999),
    "clamp by a tensor": lambda t: t.clamp(max=torch.tensor(0.999)),
    "hardtanh": lambda t: torch.nn.functional.hardtanh(t, -1, 0.999),
    "hardshrink": lambda t: torch.nn.functional.hardshrink(t, 0.999),
    "masked_fill": lambda t: t.masked_fill(t > 2, 0.999),
    "where": lambda t: torch.where(t > 2, t, 0.999),
    "maximum": lambda t: torch.maximum(t, torch.tensor(0.999)),
    "assignment": lambda t: t.clone().index_fill_(0, torch.tensor([1]), 0.999),
    "full": lambda t: torch.full(t.shape, 0.999, dtype=t.dtype) + 0 * t,
    "comparison": lambda t: (t > 0.999).to(t.dtype),
}


@pytest.mark.parametrize("name", MOVED)
def test_a_number_that_is_moved_or_compared_is_on_the_grid(name):
    recorder = Recorder(len(X), torch.device("cpu"), where=str, totals={})
    (shadow,) = wrap_inputs((X,), torch.bfloat16)

    with torch.no_grad(), Trace(recorder, "cuda", {}):
        traced = MOVED[name](shadow)
    with Emulation("cuda"):
        emulated = MOVED[name](X.bfloat16())

    assert torch.equal(traced.inner, emulated.float())
    assert torch.equal(emulated, MOVED[name](X.bfloat16()))


def test_a_number_beyond_the_range_is_left_for_the_kernel_to_refuse():
    fill = torch.ops.aten.masked_fill.Scalar
    x = X.half()

    assert on_the_grid(fill, (x, x > 2, -1e9), {})[0][2] == -1e9
    assert on_the_grid(fill, (x, x > 2, 3001), {})[0][2] == 3000
    assert on_the_grid(fill, (x.float(), x > 2, 3001), {})[0][2] == 3001


def test_sizes_are_no_values():
    assert on_the_grid(torch.ops.aten.topk.default, (X.half(), 3001), {})[0][1] == 3001
