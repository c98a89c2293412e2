"""The rules of a verdict that speak from totals alone; whole evaluations are in test_evaluation."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.evaluation.verdict import luck, mass_ties, median, more_flips
from pytest_fp16.precision import precision
from pytest_fp16.report.model import Check
from pytest_fp16.report.terminal import table


def a_precision_run(decides=True, **outcome):
    known = {"moved": (0.0, 0.0), "flips": 0, "ties": 0, "decisions": 0}
    return SimpleNamespace(
        task=SimpleNamespace(decides=decides), precision=precision("16-true"),
        outcome=SimpleNamespace(**{**known, **outcome}),
    )  # fmt: skip


def test_the_median_is_of_numbers_only():
    assert median([math.nan, 3.0, 1.0, 2.0]) == 2.0
    assert median([math.nan]) is None
    assert median([]) is None


@pytest.mark.parametrize(("error", "told"), [(0.04, True), (0.0099, False)])
def test_outputs_that_moved_far_are_told_although_no_decision_fell(error, told):
    warning = luck(a_precision_run(moved=(error, 1.0), flips=0))
    assert (warning is not None) == told
    assert not told or "20% of their own spread" in warning


@pytest.mark.parametrize(
    ("flips", "ties", "how", "counted"),
    [
        (0, 0, "survived by luck", "with 0 flips; "),
        (1, 0, "are not safe", "with 1 flip; "),
        (0, 400, "are not safe", "with 0 flips and 400 ties; "),
    ],
)
def test_a_decision_that_ties_has_not_survived(flips, ties, how, counted):
    warning = luck(a_precision_run(moved=(0.04, 1.0), flips=flips, ties=ties))
    assert warning.startswith(f"the decisions {how}: ")
    assert counted in warning


def test_no_luck_without_decisions_or_spread():
    assert luck(a_precision_run(decides=False, moved=(1.0, 1.0))) is None
    assert luck(a_precision_run(moved=(1.0, 0.0))) is None


@pytest.mark.parametrize(("ties", "told"), [(6, True), (5, False)])
def test_many_ties_are_told(ties, told):
    warning = mass_ties(a_precision_run(ties=ties, decisions=100))
    assert (warning is not None) == told
    assert not told or "6 of 100 decisions tie exactly in float16" in warning


def test_no_decision_no_tie():
    assert mass_ties(a_precision_run()) is None


def test_a_metric_of_ones_own_reads_labels_for_an_embedding_too():
    torch.manual_seed(0)
    inputs, labels = torch.randn(60, 8), torch.arange(60) // 2

    def recall_at_3(outputs, labels):
        scores = torch.nn.functional.normalize(outputs.float(), dim=-1)
        nearest = (scores @ scores.T).fill_diagonal_(-2).topk(3).indices
        return (labels[nearest] == labels[:, None]).any(1).float()

    model = torch.nn.Linear(8, 16).eval()
    subject = Evaluation(model, [(inputs, labels)], task="embedding", metric=recall_at_3)
    report = check(subject, precision="16-true")
    assert report.metric.labelled
    assert "recall_at_3 " in str(report).partition("(")[0]
    assert "recall_at_3 " in table([("t", report)])


class Sensitive(torch.nn.Module):
    """Differs by much where an input is rounded, and not at all where it is not."""

    def forward(self, x):
        return (x + 1000) - 1000


def distance(outputs, labels):
    return (outputs - labels).abs().mean(1)


def nearness(outputs, labels):
    return -distance(outputs, labels)


def measured(metric, **settings):
    x = 0.3 * torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    subject = Evaluation(model=Sensitive(), data=[(x, Sensitive()(x))], metric=metric)
    return check(subject, precision="16-true", device="cpu", **settings)


@pytest.mark.parametrize("settings", [{}, {"budget": 0.0}, {"budget": 0.001}])
def test_a_metric_with_the_wrong_sign_settles_nothing(settings):
    report = measured(distance, **settings)
    assert report.verdict == "inconclusive", str(report)
    (failed,) = [c for c in report.checks if not c.passed]
    assert failed.name == "good enough"
    assert "higher must be better; where lower is, let metric= return the negative" in str(report)


def test_the_same_metric_with_the_right_sign_fails():
    assert measured(nearness).verdict == "not equivalent"


def test_a_gain_within_ten_budgets_is_one():
    assert measured(distance, budget=0.05).verdict == "equivalent"


def test_a_doubtful_metric_saves_no_model_that_fails_otherwise():
    class Lost(torch.nn.Module):
        def forward(self, x):
            return torch.cat([x * 1e5 / 1e5, x], 1)

    def some(outputs, labels):
        return 1.0 + outputs.isfinite().logical_not().sum(1)

    x = torch.ones(50, 4)
    subject = Evaluation(model=Lost(), data=[(x, Lost()(x))], metric=some)
    report = check(subject, precision="16-true", device="cpu")
    assert report.verdict == "not equivalent", str(report)
    assert [c.name for c in report.checks if not c.passed] == ["finite", "good enough"]


class Own(nn.Module):
    """Enters an autocast of its own, whatever it is asked for."""

    def __init__(self, dtype):
        super().__init__()
        self.layer, self.dtype = nn.Linear(8, 4), dtype

    def forward(self, x):
        with torch.autocast("cuda", dtype=self.dtype):
            return self.layer(x)


@pytest.mark.parametrize(
    ("dtype", "precision", "verdict"),
    [
        (torch.bfloat16, "16-mixed", "not equivalent"),
        (torch.float16, "16-mixed", "equivalent"),
        (torch.float16, "bf16-mixed", "not equivalent"),
    ],
)
def test_what_ran_in_another_16_bit_format_proves_nothing(dtype, precision, verdict):
    torch.manual_seed(0)
    made = Evaluation(model=Own(dtype).eval(), data=[torch.randn(64, 8)], labelled=False)
    report = check(made, precision=precision)
    assert report.verdict == verdict
    if verdict == "not equivalent":
        wanted = {"16-mixed": "float16", "bf16-mixed": "bfloat16"}[precision]
        assert f"as the program asks, so this run proves nothing about {wanted}" in str(report)


@pytest.mark.parametrize(
    ("flips", "excused", "told"), [(30, True, True), (24, True, False), (30, False, False)]
)
def test_more_flips_than_are_allowed_are_told_where_they_are_excused(flips, excused, told):
    run = a_precision_run(flips=flips)
    run.prediction = SimpleNamespace(flips=SimpleNamespace(allowed=lambda: 24))
    made = [Check(name="as predicted", passed=True, excused=excused, detail="strays")]
    said = more_flips(made, run)
    assert bool(said) == told
    assert not told or said[0].startswith("30 flips are more than rounding explains (24 allowed)")
