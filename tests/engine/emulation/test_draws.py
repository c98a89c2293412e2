"""What is drawn in 16 bits: never the excluded bound, and zero as often as a kernel draws it."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.emulation.draws import keep_within_bounds
from pytest_fp16.engine.emulation.emulate import Emulation

N = 200_000
#: Half the step below one: draws above it round to one, so as many are zero.
ZEROS = {torch.float16: 2**-12, torch.bfloat16: 2**-9}
DRAWS = {
    "rand": lambda dtype: torch.rand(N, dtype=dtype),
    "rand_like": lambda dtype: torch.rand_like(torch.ones(N, dtype=dtype)),
    "rand_like, another dtype": lambda dtype: torch.rand_like(torch.ones(N), dtype=dtype),
    "uniform_": lambda dtype: torch.empty(N, dtype=dtype).uniform_(),
    "uniform_, wider": lambda dtype: (torch.empty(N, dtype=dtype).uniform_(-1, 3) + 1) / 4,
}


def drawn(draw, dtype, emulated=True):
    torch.manual_seed(0)
    with Emulation() if emulated else nullcontext():
        return draw(dtype).float()


@pytest.mark.parametrize("emulated", [True, False], ids=["emulated", "native"])
@pytest.mark.parametrize("dtype", ZEROS, ids=str)
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_one_is_never_drawn(draw, dtype, emulated):
    values = drawn(draw, dtype, emulated)
    assert float(values.max()) < 1
    assert float(values.min()) >= 0
    assert float(values.mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("dtype", ZEROS, ids=str)
def test_what_would_round_to_one_is_zero(dtype):
    share = float((drawn(DRAWS["rand"], dtype) == 0).float().mean())
    spread = (ZEROS[dtype] / N) ** 0.5
    assert share == pytest.approx(ZEROS[dtype], abs=5 * spread)


def test_draws_in_32_bits_are_left_as_they_are():
    torch.manual_seed(0)
    plain = torch.rand(N)
    assert torch.equal(drawn(DRAWS["rand"], torch.float32), plain)


@pytest.mark.parametrize("rate", [1.0, 4.0])
def test_an_exponential_draw_is_no_zero(rate):
    """Of float32 one in thirty million is so small that it would be: here, one that is."""
    values, asked = torch.tensor([0.0, 0.5]), torch.zeros(2, dtype=torch.bfloat16)
    keep_within_bounds("exponential", values, (asked, rate), {})
    assert values.tolist() == [torch.finfo(torch.float32).eps / 2 / rate, 0.5]
    keep_within_bounds("normal", values.zero_(), (asked,), {})
    assert not values.any()


def test_exponential_draws_have_their_mean():
    values = drawn(lambda dtype: torch.empty(N, dtype=dtype).exponential_(0.5), torch.float16)
    assert float(values.mean()) == pytest.approx(2, rel=0.02)


class Noisy(nn.Module):
    """An exponential draw by hand, from one end of a uniform one or from the other."""

    def __init__(self, from_one):
        super().__init__()
        self.from_one = from_one
        self.first, self.head = nn.Linear(8, 256), nn.Linear(256, 3)

    def forward(self, x):
        h = self.first(x)
        u = torch.rand_like(h)
        return self.head(h - 0.01 * torch.log(1 - u if self.from_one else u))


@pytest.mark.parametrize("from_one", [True, False])
def test_a_logarithm_of_a_draw_is_foreseen(from_one):
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    subject = Evaluation(model=Noisy(from_one), data=[x], labelled=False)
    report = check(subject, precision="bf16-true", budget=0.2)
    lost = next(c for c in report.checks if c.name == "finite")
    assert lost.passed == from_one
    assert ("leave the range" in report.forecast.reason) == (not from_one)
