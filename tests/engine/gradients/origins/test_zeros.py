"""Why a divisor is zero: what becomes of its mechanism, and of the words."""

import pytest
import torch
from torch import nn

from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.gradients.origins.origin import OriginWatch
from pytest_fp16.engine.stored import emptied
from pytest_fp16.theory.rounding import FORMATS

HALF = torch.tensor([0.5, 0.9999, 2e-3], dtype=torch.float16)
SAME = torch.tensor([2.0, 2.0], dtype=torch.float16)


def lost(operation, given=HALF):
    origin = OriginWatch(nn.Identity())
    with Emulation("cuda"), origin:
        operation(given)
    assert origin.found is not None
    return origin.found


@pytest.mark.parametrize(
    ("operation", "mechanism"),
    [
        (lambda x: 1 / (1 - x), "cancellation"),  # 0.9999 is one
        (lambda x: x / (x - x.clone()).sqrt(), "cancellation"),
        (lambda x: (x - 1).abs().log(), "cancellation"),
        (lambda x: x / (x * x * x * 1e-2), "underflow"),
        (lambda x: 1 / (-20 * torch.ones_like(x)).exp(), "underflow"),
        (lambda x: 1 / ((x - x.clone()) + 1e-8), "eps-underflow"),  # a guard would have helped
        (lambda x: (x * x * x * 1e-2 + 1e-8).log(), "eps-underflow"),
        (lambda x: 1 / ((d := x - x.clone()) + (d == 0).half() * 1e-16), "eps-underflow"),
        (lambda x: 1 / (x - x.clone() + x * 0 * 1e-16), "cancellation"),  # it never came to that
        (lambda x: (1 - x.clamp(max=1 - 1e-6)).log(), "eps-underflow"),  # a bound near one
        (lambda x: torch.log1p(-x), "cancellation"),
        (lambda x: torch.log1p(-x.clamp(max=1 - 1e-6)), "eps-underflow"),
        (lambda x: torch.logit(x), "cancellation"),
        (lambda x: torch.atanh(x.clamp(max=1 - 1e-6)), "eps-underflow"),
        (lambda x: torch.logit(x * x * x * 1e-2), "underflow"),
        (lambda x: (x * 0) / ((x * 0).amax() + 1e-9), "eps-underflow"),
        (lambda x: (x * x * x * 1e-2) / ((x * 0) + 1e-9), "eps-underflow"),  # the divisor counts
    ],
)
def test_mechanism_of_a_zero_divisor(operation, mechanism):
    assert lost(operation).mechanism == mechanism


def test_sparse_tensors_are_left_alone():
    with Emulation("cuda"), OriginWatch(nn.Identity()) as origin:
        table = nn.Embedding(4, 2, sparse=True, dtype=torch.float16)
        (table(torch.tensor([1, 1])) * 0).sum().backward()
        table.weight.grad.coalesce() * 0
    assert origin.found is None


def test_words():
    half = FORMATS[torch.float16]
    assert lost(lambda x: 1 / (1 - x)).detail(half).endswith("numbers that are equal in float16")
    said = lost(lambda x: 1 / (x * x * x * 1e-2)).detail(half)
    assert said == (
        "a result is too small for float16 and falls to zero; then reciprocal divides by it, or "
        "takes its logarithm or root"
    )


def test_a_zero_of_another_step_is_forgotten():
    origin = OriginWatch(nn.Identity())
    with Emulation("cuda"), origin:
        difference = SAME - SAME.clone()
        origin.begin()
        SAME / difference
    assert origin.found.mechanism == "eps-underflow"


def shrunk(x):
    left, chances = x, []
    for _ in range(3):
        left = left * x  # it falls to zero here
        chances.append(left)
    p = torch.stack(chances)
    return p.log()


def test_a_value_too_small_is_laid_to_what_made_it_zero():
    found = lost(shrunk, torch.full((2,), 1e-2, dtype=torch.float16))
    assert (found.operation, found.mechanism) == ("mul", "underflow")
    line = shrunk.__code__.co_firstlineno
    assert found.source.endswith(f"test_zeros.py:{line + 3}")
    assert f"log (tests/engine/gradients/origins/test_zeros.py:{line + 6})" in found.then


class Chained(nn.Module):
    def forward(self, x):
        return x.pow(3).mean(-1)


def test_the_module_that_made_it_is_named():
    model = nn.Sequential(Chained())
    origin = OriginWatch(model)
    with Emulation("cuda"), origin:
        model(torch.full((2, 4), 1e-3, dtype=torch.float16)).log()
    assert (origin.found.module, origin.found.operation) == ("0", "pow")


@pytest.mark.parametrize(
    "then",
    [
        lambda d: (d / 2).sin(),
        lambda d: torch.atan(torch.tanh(d)),
        lambda d: torch.expm1(d) + torch.log1p(d),
    ],
)
def test_what_is_zero_at_zero_carries_the_cause(then):
    origin = OriginWatch(nn.Identity())
    with Emulation("cuda"), origin:
        x = torch.ones(3, dtype=torch.bfloat16)
        then(x - x).square().reciprocal()
    assert origin.found.mechanism == "cancellation"


class Table(nn.Module):
    """The end of a schedule, in a buffer that is cast with the model."""

    def __init__(self, least):
        super().__init__()
        self.steps = nn.Module()
        self.steps.register_buffer("alpha", torch.tensor([0.5, 0.1, least]))


def lost_in_a_buffer(operation, least=2.4e-9):
    model = Table(least)
    held = dict(model.named_buffers())
    origin = OriginWatch(model.half())
    for name, value in emptied(held, model).items():
        origin._zeros.know(name, held_in(model, name), value)
    origin.begin()
    with Emulation("cuda"), origin:
        operation(model.steps.alpha)
    assert origin.found is not None
    return origin.found


def held_in(model, name):
    return dict(model.named_buffers())[name]


def test_a_number_that_the_cast_of_a_buffer_has_lost_is_told_as_that():
    found = lost_in_a_buffer(lambda a: (s := (a[[2, 0]] / (1 - a[[2, 0]]))).clamp(max=5) / s)
    assert (found.module, found.operation, found.mechanism) == ("steps", "alpha", "underflow")
    said = found.detail(FORMATS[torch.float16])
    assert said.startswith("2.4e-09, stored in this buffer, is zero in float16; div")
    assert lost_in_a_buffer(lambda a: 1 / (a * 0)).operation == "alpha"


def test_a_guard_in_a_buffer_is_a_guard():
    found = lost_in_a_buffer(lambda a: 1 / (torch.zeros(3, dtype=torch.float16) + a), 1e-8)
    assert (found.operation, found.mechanism) == ("alpha", "eps-underflow")


def test_a_zero_that_a_buffer_holds_anyway_is_its_own():
    assert lost_in_a_buffer(lambda a: 1 / a, 0.0).stored is None


def test_what_a_cast_makes_zero_of_a_batch_is_too_small_for_the_format():
    found = lost(lambda x: 1 / torch.full((2,), 1e-9).half())
    assert found.mechanism == "underflow"
    assert found.detail(FORMATS[torch.float16]).startswith("what is cast is too small for float16")


@pytest.mark.parametrize(
    "guarded",
    [
        lambda d: d + 1e-16,
        lambda d: d.clamp(min=1e-16),
        lambda d: d + (d == 0).half() * 1e-16,
        lambda d: (d + 1e-16).sqrt() * 2,
    ],
)
def test_the_guard_that_is_zero_is_named(guarded):
    found = lost(lambda x: 1 / guarded(x - x.clone()))
    assert found.mechanism == "eps-underflow"
    assert "1e-16, its guard, is zero in float16" in found.detail(FORMATS[torch.float16])


def test_no_guard_is_named_where_there_is_none():
    found = lost(lambda x: 1 / (x * 0))
    assert "guard" not in found.detail(FORMATS[torch.float16])
