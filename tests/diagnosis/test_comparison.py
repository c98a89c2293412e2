"""The few inputs of a diagnosis, and the two programs on them."""

import linecache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.diagnosis.comparison import FEW, fewer

X = torch.arange(20.0).unsqueeze(1)


@given(st.sets(st.integers(0, 19)), st.integers(1, 25))
def test_inputs_that_went_wrong_come_first(wrong, most):
    sample = fewer(X, 20, 7, sorted(wrong), most)
    rows = set(sample.inputs[:, 0].int().tolist())
    assert len(sample.inputs) == len(rows) == min(most, 20)
    assert sample.seed == 7
    assert len(rows & wrong) == min(most, len(wrong))


def test_a_few_are_few():
    assert len(fewer(X, 20, 0, []).inputs) == FEW


def test_what_is_wanted_is_the_reference_on_inputs_of_its_own(make_net, comparison):
    class Writes(nn.Module):
        def forward(self, x):
            return x.mul_(0.5)

    found = comparison(make_net(Writes(), steps=0))
    before = found.sample.inputs.clone()
    first = found.record()
    assert torch.equal(found.sample.inputs, before)
    torch.testing.assert_close(found.record(), first, rtol=0, atol=0)


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.head(x.flatten(1)) / self.calls


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_what_was_put_into_a_buffer_is_measured_as_it_was(comparison, precision):
    found = comparison(Counting().eval(), precision)
    for _ in range(2):
        found.record()
        (count,) = (o for o in found.side_by_side(lambda _: True) if o.name == "add")
        assert [m.error for m in count.finding.results] == [0]
    assert float(found.candidate.model.calls) == 0


@pytest.mark.parametrize("tied", [False, True])
def test_without_rounding_a_candidate_is_its_reference(comparison, tied):
    """Its weights are the reference's, tied ones and buffers too, and not its own 16-bit ones."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
            self.register_buffer("shift", torch.full((64,), 0.1))
            if tied:
                self.two.weight = self.one.weight

        def forward(self, x):
            return (self.two(self.one(x.flatten(1)).tanh()) + self.shift)[:, :10]

    torch.manual_seed(0)
    found = comparison(Net().eval(), "bf16-true")
    torch.testing.assert_close(found.run(0), found.wanted, rtol=1e-5, atol=1e-5)
    found.record()
    torch.testing.assert_close(found.healed(0), found.wanted, rtol=1e-5, atol=1e-5)
    assert float((found.run() - found.wanted).abs().max()) > 1e-3


class Denoiser(nn.Module):
    """Its times are looked up in a table of its own, and cast before they become angles."""

    def __init__(self, cast):
        super().__init__()
        self.head, self.times, self.cast = nn.Linear(2, 4), torch.linspace(3.0, 999.6, 300), cast

    def forward(self, x, step):
        times = self.cast(self.times[step], x)
        return self.angles(times).to(x.dtype) @ self.head.weight.t() * 10

    def angles(self, times):
        times = times.double()[:, None]
        return torch.cat([times.sin(), times.cos()], -1)


CASTS = {
    "to": lambda times, x: times.to(dtype=x.dtype),
    "type_as": lambda times, x: times.type_as(x),
    "helper": lambda times, x: next(t.to(x) for t in (times,)),
}


@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_of_the_programs_own_is_told_where_it_is_made(cast):
    """DiffSynth-Studio#1025: the angle is no culprit, and the model's inputs are none."""
    torch.manual_seed(0)
    model, x, step = Denoiser(CASTS[cast]).eval(), torch.randn(300, 4), torch.randperm(300)
    with torch.no_grad():
        data = [((x, step), model(x, step).argmax(-1))]
    report = check(Evaluation(model, data), precision="bf16-true")
    line = linecache.getline(__file__, int(report.culprit.source.rpartition(":")[2]))
    assert report.culprit.operation == "_to_copy"
    assert f'"{cast}": lambda' in line
    assert report.culprit.variant is None
    assert report.cure.kind == "upcast"
    assert report.cure.verified
