"""Tables that a model has made in an earlier run of the user's."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.kept_attributes import held_by, kept_tables

SIZE = 16


def made(x):
    """Places far from zero, which 16-bit ones cannot tell apart."""
    return 3000 + torch.arange(SIZE, device=x.device).to(x.dtype)


class Places(nn.Module):
    """The base of all: angles of places."""

    def forward(self, x):
        return torch.cat([x * torch.cos(self.table(x)), x * torch.sin(self.table(x))], -1)


class ByName(Places):
    def table(self, x):
        if not hasattr(self, "places"):
            self.places = made(x)
        return self.places


class ByNone(Places):
    def __init__(self):
        super().__init__()
        self.places, self.unused = None, torch.ones(3)

    def table(self, x):
        if self.places is None:
            self.places = made(x)
        return self.places


class ByLength(Places):
    def __init__(self):
        super().__init__()
        self.width, self.length, self.places, self.more = 7, 0, None, None
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def table(self, x):
        if x.shape[-1] > self.length:
            self.length = x.shape[-1]
            self.places, self.more = made(x), (made(x), 1)
        return self.places * self.scale


class ByFlag(Places):
    def __init__(self):
        super().__init__()
        self.ready = False

    def table(self, x):
        if not self.ready:
            self.places, self.ready = made(x), True
        return self.places


class ByDtype(Places):
    def __init__(self):
        super().__init__()
        self.made_for = self.places = None

    def table(self, x):
        if self.made_for != x.dtype:
            self.made_for, self.places = x.dtype, made(x)
        return self.places


class InDict(Places):
    def __init__(self):
        super().__init__()
        self.cache = {"name": "places"}

    def table(self, x):
        if SIZE not in self.cache:
            self.cache[SIZE] = made(x)
        return self.cache[SIZE]


class InBuffer(Places):
    def __init__(self):
        super().__init__()
        self.register_buffer("places", None, persistent=False)

    def table(self, x):
        if self.places is None:
            self.register_buffer("places", made(x), persistent=False)
        return self.places


class Two(Places):
    """One is asked for after the other."""

    def __init__(self):
        super().__init__()
        self.constant = torch.ones(1)

    def table(self, x):
        if not hasattr(self, "places"):
            self.places = made(x)
        if not hasattr(self, "more"):
            self.more = self.places + 0
        return self.more * self.constant.to(x)


CLASSES = [ByName, ByNone, ByLength, ByFlag, ByDtype, InDict, InBuffer, Two]


class Whole(nn.Module):
    def __init__(self, places):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([places(), places()])
        self.head = nn.Linear(2 * SIZE, 3)

    def forward(self, x):
        return self.head(sum(layer(x) for layer in self.layers))


X = torch.randn(60, SIZE, generator=torch.Generator().manual_seed(1))


def run_of(model):
    def run():
        with torch.no_grad():
            return model(X)

    return run


@pytest.mark.parametrize("places", CLASSES)
def test_tables_are_told_from_what_was_made_with_the_model(places):
    model = Whole(places)
    run = run_of(model)
    assert kept_tables(model, held_by(model), run) == [] or places in (ByNone, Two, ByLength)
    run()
    before = [dict(vars(m)) for m in model.modules()]
    found = kept_tables(model, held_by(model), run)
    assert all(
        a.keys() == b.keys() and all(a[n] is b[n] for n in a)
        for a, b in zip(before, [vars(m) for m in model.modules()], strict=True)
    )
    assert found
    for table in found:
        assert table.modules == ("layers.0", "layers.1")
        table.forget(model)
    kept = [t for m in model.layers for t in vars(m).values() if isinstance(t, torch.Tensor)]
    kept += [t for m in model.layers for t in m.buffers()]
    assert all(len(t.flatten()) != SIZE for t in kept)  # places are gone, constants are not
    model.bfloat16()
    model(X.bfloat16())
    tables = [m.cache[SIZE] if places is InDict else m.places for m in model.layers]
    assert [t.dtype for t in tables] == [torch.bfloat16] * 2
    if places is InDict:
        assert model.layers[0].cache["name"] == "places"


@pytest.mark.parametrize("places", CLASSES)
@pytest.mark.parametrize("precision", ["bf16-true", "16-mixed"])
def test_a_check_is_the_same_before_and_after_a_run(places, precision):
    labels = run_of(Whole(places))().argmax(-1)
    reports = []
    for used in (False, True):
        model = Whole(places)
        if used:
            run_of(model)()
        reports.append(check(Evaluation(model, [(X, labels)]), precision=precision))
    fresh, after = reports
    assert (
        fresh.verdict
        == after.verdict
        == ("equivalent" if "mixed" in precision else "not equivalent")
    )
    assert fresh.metric.candidate == after.metric.candidate
    assert fresh.forecast.verdict == after.forecast.verdict
    told = [w for w in after.warnings if "what an earlier run has made" in w]
    assert told
    assert told[0].startswith("layers.0.")
    assert "(and 1 more)" in told[0]
    assert not any("an earlier run" in w for w in fresh.warnings)


def test_an_earlier_run_may_have_been_of_longer_inputs():
    class Sized(ByLength):
        def table(self, x):
            if x.shape[-1] > self.length:
                self.length = x.shape[-1]
                self.places = 3000 + torch.arange(self.length, device=x.device).to(x.dtype)
            return self.places[: x.shape[-1]]

    model = Sized()
    with torch.no_grad():
        model(torch.randn(2, 2 * SIZE))
    (table,) = kept_tables(model, held_by(model), run_of(model))
    assert model.length == 2 * SIZE
    table.forget(model)
    assert (model.length, model.places, model.width) == (0, None, 7)


class State(nn.Module):
    """Goes on from where it was."""

    def __init__(self):
        super().__init__()
        self.hidden = None

    def forward(self, x):
        self.hidden = x if self.hidden is None else 0.5 * (self.hidden + x)
        return self.hidden


class Watched(nn.Module):
    def forward(self, x):
        self.features = x.cos()
        return self.features


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.randn(SIZE)

    def forward(self, x):
        return x * self.table


@pytest.mark.parametrize("kind", [State, Watched, Constant])
def test_what_is_no_table_is_left(kind):
    model = kind()
    run = run_of(model)
    run()
    assert held_by(model)
    assert kept_tables(model, held_by(model), run) == []


def test_a_model_that_holds_nothing_is_not_run():
    model = nn.Sequential(nn.LSTM(SIZE, 4), nn.BatchNorm1d(4))
    assert held_by(model) == {}
    assert kept_tables(model, {}, lambda: pytest.fail("it was run")) == []


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_scripts_hold_none():
    assert held_by(torch.jit.script(nn.Linear(2, 2))) == {}
