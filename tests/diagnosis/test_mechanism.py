"""Each mechanism, told from what is measured at the origin."""

import linecache

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.diagnosis.mechanism import carrier, explain, stopped, worth_watching
from pytest_fp16.diagnosis.origin import find_origin
from pytest_fp16.diagnosis.stop import Raised


def running(x):
    total = torch.full_like(x[:, :1], 4096.0)
    for i in range(32):
        total = total + x[:, i : i + 1]
    return x * (total - 4096.0) / 32


def masked(x):
    keep = (x > 1e9).to(x.dtype)  # nothing is kept: uniform in float32, NaN where −1e9 is −inf
    return x * (0 * x + (1 - keep) * -1e9).softmax(-1)


def numbered(x):
    """The place of every value in a long row, told by a running sum of ones."""
    ones = torch.ones_like(x).repeat(1, 160)
    places = ones.cumsum(-1)
    return x * (places[:, 1::2] - places[:, ::2]).unflatten(-1, (32, 80)).prod(-1)


def stalled(x):
    """Small steps on a large start: a running sum that hardly moves."""
    steps = torch.cat([x[:, :1] * 0 + 4000.0, x.sigmoid() * 0.4], -1).cumsum(-1)
    return x * (steps[:, 1:] - 4000.0)


PARTS = {
    "overflow": (lambda x: x / (x * x).sum(-1, keepdim=True).sqrt().clamp(min=1), 400.0),
    "underflow": (lambda x: x / (x * x).sum(-1, keepdim=True).sqrt(), 1e-5),
    "eps-underflow": (lambda x: (x * 0) / ((x * 0).abs().amax(-1, keepdim=True) + 1e-9) + x, 1.0),
    "absorption": (running, 1.0),
    "cancellation": (
        lambda x: x * ((((x + 50) ** 2).mean(-1, keepdim=True)
                       - (x + 50).mean(-1, keepdim=True) ** 2) - 0.5),
        1.0,
    ),
    "precision-loss": (lambda x: torch.sin((x + 3.0) * 900.0), 1.0),
    "mask-inf": (masked, 1.0),
}  # fmt: skip


def explained(comparison, model, name="16-true"):
    under = comparison(model, name)
    origin = find_origin(under)
    operations = under.side_by_side(worth_watching(origin).__contains__)
    return explain(origin, operations)


@pytest.mark.parametrize("name", ["16-true", "bf16-true"])
@pytest.mark.parametrize("function", [numbered, stalled])
def test_a_running_sum_that_stalls_absorbs(make_net, comparison, function, name):
    culprit = explained(comparison, make_net(function, steps=20), name)
    assert (culprit.operation, culprit.mechanism) == ("cumsum", "absorption")


def test_a_running_sum_of_few_terms_does_not(make_net, comparison):
    def short(x):
        return torch.sin(900 * x.softmax(-1).cumsum(-1))

    culprit = explained(comparison, make_net(short, steps=20))
    assert culprit.mechanism == "precision-loss"


@pytest.mark.parametrize("mechanism", PARTS)
def test_each_mechanism(make_net, comparison, mechanism):
    function, gain = PARTS[mechanism]
    culprit = explained(comparison, make_net(function, gain=gain, steps=20))
    assert culprit.mechanism == mechanism
    assert culprit.module == "core.part"
    assert any(c.isdigit() for c in culprit.evidence)
    assert "test_mechanism.py" in culprit.source


def test_a_cast_in_which_values_vanish_is_the_culprit_itself(make_net, comparison):
    """Autocast casts both factors; the second cast, of sound values, is no consumer."""

    def product(x):
        chances = 1e-9 * x.softmax(-1).unsqueeze(1)
        passes = torch.softmax(x.unsqueeze(1) * x.unsqueeze(2), -1)
        y = (chances @ passes).squeeze(1)
        return x * (y / y.sum(-1, keepdim=True))

    culprit = explained(comparison, make_net(product, steps=5), "16-mixed")
    assert (culprit.operation, culprit.mechanism) == ("_to_copy", "underflow")


def test_what_takes_coarse_operands_is_found_behind_both_casts(make_net, comparison):
    def product(x):
        angle = (3 + x.tanh().exp()).unsqueeze(1)  # in float32, and cast for the product
        return x * torch.sin((angle @ torch.eye(x.shape[-1]).softmax(-1).log()).squeeze(1))

    culprit = explained(comparison, make_net(product, steps=5), "16-mixed")
    assert culprit.mechanism in ("precision-loss", "cancellation")
    assert culprit.operation != "_to_copy"


def test_what_copies_operands_into_shape_is_not_what_takes_them(make_net, comparison):
    """diffusers#13920: a broadcast product of float32 operands, which autocast casts and copies."""

    def turned(x):
        place = (torch.arange(16).view(1, 8, 2) + 65536).expand(len(x), -1, -1)
        rate = torch.linspace(0.1, 1, 4)[None, None, :, None].expand(len(x), 2, -1, 1)
        angle = rate @ place.transpose(1, 2)[:, :, None].float()
        return x * angle.flatten(1)[:, : x.shape[-1]].cos()

    culprit = explained(comparison, make_net(turned, steps=5), "bf16-mixed")
    assert (culprit.operation, culprit.mechanism) == ("bmm", "precision-loss")


def test_an_epsilon_that_is_compared_with_is_one_too(make_net, comparison):
    def guarded(x):
        size = (x * 0).abs().amax(-1, keepdim=True)
        dead = (size < 1e-9).to(x.dtype)  # never true where 1e-9 is zero
        return x + x * 0 / (size + dead)

    culprit = explained(comparison, make_net(guarded, steps=20))
    assert (culprit.operation, culprit.mechanism) == ("lt", "eps-underflow")
    assert "1e-09" in culprit.evidence


def test_the_epsilon_that_bfloat16_holds_is_no_culprit(make_net, comparison):
    function, gain = PARTS["eps-underflow"]
    under = comparison(make_net(function, gain=gain, steps=20), "bf16-true")
    origin = find_origin(under)
    assert origin is None or not origin.damage.lost.any()


def test_a_constant_that_torch_refuses_is_a_mask():
    error = RuntimeError("value cannot be converted to type at::Half without overflow")
    assert stopped(Raised("a", "masked_fill", None, error), "float16").mechanism == "mask-inf"
    error = RuntimeError("\"x\" not implemented for 'Half'")
    assert stopped(Raised("a", "x", None, error), "float16").mechanism == "unsupported-op"


@pytest.mark.parametrize(
    "function",
    [
        lambda part, x: part.head(x) * part.unit,
        lambda part, x: part.head(x) / 90 + part.unit,
    ],
)
def test_a_unit_or_an_offset_beyond_the_range_is_no_mask(make_net, comparison, function):
    class InUnits(nn.Module):
        """Values in units of a buffer, and back."""

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(32, 32)
            self.register_buffer("unit", torch.tensor(9e4))

        def forward(self, x):
            return torch.tanh(function(self, x) / 9e4)

    culprit = explained(comparison, make_net(InUnits(), steps=5))
    assert (culprit.module, culprit.mechanism) == ("core.part", "overflow")
    assert culprit.operation in ("mul", "add")


def test_weights_beyond_the_range_are_an_overflow_and_no_mask(make_net, comparison):
    linear = nn.Linear(32, 32)
    model = make_net(nn.Sequential(linear, nn.LayerNorm(32)), steps=5)
    with torch.no_grad():
        linear.weight.mul_(1e7)
    culprit = explained(comparison, model)
    assert (culprit.module, culprit.mechanism) == ("core.part.0", "overflow")


class ByDtype(nn.Module):
    """Does something else in 16 bits, and nothing before that has an error."""

    def forward(self, x):
        x = x.flatten(1).relu()
        return (x if x.dtype == torch.float32 else x.flip(-1))[:, :10]


def test_an_operation_without_an_error_is_no_culprit(comparison):
    assert explained(comparison, ByDtype()) is None


class _Whitened(nn.Module):
    """E[x²] - E[x]² of values far from zero, and the mean taken off on the next line."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = 0.5 * x.flatten(1) + 12
        mean = x.mean(-1, keepdim=True)
        variance = (x * x).mean(-1, keepdim=True) - mean * mean
        return self.head((x - mean) * (variance + 1e-5).abs().rsqrt())


def test_of_two_differences_side_by_side_the_ruined_one_is_named(comparison):
    culprit = explained(comparison, _Whitened(), "bf16-true")
    assert (culprit.operation, culprit.mechanism) == ("sub", "cancellation")
    assert "(x * x).mean" in linecache.getline(*_line(culprit.source))


def _line(source):
    name, _, number = source.rpartition(":")
    return name, int(number)


def softly(x):
    """The least of three sums, by a logarithm of a sum of exponentials: nothing is lost by it."""
    total = 30 * x.abs() + 900
    paths = torch.stack([total, total + x.sigmoid() + 0.3, total + x.tanh().abs() + 0.7], -1)
    largest = -paths.amin(-1)
    return -((-paths - largest.unsqueeze(-1)).exp().sum(-1).log() + largest)


def spread_of_few(x):
    """What a difference leaves is all that is used."""
    total = 30 * x.abs() + 900
    return total + x.sigmoid() - total


def of_large(function):
    """A function of features whose level is hundreds, brought back to their size."""
    return lambda x: (function(x) - 900) / 30 if function is softly else function(x) * 3


@pytest.mark.parametrize(
    ("function", "mechanism"), [(softly, "precision-loss"), (spread_of_few, "cancellation")]
)
def test_a_difference_that_is_put_back_has_cancelled_nothing(
    make_net, comparison, function, mechanism
):
    under = comparison(make_net(of_large(function), steps=20), "bf16-true")
    origin = find_origin(under)
    operations = under.side_by_side(worth_watching(origin).__contains__)
    culprit = explain(origin, operations, carrier(under, origin))
    assert culprit.mechanism in (mechanism, "absorption")
    assert explain(origin, operations).mechanism != "precision-loss"


def moments(x):
    """Three differences on one line, of which each alone does the damage."""
    u, v = 30 + x.sigmoid() / 3, 31 + x.tanh() / 3
    uu, uv, vv = u * u + 0.1 * x.sin(), u * v + 0.1 * x.cos(), v * v + 0.1 * x.cos()
    return torch.stack([uu - u * u, uv - u * v, vv - v * v]).abs().amax(0)


@pytest.mark.parametrize("name", ["16-true", "bf16-true"])
def test_differences_of_one_line_do_the_damage_together(make_net, comparison, name):
    under = comparison(make_net(moments, steps=20), name)
    origin = find_origin(under)
    operations = under.side_by_side(worth_watching(origin).__contains__)
    culprit = explain(origin, operations, carrier(under, origin))
    assert (culprit.operation, culprit.mechanism) == ("sub", "cancellation")


def settled(x):
    """A fixed point, sought until steps are small: the difference only says when to stop."""
    state = torch.zeros_like(x)
    for _ in range(50):
        last, state = state, torch.tanh(0.7 * state.roll(1, -1) + x)
        if (state - last).norm() < 1e-5 * state.norm():
            break
    return state


def test_a_difference_that_only_ends_a_loop_has_cancelled_nothing(make_net, comparison):
    under = comparison(make_net(settled, steps=20), "bf16-true")
    origin = find_origin(under)
    operations = under.side_by_side(worth_watching(origin).__contains__)
    assert explain(origin, operations).mechanism == "cancellation"
    assert explain(origin, operations, carrier(under, origin)).mechanism == "precision-loss"


class Late(nn.Module):
    """Takes what was cast to float32 again, when its digits are gone."""

    def __init__(self, stored):
        super().__init__()
        self.register_buffer("alpha", torch.tensor([0.9991, 0.99]))
        self.rows, self.stored = nn.Embedding(6000, 8), stored

    def forward(self, x):
        if self.stored:
            return x / (1 - self.alpha.float()).repeat(4) ** 0.5
        return self.rows(x.float()[:, 0].long())


@pytest.mark.parametrize(("stored", "variant"), [(True, "stored digits"), (False, "whole numbers")])
def test_what_is_widened_too_late_is_laid_to_its_cast(stored, variant):
    torch.manual_seed(0)
    x = torch.randn(200, 8) if stored else torch.randint(0, 5980, (200, 1)).float()
    made = Evaluation(model=Late(stored).eval(), data=[x], labelled=False)
    report = check(made, precision="bf16-true")
    assert report.culprit.variant == variant
    assert "brings" in report.culprit.evidence or "bring, as" in report.culprit.evidence


def test_a_number_that_guards_nothing_is_no_epsilon(make_net, comparison):
    """ncnn#6979: a polynomial by Horner's rule, whose last coefficients are zero in float16."""

    def polynomial(x):
        square = (x + 3) ** 2
        return x + (square * 0 + 2e-8) * square * 1e7

    culprit = explained(comparison, make_net(polynomial, steps=5))
    assert (culprit.operation, culprit.mechanism) == ("add", "eps-underflow")
    assert culprit.variant == "coefficient"


def test_one_that_leaves_infinity_where_it_is_lost_is_one(make_net, comparison):
    culprit = explained(comparison, make_net(PARTS["eps-underflow"][0], steps=5))
    assert (culprit.mechanism, culprit.variant) == ("eps-underflow", None)
