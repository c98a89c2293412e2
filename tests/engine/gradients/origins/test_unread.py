"""An infinity that nothing reads does no harm, and is not to blame."""

import torch
from torch import nn

from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.gradients.origins.origin import OriginWatch


def watched(step):
    large = torch.full((64,), 3e3, dtype=torch.float16, requires_grad=True)
    origin = OriginWatch(nn.Identity())
    with Emulation("cuda"), origin:
        step(large)
    return origin


def slope(x):
    return torch.autograd.grad(x.sum(), x)[0]  # 192 000: a one all the same


def test_a_sum_whose_slope_alone_is_wanted():
    origin = watched(slope)
    assert origin.found.operation == "sum"
    assert origin.swallowed is None


def test_what_is_only_shown_or_handed_on_is_not_read():
    assert watched(lambda x: x.sum().item()).swallowed is None
    assert watched(lambda x: x.detach().sum().float().reshape(1)).swallowed is None


def test_what_only_a_function_with_a_limit_reads():
    def far(x):  # 9e6, of which the exponential is zero in float32, too
        return torch.exp(-x.detach().square()), torch.tanh(x.sum())

    assert watched(far).swallowed is None
    origin = watched(lambda x: (*far(x), 1 / x.square()))
    assert origin.swallowed is not None
    assert watched(lambda x: torch.exp(x.sum())).swallowed is not None  # infinite, too


def test_what_is_read_as_it_is_or_as_a_copy():
    for step in (
        lambda x: 1 / x.sum(),
        lambda x: x.sum().float().view(1).clone() < 1,
        lambda x: (x.sum(), slope(x), x / (x * 60).detach()),
    ):
        assert watched(step).swallowed is not None


def test_one_that_is_read_later_is_found_instead():
    origin = watched(lambda x: 1 / (slope(x) * 9e4).square())
    assert (origin.found.operation, origin.swallowed) == ("mul", origin.found)


def test_of_two_that_are_read_in_the_end_the_first_is_found():
    """A soft Dice: what is divided by leaves the range, and then what is divided."""

    def dice(x):
        both, shared = x.sum(), x[:20].sum()
        return (2 * shared + 1) / (both + 1)

    origin = watched(dice)
    assert (origin.found.operation, origin.found.reached) == ("sum", 192_000)
    assert origin.swallowed is origin.found


def test_what_is_read_after_the_forward_pass_stays_in_its_place():
    def step(x):
        total = x.sum()
        (2 * x[:20].sum() + 1).backward()
        return total + 1

    assert watched(step).found.operation == "mul"
