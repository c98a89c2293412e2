"""What is stored counts in how close an evaluation comes to the limits of the format."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.report.terminal import full


def wide(gain=99_123.4, feature=0):
    """Inputs of which one is of another scale, normalised by a batch norm that has seen them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model[0].running_var[feature] = gain
    data = torch.randn(64, 4)
    data[:, feature] *= gain**0.5
    return model, data


def report_of(model, data, **given):
    return check(Evaluation(model=model, data=[data], labelled=False), **given)


def of_the_store(report):
    return [w for w in report.warnings if w.startswith("stored in")]


def test_a_stored_infinity_is_told_by_name_and_in_numbers():
    report = report_of(*wide(), budget=0.99)
    assert report.equivalent, "so that it is no failure that tells it"
    assert of_the_store(report) == [
        "stored in float16, 0.running_var has 1 of 4 values that are infinite "
        "(largest 9.91e+04, float16 holds 65504)"
    ]


def test_a_failure_tells_it_too():
    report = report_of(*wide(), budget=1e-9)
    assert report.verdict == "not equivalent"
    assert of_the_store(report)


@pytest.mark.parametrize("precision", ["bf16-true", "16-mixed", "32-true"])
def test_where_nothing_stored_is_infinite_nothing_is_said(precision):
    assert not of_the_store(report_of(*wide(), precision=precision))


def test_a_number_just_beyond_is_told_apart_from_the_limit():
    (said,) = of_the_store(report_of(*wide(65_530.0), budget=0.99))
    assert "largest 65530, float16 holds 65504" in said


def test_of_many_tensors_a_few_are_named():
    model, data = wide()
    for layer in (1, 3):
        for i, tensor in enumerate(model[layer].parameters()):
            tensor.data.view(-1)[0] = 7e4 + i
    *named, rest = of_the_store_and_rest(report_of(model, data))
    assert len(named) == 3
    assert rest == "2 more tensors of the model are infinite so"


def of_the_store_and_rest(report):
    return [w for w in report.warnings if w.startswith("stored in") or "infinite so" in w]


def test_a_mask_is_neither_warned_of_nor_closest_to_overflow():
    model, data = wide(1.0)
    model[1].register_buffer("mask", torch.ones(4, 4).triu(1) * -1e9)
    report = report_of(model, data)
    assert not of_the_store(report)
    assert "mask" not in {site.operation for site in report.sites}


def test_what_is_stored_beyond_the_range_is_closest_to_overflow():
    report = report_of(*wide(), budget=0.99)
    (site,) = [s for s in report.sites if s.operation == "running_var"]
    assert (site.module, site.share) == ("0", 0.0)
    assert site.headroom == pytest.approx(-0.5977, abs=1e-4)
    said = full(report)
    assert "closest to overflow: 0 (running_var), 0.6 powers of two beyond the range" in said


def test_what_is_stored_is_closest_to_overflow_without_an_infinity():
    report = report_of(*wide(60_000.0))
    assert not of_the_store(report)
    assert "closest to overflow: 0 (running_var), 0.1 powers of two left" in full(report)


def test_what_is_far_from_the_limit_has_no_row():
    model, data = wide(1.0)
    sites = report_of(model, 100 * data).sites
    assert {"addmm", "native_batch_norm"} >= {s.operation for s in sites}


class Normalised(nn.Module):
    """Rows over their size, whose square leaves the range in a few: they become zero."""

    def forward(self, x):
        return x / (x * x).sum(-1, keepdim=True).sqrt()


@pytest.mark.parametrize(
    ("size", "precision"),
    [(400.0, "16-true"), (4.0, "16-true"), (400.0, "bf16-true"), (400.0, "32-true")],
)
def test_an_overflow_that_does_little_harm_is_told(size, precision):
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    x[7] *= size
    report = report_of(Normalised(), x, precision=precision, budget=0.99)
    assert report.equivalent
    told = [w for w in report.warnings if "it does little harm on this data" in w]
    if (size, precision) != (400.0, "16-true"):
        assert told == []
        return
    assert len(told) == 1  # the square: what is infinite is not counted again
    assert told[0].startswith("the model itself, operation mul (")
    assert "test_ranges.py:" in told[0]
    assert "leave the range of float16, which holds 65504" in told[0]


def test_of_many_overflows_a_few_are_named():
    class Bounded(nn.Module):
        def forward(self, x):
            return x + 0.01 * (x * 1e6).tanh()

    model = nn.Sequential(*(Bounded() for _ in range(5)))
    report = report_of(model, torch.randn(50, 4), budget=0.99)
    assert report.equivalent
    told = [w for w in report.warnings if "leave the range" in w or "so do those" in w]
    assert len(told) == 4
    assert told[-1] == "so do those of 2 more operations"
