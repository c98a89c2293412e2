"""One line in float32: what it computes, and what is left alone."""

import copy
import pickle
import sys
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from pytest_fp16.diagnosis.upcast import applied_to, lines_in_float32
from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.errors import ModelError


def here():
    """File and number of the line below the one that asks."""
    frame = sys._getframe(1)
    return f"{__file__}:{frame.f_lineno + 1}"


class Squares(nn.Module):
    line = ""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.first(x)
        Squares.line = here()
        norm = (x * 300).pow(2).sum(-1, keepdim=True).sqrt()
        return self.last(x * 300 / norm)


def inputs():
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Squares().eval()
    with torch.no_grad():
        model(inputs())
    return model


def outputs(model, autocast=False):
    low = inputs() if autocast else inputs().half()
    with torch.no_grad(), torch.autocast("cpu", torch.float16, enabled=autocast):
        return model(low)


def test_the_line_is_float32_and_a_layer_takes_its_result_back(model):
    exact = model(inputs())
    model.half()
    assert not torch.allclose(
        outputs(model).float(), exact, atol=1e-2
    )  # infinity, so all are equal
    upcast = lines_in_float32(copy.deepcopy(model), [Squares.line])
    assert outputs(upcast).dtype == torch.float16
    torch.testing.assert_close(outputs(upcast).float(), exact, atol=3e-3, rtol=0)


def test_under_autocast(model):
    exact = model(inputs())
    torch.testing.assert_close(
        outputs(lines_in_float32(model, [Squares.line]), True).float(), exact, atol=3e-3, rtol=0
    )


@pytest.mark.parametrize("autocast", [False, True])
def test_another_line_changes_nothing(model, autocast):
    if not autocast:
        model.half()
    name, _, number = Squares.line.rpartition(":")
    for line in (f"{name}:{int(number) + 40}", f"{name}.other:{number}"):
        watched = lines_in_float32(copy.deepcopy(model), [line])
        want = outputs(model, autocast)
        torch.testing.assert_close(outputs(watched, autocast), want, rtol=0, atol=0, equal_nan=True)


def test_a_float32_model_is_left_alone(model):
    want = model(inputs())
    torch.testing.assert_close(
        lines_in_float32(model, [Squares.line])(inputs()), want, rtol=0, atol=0
    )


def test_what_is_written_in_place_stays_float32_under_its_name():
    class Writes(nn.Module):
        def forward(self, x):
            kept = x
            Squares.line = here()
            kept += x.mul(300).pow(2).mul(1e-9)
            return x

    plain = Writes()
    x = inputs().half()
    out = plain(x.clone())
    watched = lines_in_float32(plain, [Squares.line])(x.clone())
    exact = x.float() + (x.float() * 300).pow(2) * 1e-9
    torch.testing.assert_close(watched, exact, rtol=1e-6, atol=1e-6)
    assert not torch.equal(watched, out.float())


class Divided(nn.Module):
    """A statement, whose result nobody binds, and a view of what it writes."""

    line = ""

    def forward(self, x):
        x = x + 0
        first = x[:, 0]
        Divided.line = here()
        x.div_(1e-4)
        x.mul_(1e-4)
        return x.log_softmax(-1), first


@pytest.mark.parametrize("emulated", [False, True])
def test_a_statement_in_place_is_tried_out_of_place(emulated):
    low = (10 + inputs()).half()
    model = Divided()
    exact, _ = model(low.float())
    assert not model(low)[0].isfinite().all()
    raised = lines_in_float32(model, [Divided.line])
    with Emulation("cuda") if emulated else nullcontext():
        got, first = raised(low)
    torch.testing.assert_close(got.float(), exact, rtol=0, atol=1e-3)
    torch.testing.assert_close(first, low[:, 0], rtol=0, atol=0.01)  # it saw both writes
    done = applied_to(raised)
    assert (list(done.computed), done.out_of_place) == (["div"], True)


class Placed(nn.Module):
    line = ""

    def forward(self, x):
        out = torch.zeros_like(x)
        Placed.line = here()
        out[torch.arange(len(x))] = x * 2
        return out


def test_what_is_assigned_on_the_line_is_there_where_16_bits_are_emulated():
    low = inputs().half()
    model = Placed()
    model(low)
    upcast = lines_in_float32(model, [Placed.line])
    with Emulation("cuda"):
        got = upcast(low)
    torch.testing.assert_close(got, low * 2, rtol=0, atol=0)


def test_layers_on_the_same_line_stay_in_16_bits():
    class OneLine(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            Squares.line = here()
            return self.layer(x) + 0

    model = OneLine().half()
    seen = []
    model.layer.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    with torch.no_grad():
        model(inputs().half())
        lines_in_float32(model, [Squares.line])(inputs().half())
    assert seen == [torch.float16] * 2


def test_it_can_be_copied_and_pickled(model):
    watched = lines_in_float32(model.half(), [Squares.line])
    want = outputs(watched)
    assert torch.equal(outputs(copy.deepcopy(watched)), want)
    plain = lines_in_float32(nn.Sequential(nn.Linear(8, 4)), ["file.py:3"])
    assert torch.equal(pickle.loads(pickle.dumps(plain))(inputs()), plain(inputs()))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_a_scripted_model_is_refused():
    with pytest.raises(ModelError, match="line by line"):
        lines_in_float32(torch.jit.script(nn.Linear(2, 2)), ["file.py:3"])


class Counted(nn.Module):
    line = ""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 8)

    def forward(self, x):
        x = self.head(x)
        Counted.line = here()
        places = torch.arange(4000, 4008, dtype=x.dtype)
        return x * 0 + places % 8


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_numbers_made_on_the_line_are_made_in_float32(low):
    plain = Counted().eval()
    with torch.no_grad():
        plain(inputs())
        raised = lines_in_float32(copy.deepcopy(plain).to(low), [Counted.line])
        exact = raised(inputs().to(low))
        rounded = copy.deepcopy(plain).to(low)(inputs().to(low))
    assert torch.equal(exact.float(), plain(inputs()).detach())
    assert not torch.equal(rounded.float(), exact.float())


class Timed(nn.Module):
    """A time in the features' dtype, whose waves are computed in float64 and cast to its own."""

    line = ""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x, t):
        Timed.line = here()
        t = t.to(x.dtype)
        waves = torch.outer(t.type(torch.float64), torch.arange(8, dtype=torch.float64)).sin()
        return self.head(waves.to(t.dtype) + x)


def test_what_is_float32_is_followed_through_float64():
    torch.manual_seed(0)
    x, t, model = inputs().half(), torch.rand(5) * 100, Timed()
    with torch.no_grad():
        wanted = model(x.float(), t)
        model.half()
        assert not torch.allclose(model(x, t).float(), wanted, atol=1e-2)
        lines_in_float32(model, [Timed.line])
        torch.testing.assert_close(model(x, t).float(), wanted, atol=5e-3, rtol=1e-2)
    assert "head" in applied_to(model).taken


class Looks(nn.Module):
    """Asks on the line what a tensor is."""

    line = ""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        Looks.line = here()
        x = x.square() if x.is_floating_point() and not x.is_complex() else x
        return self.last(x)


def test_a_look_at_what_a_tensor_is_is_no_computation():
    model = Looks().eval()
    with torch.no_grad():
        model(inputs())
    model = lines_in_float32(model.half(), [Looks.line])
    outputs(model)
    assert list(applied_to(model).computed) == ["square"]
