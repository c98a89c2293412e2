"""Many values that share few numbers of a format: rounded, unless chance decides."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.tracing.absorption import certain_errors
from pytest_fp16.engine.tracing.crowds import TURNED_SIGMAS, crowded, repeated
from pytest_fp16.theory.rounding import BFLOAT16, FLOAT16, round_to

FORMATS = (FLOAT16, BFLOAT16)


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("fmt", FORMATS)
def test_where_a_function_is_flat_values_fall_to_one_side(fmt):
    """e⁻ˢ for small s: most of it rounds to one."""
    small = (
        torch.rand(3000, generator=torch.Generator().manual_seed(0)) ** 4 * 2 * fmt.unit_roundoff
    )
    y = torch.exp(-small).requires_grad_()
    moved, fixed = crowded(y, fmt)
    assert fixed is None  # all are
    assert torch.equal(moved, round_to(y, fmt))
    (gradient,) = torch.autograd.grad(moved.sum(), y)
    assert torch.equal(gradient, torch.ones_like(y))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    "values",
    [
        lambda g: torch.randn(5000, generator=g),
        lambda g: torch.rand(5000, generator=g) + 1,
        lambda g: torch.randn(5000, generator=g).sigmoid(),
        lambda g: torch.full((5000,), 0.3),  # one value is no crowd
        lambda g: torch.rand(40, generator=g) * 1e-5 + 1,  # too few to tell chance from bias
        lambda g: torch.randn(8, 600, generator=g).softmax(-1),
        lambda g: torch.full((5000,), torch.inf),
        lambda g: torch.tensor([torch.nan] * 5000),
    ],
)
def test_ordinary_values_are_left_alone(fmt, values):
    y = values(torch.Generator().manual_seed(1))
    assert crowded(y, fmt)[0] is y


@pytest.mark.parametrize("fmt", FORMATS)
def test_errors_to_both_sides_are_left_to_chance(fmt):
    """Few numbers of the format, but as many values above each as below it."""
    steps = torch.rand(6000, generator=torch.Generator().manual_seed(2)) - 0.5
    y = 1 + fmt.unit_roundoff * (9 + 16 * steps)
    assert crowded(y, fmt)[0] is y


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_mask_times_a_constant_errs_alike_everywhere(fmt):
    y = ((drawn(61, 40) > 0) * 0.1).requires_grad_()
    moved = repeated(y, fmt)
    assert torch.equal(moved, round_to(y, fmt))
    assert not torch.equal(moved, y)
    (gradient,) = torch.autograd.grad(moved.sum(), y)
    assert torch.equal(gradient, torch.ones_like(y))
    assert torch.equal(certain_errors(y, [], fmt, False, False, False)[0], moved)
    assert certain_errors(y, [], fmt, True, False, False)[0] is y


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    "y",
    [
        drawn(1000),
        (drawn(1000) > 0) * 0.5,  # on the grid already
        torch.full((8,), 0.1),  # too few to say that they repeat
        torch.arange(100.0).repeat(50) / 10,
        # One value in a thousand, which a sample may not meet, is another.
        torch.where(torch.arange(300_000) % 1000 == 7, drawn(300_000), 0.1),
    ],
)
def test_what_does_not_repeat_is_left_alone(y, fmt):
    assert repeated(y, fmt) is y


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("few", [0.3, -torch.inf])
def test_what_repeats_beside_infinities_leaves_them_as_they_are(few, fmt):
    y = torch.tensor([torch.inf, few]).repeat(400)
    y[7] = 0.1
    assert torch.equal(repeated(y, fmt), round_to(y, fmt))


@pytest.mark.parametrize("fmt", FORMATS)
def test_errors_that_are_alike_within_an_input_are_applied(fmt):
    """One less a small hazard, which is nearly the same on all days of a patient."""
    random = torch.Generator().manual_seed(4)
    patients = 4 * torch.rand(60, 1, generator=random)
    days = patients + 0.05 * torch.rand(60, 200, generator=random)
    y = 1 - 2 * fmt.unit_roundoff * days
    assert torch.equal(crowded(y, fmt)[0], round_to(y, fmt))
    shuffled = y.flatten()[torch.randperm(y.numel(), generator=random)].view_as(y)
    assert crowded(shuffled, fmt)[0] is shuffled


@pytest.mark.parametrize("fmt", FORMATS)
def test_what_an_error_may_turn_is_left_to_chance(fmt):
    """Half of the values are settled where errors reach a quarter of a step from half-way."""
    small = torch.rand(6000, generator=torch.Generator().manual_seed(5)) ** 4
    y = 1 + 4 * fmt.unit_roundoff * small
    step = 2 * fmt.unit_roundoff
    error = torch.full_like(y, step / 4 / TURNED_SIGMAS)
    moved, fixed = crowded(y, fmt, lambda: error)
    settled = fixed == 1
    near = (y - round_to(y, fmt)).abs() > step / 4
    assert torch.equal(settled, ~near)
    assert torch.equal(moved[settled], round_to(y, fmt)[settled])
    assert torch.equal(moved[~settled], y[~settled])
    assert crowded(y, fmt, lambda: None)[1] is None  # nothing is known of them
    assert crowded(y, fmt, lambda: 100 * error)[0] is y


class ByHand(nn.Module):
    """Running means through an exponential linear unit, whose small values weigh much."""

    def __init__(self, size):
        super().__init__()
        self.head, self.size = nn.Linear(64, 4, bias=False), size

    def forward(self, x):
        h = (x * self.size).cumsum(1) / 8
        return 20 * self.head(torch.where(h > 0, h, h.exp() - 1).flatten(1))


@pytest.mark.parametrize("power", [1, 3])
def test_small_values_beside_one_err_as_predicted(power):
    """Most exponentials are settled; those that an error turns move by a whole step."""
    torch.manual_seed(6)
    model, x = ByHand(0.01), torch.randn(400, 8, 8)
    x = x.abs() ** power * x.sign()
    with torch.no_grad():
        labels = model(x).argmax(1)
    report = check(Evaluation(model=model.eval(), data=[(x, labels)]), precision="bf16-true")
    assert report.standardised.spread < 1.5
