"""Which operation of a training step made NaN or infinity, and why, by float64's answer."""

import pytest
import torch
from torch import nn

from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.gradients.origins.origin import OriginWatch
from pytest_fp16.theory.rounding import FORMATS


def half(*values):
    return torch.tensor(values, dtype=torch.float16)


def found(operation, *arguments):
    origin = OriginWatch(nn.Identity())
    with Emulation("cuda"), origin:
        operation(*arguments)
    assert origin.found is not None
    return origin.found


@pytest.mark.parametrize(
    ("operation", "arguments", "mechanism"),
    [
        (torch.exp, (half(1.0, 12.0),), "overflow"),
        (torch.exp, (half(1000.0),), "overflow"),  # of float64, too
        (lambda x: x * 30000.0, (half(1.0, 3.0),), "overflow"),  # small arguments, large number
        (torch.sum, (half(*[4000.0] * 20),), "overflow"),
        (torch.div, (half(1.0, 0.0), half(2.0, 0.0)), "eps-underflow"),
        (torch.log, (half(1.0, 0.0),), "eps-underflow"),
        (torch.log1p, (half(-1.0),), "cancellation"),
        (torch.sqrt, (half(0.0, -1e-3),), "cancellation"),  # the zero is not where the NaN is
        (lambda x: x.pow(-1.0), (half(0.0),), "eps-underflow"),
    ],
)
def test_mechanism(operation, arguments, mechanism):
    assert found(operation, *arguments).mechanism == mechanism


def test_an_in_place_operation_is_judged_by_what_it_was_given():
    assert found(lambda x: x.mul_(60000.0), half(2.0)).mechanism == "overflow"


def test_the_result_that_did_not_fit_is_told():
    seen = found(torch.sum, half(*[4000.0] * 20))
    assert seen.reached == 80000
    assert seen.detail(FORMATS[torch.float16]) == "result 8.0e+04, float16 holds 6.55e+04"


class Broken(nn.Module):
    def forward(self, x):
        raise ValueError("no")


class Careful(nn.Module):
    """Goes on after an error of a part of its own."""

    def __init__(self):
        super().__init__()
        self.part, self.rest = Broken(), nn.Linear(2, 2)

    def forward(self, x):
        try:
            x = self.part(x)
        except ValueError:
            x = x + 1
        return self.rest(x)


def test_where_an_error_was_raised():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Broken()))
    origin = OriginWatch(model)
    with pytest.raises(ValueError, match="no"), origin:
        model(torch.zeros(1, 2))
    assert origin.failed_in == "1.0"


def test_the_operation_that_raised_and_none_where_a_statement_did():
    origin = OriginWatch(nn.Identity())
    with pytest.raises(IndexError), origin:
        torch.zeros(3)[torch.tensor([3])]
    assert origin.raised_by == "index"
    with pytest.raises(ValueError, match="no"), origin:
        Broken()(torch.zeros(3) + 1)
    assert origin.raised_by == ""


def test_what_is_behind_a_check_that_failed_and_nothing_behind_a_refusal():
    origin = OriginWatch(nn.Identity())
    with Emulation("cuda"), origin:
        half(6e4) * 2
    assert origin.behind(RuntimeError("all elements of input should be between 0 and 1"))
    assert origin.behind(RuntimeError("\"svd\" not implemented for 'Half'")) is None


def test_an_error_that_was_handled_is_nobodys():
    model = Careful()
    try:
        raise KeyError("one that the caller is handling")
    except KeyError:
        origin = OriginWatch(model)
        with origin:
            model(torch.zeros(1, 2))
    assert origin.failed_in == "<loss>"


class Refuses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        raise ValueError("no")


class Custom(nn.Module):
    def forward(self, x):
        return Refuses.apply(x)


def test_an_error_of_a_backward_pass_is_the_innermost_modules():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Custom()), nn.Linear(2, 2))
    origin = OriginWatch(model)
    with pytest.raises(ValueError, match="no"), origin:
        model(torch.zeros(1, 2)).sum().backward()
    assert origin.failed_in == "1.0"


def test_an_operation_over_many_tensors_has_the_name_it_has_over_one():
    def step(p, g, v):
        torch._foreach_addcdiv_([p], [g], [v])

    seen = found(step, half(1.0, 1.0), half(1.0, 0.0), half(1.0, 0.0))
    assert (seen.operation, seen.mechanism) == ("addcdiv", "eps-underflow")


class Penalised(nn.Module):
    """Returns where it was asked, so that a loss can ask for the slope there."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 1)
        nn.init.zeros_(self.body.weight)

    def forward(self, x):
        x = x.requires_grad_(True)
        return self.body(x), x


def test_a_backward_pass_that_follows_another_begins_in_the_loss():
    model = Penalised()
    origin = OriginWatch(model)
    with origin:
        z, x = model(torch.ones(2, 3))
        (slope,) = torch.autograd.grad(z.sum(), x, create_graph=True)
        (slope.square().sum(-1).sqrt().mean() + z.sum()).backward()
    assert (origin.found.module, origin.found.operation) == ("<loss>", "div")


def root_of_half(x, w):
    return (x.half() * w).sqrt().sum()


def test_an_operation_of_a_backward_pass_has_the_line_of_its_forward():
    w = torch.zeros(2, dtype=torch.float16, requires_grad=True)
    origin = OriginWatch(nn.Module())
    with origin:
        root_of_half(torch.ones(2), w).backward()
    seen = origin.found
    assert (seen.operation, seen.mechanism, seen.backward_of) == ("div", "eps-underflow", "sqrt")
    assert seen.source.endswith(f"test_origin.py:{root_of_half.__code__.co_firstlineno + 1}")
    assert "in the backward pass of sqrt" in seen.detail(FORMATS[torch.float16])


def test_an_infinite_constant_that_gives_nan_is_to_blame_where_nothing_else_is():
    def entropy(z):
        z = torch.where(torch.tensor([True, False]), z, torch.tensor(-1e8, dtype=z.dtype))
        log = z.log_softmax(-1)
        return log.exp() * log

    origin = OriginWatch(nn.Module())
    with origin:
        entropy(half(1.0, 2.0))
    assert origin.found is None
    assert (origin.cause.operation, origin.cause.mechanism) == ("mul", "mask-inf")
    assert "infinite in float16" in origin.cause.detail(FORMATS[torch.float16])


def test_a_mask_that_is_scaled_to_an_infinite_constant():
    def scaled(mask):
        origin = OriginWatch(nn.Identity())
        with Emulation("cuda"), origin:
            half(1.0, 2.0) + mask * -1e9
        return origin.found

    found = scaled(half(0.0, 1.0))
    assert (found.operation, found.mechanism) == ("mul", "mask-inf")
    said = "the constant -1e+09, to which a mask is scaled, is infinite in float16"
    assert found.detail(FORMATS[torch.float16]) == said
    assert scaled(half(1.0, 0.0) - 1).mechanism == "mask-inf"
    assert scaled(half(0.5, 2.0)).mechanism == "overflow"  # numbers that are scaled, no mask
    origin, x = OriginWatch(nn.Identity()), half(0.5, 0.25).requires_grad_()
    with Emulation("cuda"), origin:
        (x * 1e5).sum().backward()  # the slope of the sum is one
    assert (origin.found.operation, origin.found.mechanism) == ("mul", "overflow")


def test_a_quotient_by_a_constant_that_is_infinite_is_remembered():
    origin = OriginWatch(nn.Identity())
    count = half(2.0).new_tensor(80000.0)
    with Emulation("cuda"), origin:
        torch.div(half(2.0), count)
    assert origin.found is None
    assert (origin.emptied.operation, origin.emptied.mechanism) == ("div", "overflow")
    said = origin.emptied.detail(FORMATS[torch.float16])
    assert said == "a divisor that is infinite in float16 leaves nothing"


class Between(nn.Module):
    """Takes a root between its two layers, in its own forward."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)

    def forward(self, x):
        h = self.first(x)
        return self.last((h * h).sqrt())


def test_what_a_model_computes_between_its_layers_is_its_own_on_the_way_back():
    """The last module entered backwards is the layer behind it, whose backward pass is over."""
    model = Between().half()
    origin = OriginWatch(model)
    with Emulation("cuda"), origin:
        model(half(0.0, 0.0)[None]).sum().backward()
    assert (origin.found.module, origin.found.backward_of) == ("", "sqrt")


class Stubborn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return (grad * 1).mm(torch.ones(3, 3))  # of another size


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(2, 2), nn.LayerNorm(2)

    def forward(self, x):
        return self.norm(Stubborn.apply(self.first(x)))


def test_a_backward_pass_that_raises_is_of_the_module_that_ran_it_forwards():
    model = Outer()
    origin = OriginWatch(model)
    origin.begin()
    with origin, pytest.raises(RuntimeError, match="cannot be multiplied"):
        model(torch.ones(2, 2)).square().sum().backward()
    assert origin.failed_in == ""


def test_an_infinity_that_is_asked_for_is_no_loss():
    origin = OriginWatch(nn.Identity())
    with Emulation("cuda"), origin:
        half(1.0).new_full((3,), float("inf")).amin()
        assert origin.found is None
        half(1.0, 12.0).exp()
    assert origin.found.operation == "exp"


@pytest.mark.parametrize(
    ("operation", "part"),
    [
        (lambda x: torch.nn.functional.soft_margin_loss(x, torch.sign(x - 20)), "exp"),
        (lambda x: torch.nn.functional.mse_loss(30 * x, -x), "mul"),
    ],
)
def test_a_part_of_an_operation_that_leaves_the_range_is_told(operation, part):
    # The whole would fit: a mean of squares, and a logarithm.
    seen = found(operation, half(12.0, *[0.5] * 999))
    assert (seen.mechanism, seen.part) == ("overflow", part)
    assert seen.detail(FORMATS[torch.float16]).endswith(f"float16 holds 6.55e+04, in its {part}")


def test_the_mean_over_many_pixels_is_told_by_their_sum():
    z, target = torch.zeros(1, 2, 300, 300, dtype=torch.float16), torch.zeros(1, 300, 300).long()
    seen = found(lambda: torch.nn.functional.cross_entropy(z, target))
    assert (seen.operation, seen.mechanism) == ("nll_loss2d_forward", "overflow")
    assert seen.reached == 90000
