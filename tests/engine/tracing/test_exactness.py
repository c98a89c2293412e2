"""Results that no format rounds, and those that only look so."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.tracing.exactness import beside_zeros, exact_results, powers, selected
from pytest_fp16.engine.tracing.shadow import Cell, Shadow
from pytest_fp16.theory.rounding import BFLOAT16, FLOAT16, round_to

FORMATS = [FLOAT16, BFLOAT16]


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def shadow(values, dtype=torch.float16):
    return Shadow(values, dtype, Cell(True, True))


def test_beside_zeros_a_sum_is_exact():
    x, parts = drawn(40, 30), drawn(40, 30).relu()
    exact = beside_zeros(x + parts, [x, parts])
    assert torch.equal(exact, (parts == 0).float())
    row = torch.zeros(30)
    row[7] = 0.3
    assert torch.equal(beside_zeros(x + row, [x, row]), (row == 0).float().expand(40, 30))
    assert beside_zeros(x + x.sigmoid(), [x, x.sigmoid()]) is None
    assert beside_zeros(x, []) is None


@pytest.mark.parametrize("name", ["add", "sub"])
def test_where_steps_are_those_of_the_smallest_numbers_a_sum_is_exact(name):
    small, large = (round_to(size * drawn(40, 30), FLOAT16) for size in (3e-5, 1e-3))
    second = torch.where(drawn(30) > 0, small.flip(0), large)
    y = small + second if name == "add" else small - second
    exact = exact_results(name, [shadow(small), shadow(second)], {}, y, [FLOAT16])
    assert torch.equal(exact == 1, y.abs() < 2 * FLOAT16.smallest_normal)
    assert torch.equal(round_to(y, FLOAT16)[exact == 1], y[exact == 1])
    assert not torch.equal(round_to(y, FLOAT16), y)
    for args, formats in (
        ([shadow(small), 1e-5], [FLOAT16]),  # a number is on no grid
        ([shadow(small), shadow(second)], FORMATS),  # bfloat16 has finer steps there
    ):
        assert exact_results(name, args, {}, y, formats) is None


def test_powers_of_two_are_told():
    values = torch.tensor([1.0, -2.0, 0.125, 3.0, 0.0, torch.inf, torch.nan, 1.5])
    assert powers(values).tolist() == [True, True, True, *[False] * 5]
    assert powers(torch.tensor([4, 6])).tolist() == [True, False]


def product(x, factor, fmt, name="mul", swapped=False):
    other = shadow(factor, torch.float32) if isinstance(factor, torch.Tensor) else factor
    args = (shadow(x, fmt.dtype), other)
    y = x / factor if name == "div" else x * factor
    return exact_results(name, args[::-1] if swapped else args, {}, y, [fmt]), y


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", ["mul", "div"])
def test_what_is_scaled_by_a_power_of_two_is_exact_and_nothing_else(fmt, name):
    x = round_to(drawn(40, 30), fmt)
    signs = torch.where(drawn(30) > 0, 2.0, -0.3)
    for factor, wanted in ((0.125, 1.0), (-2, 1.0), (3, None), (signs, (signs == 2).float())):
        exact, y = product(x, factor, fmt, name)
        if wanted is None:
            assert exact is None
            continue
        assert torch.equal(exact, torch.as_tensor(wanted).expand(40, 30))
        assert torch.equal(round_to(y, fmt)[exact == 1], y[exact == 1])


def test_a_power_of_two_divided_is_not_exact_and_multiplied_it_is():
    x = round_to(drawn(40, 30), FLOAT16)
    assert product(x, 4.0, FLOAT16, swapped=True)[0].all()
    args = (4.0, shadow(x))
    assert exact_results("div", args, {}, 4.0 / x, [FLOAT16]) is None
    floors = {"rounding_mode": "floor"}
    assert exact_results("div", (shadow(x), 4.0), floors, (x / 4).floor(), [FLOAT16]) is None


def test_below_the_normal_range_bits_may_be_lost():
    x = round_to(drawn(40, 30), FLOAT16)
    exact, y = product(x, 2.0**-14, FLOAT16)
    assert torch.equal(exact, (y.abs() >= 2.0**-14).float())
    both = exact_results("mul", (shadow(x, torch.bfloat16), 2.0**-14), {}, y, [BFLOAT16, FLOAT16])
    assert torch.equal(both, exact)  # where float16 shares the errors


@pytest.mark.parametrize("batch", [(), (5,)])
def test_a_product_of_matrices_with_one_term_is_exact(batch):
    rows = torch.eye(12)[torch.randperm(12, generator=torch.Generator().manual_seed(0))]
    a = (2 * rows).expand(*batch, 12, 12).clone()
    b = drawn(*batch, 12, 7)
    assert selected(a, b).all()
    a[..., 3, :] = 0.3  # many terms
    a[..., 4, :] *= 1.5  # one, by three
    exact = selected(a, b)
    assert not exact[..., 3:5, :].any()
    assert exact[..., 5:, :].all()
    assert selected(drawn(*batch, 12, 12).relu(), b) is None
    assert selected(drawn(*batch, 12, 12), b) is None


class Turned(nn.Module):
    """Turns points about one of them by a product of matrices, and scales what comes out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.angle = nn.Linear(16, 1)

    def forward(self, x):
        angle = self.angle(x)[:, 0]
        zero, one = torch.zeros_like(angle), torch.ones_like(angle)
        turn = torch.stack(
            [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero, zero, zero, one], 1
        ).view(-1, 3, 3)
        centre = torch.eye(3, dtype=angle.dtype).repeat(len(x), 1, 1)
        centre[:, :2, 2] = 0.3
        back = centre.clone()
        back[:, :2, 2] = -0.3
        return 0.25 * (centre @ turn @ back).flatten(1)


@pytest.mark.parametrize("name", ["16-true", "bf16-true", "bf16-mixed"])
def test_a_rotation_about_a_point_rounds_where_it_rounds(name):
    data = list(drawn(400, 16).split(200))
    subject = Evaluation(Turned(), data, labelled=False, task="regression")
    assert 0.8 < check(subject, precision=name, target="cuda").standardised.spread < 1.5


class Packed(nn.Module):
    """Two bytes in one number, and taken apart again."""

    def forward(self, x):
        high, low = x.flatten(1)[:, ::2], x.flatten(1)[:, 1::2]
        key = high * 256 + low
        high = torch.floor(key / 256)
        return torch.cat([high, key - 256 * high], 1)


def test_what_is_computed_of_inputs_without_errors_is_known():
    """240 beside 256 · 250 is rounded up, and carries: no random error does."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 17, (200, 16), generator=generator).float() * 15
    subject = Evaluation(Packed().eval(), [x], labelled=False, task="regression")
    report = check(subject, precision="16-true", target="cuda")
    loss = report.metric.loss
    assert loss > 0.01
    assert abs(report.forecast.metric_loss - loss) < 0.1 * loss


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", ["fmod", "remainder"])
@pytest.mark.parametrize("divisor", [257.0, 0.1, "tensor"])
def test_what_a_division_leaves_is_exact(fmt, name, divisor):
    divided = getattr(torch, name)
    x = round_to(900 * drawn(400), fmt)
    by = round_to(30 * drawn(400) + 0.5, fmt) if divisor == "tensor" else divisor
    y = divided(x, by)
    given = shadow(by, fmt.dtype) if divisor == "tensor" else by
    exact = exact_results(name, [shadow(x, fmt.dtype), given], {}, y, [fmt])
    if divisor == 0.1 or (divisor == 257.0 and fmt is BFLOAT16):  # is no number of the format
        assert exact is None
        return
    assert float(exact.mean()) > (0.9 if name == "fmod" else 0.4)
    assert torch.equal(round_to(y, fmt)[exact == 1], y[exact == 1])
    if name == "remainder" and divisor == 257.0:  # there the divisor is added
        assert not torch.equal(round_to(y, fmt), y)


def test_an_index_taken_by_a_remainder_stays_in_its_table():
    """Off by half a step at random it would be 257 now and then, and stop the program."""

    class Hashed(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(257, 10)

        def forward(self, x):
            return self.table(((x * 13 + 700) % 257).long())

    torch.manual_seed(0)
    x = torch.rand(50000) * 400
    model = Hashed().eval()
    subject = Evaluation(model=model, data=[(x, model(x).argmax(-1))])
    report = check(subject, precision="16-true")
    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert "expected loss" in report.forecast.reason
