"""Arithmetic counted from shapes, against counts made by hand and against torch's own."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pytest_fp16.engine.arithmetic import Arithmetic
from pytest_fp16.engine.emulation.emulate import Emulation


def counted(run):
    with torch.no_grad(), Arithmetic() as arithmetic:
        run()
    return arithmetic


r = torch.randn
PRODUCTS = {
    "mm": (torch.mm, r(4, 5), r(5, 6)),
    "addmm": (nn.Linear(7, 3), r(4, 7)),
    "bmm": (torch.bmm, r(2, 4, 5), r(2, 5, 6)),
    "baddbmm": (torch.baddbmm, r(2, 4, 6), r(2, 4, 5), r(2, 5, 6)),
    "convolution": (nn.Conv2d(4, 6, 3, groups=2), r(2, 4, 8, 8)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), r(2, 4, 8, 8)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_as_torch_counts_them(name):
    function, *operands = PRODUCTS[name]
    with torch.no_grad(), FlopCounterMode(display=False) as torchs:
        function(*operands)
    ours = counted(lambda: function(*operands)).work
    assert ours == {torch.float32: torchs.get_total_flops() // 2}


def test_attention_and_elementwise():
    q = torch.randn(2, 3, 10, 8)
    assert counted(lambda: F.scaled_dot_product_attention(q, q, q)).work == {
        torch.float32: 2 * 3 * 10 * 10 * 16
    }
    x = torch.randn(5, 7)
    assert counted(lambda: x.exp().relu().t()).work == {torch.float32: 35}  # relu and t move
    assert counted(lambda: x.sum(-1)).work == {torch.float32: 35}
    assert counted(lambda: x > 0).work == {}


def test_formats_are_told_apart():
    low, wide = nn.Linear(6, 4).half(), nn.Linear(4, 2)
    x = torch.randn(3, 6).half()
    arithmetic = counted(lambda: wide(low(x).float()))
    assert arithmetic.work == {torch.float16: 3 * 6 * 4, torch.float32: 3 * 4 * 2}
    assert arithmetic.float32_share == 0.25


@pytest.mark.parametrize("mode", [nullcontext, lambda: Emulation("cuda")])
def test_attention_is_of_the_format_of_its_result(mode):
    """A CPU computes its parts in float32, and so does an emulation."""
    q = torch.randn(2, 3, 10, 8).half()
    with torch.no_grad(), mode(), Arithmetic() as arithmetic:
        F.scaled_dot_product_attention(q, key=q, value=q, is_causal=True)
        q + q
    assert arithmetic.float32_share == 0.0
    assert arithmetic.work == {torch.float16: 2 * 3 * 10 * 10 * 16 + q.numel()}
