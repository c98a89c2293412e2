"""When pairs of runs settle a verdict, and what they refuse or say of the 32-bit runs."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pytest_fp16 import Settings, check
from pytest_fp16.errors import ModelError
from pytest_fp16.precision import PRECISIONS
from pytest_fp16.training.pairs import Pairs, compare


def adam(params):
    return torch.optim.Adam(params, lr=1e-3)


def test_a_run_that_breaks_ends_it_at_the_first_seed(digits_training):
    report = check(digits_training(optimizer=adam), precision="16-true", seeds=3)
    assert report.verdict == "not equivalent"
    assert report.training["seeds"] == [0]
    assert report.training["ended"] == ["not finite"]
    assert [c.detail for c in report.checks if c.name == "finite"] == [
        "the 16-true run of seed 0 ended in NaN or infinity in epoch 1, step 1; "
        "its 32-bit twin did not"
    ]


def test_a_training_that_fails_in_32_bits_is_refused(digits_training):
    def wild(params):
        return torch.optim.SGD(params, lr=1e30)

    with pytest.raises(
        ModelError, match=r"training itself fails.*nan in epoch 1, step \d \(seed 0"
    ):
        check(digits_training(optimizer=wild), precision="16-true", seeds=3)


def test_too_few_seeds_say_how_many_are_missing(digits_training):
    report = check(digits_training(), precision="bf16-true", seeds=2, budget=1e-6)
    assert report.verdict == "inconclusive"
    assert report.training["seeds_missing"] > 0
    (detail,) = [c.detail for c in report.checks if c.name == "same over seeds"]
    missing, made = report.training["seeds_missing"], len(report.training["losses"])
    said = f"about {missing} more seed(s) would settle it: seeds={made + missing}"
    assert said in detail


def lucky():
    """A model that learns with some seeds only."""
    dropped = 1.0 if float(torch.rand(())) < 0.5 else 0.0
    layers = [nn.Linear(64, 32), nn.ReLU(), nn.Dropout(dropped), nn.Linear(32, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


@pytest.mark.parametrize(
    ("settings", "verdict"), [({}, "inconclusive"), ({"budget": 0.02}, "equivalent")]
)
def test_a_budget_that_lets_anything_pass_is_none(digits_training, settings, verdict):
    report = check(digits_training(model=lucky), precision="16-mixed", seeds=3, **settings)
    assert report.verdict == verdict, str(report)
    assert ("the 32-bit runs differ so much" in str(report)) is (verdict == "inconclusive")


class Known:
    """Runs whose metrics are known: 16-bit ones lose the same in every seed."""

    def __init__(self, made, loss, seeds=5, ends=None, **settings):
        self.settings = Settings().with_(seeds=seeds, **settings)
        self.further, self.asked, self.ends = 0, [], ends or {}
        spread = np.random.default_rng(3).standard_normal(60)
        self.made, self.metrics, self.loss = made, 0.9 + 0.01 * spread, loss
        self.untrained = 0.1

    def start(self, seeds):
        return None if self.untrained is None else np.mean([self.untrained for _ in seeds])

    def run(self, precision, seed):
        self.asked.append((precision.name, seed))
        metric = self.metrics[seed] - self.loss * (precision.name != "32-true")
        score = self.made.score(metric)
        score = type(score)(**{**vars(score), "resolution": 0.001, "grain": 1e-4})
        changes = {"ended": self.ends.get(seed, "finished")}
        return self.made.result(seed=seed, precision=precision.name, score=score, **changes)

    def seeds(self, name):
        return [seed for precision, seed in self.asked if precision == name]


def compared(runs):
    return compare(runs, PRECISIONS["16-true"])


def test_further_32_bit_runs_settle_what_pairs_leave_open(made):
    """The mean is known; that it is twice the budget, five runs cannot say."""
    runs = Known(made, loss=0.05)
    pairs = compared(runs)
    assert pairs.verdict == "not equivalent"
    assert runs.seeds("16-true") == list(range(5))
    assert runs.seeds("32-true") == list(range(5 * (1 + pairs.look.further)))
    assert pairs.look.further >= 1
    assert len(pairs.further) == runs.further == 5 * pairs.look.further
    assert pairs.missing == 0


def test_what_is_settled_by_pairs_asks_for_no_further_runs(made):
    runs = Known(made, loss=0.0)
    assert compared(runs).verdict == "equivalent"
    assert runs.further == 0
    assert runs.seeds("32-true") == runs.seeds("16-true")


@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_where_a_failure_is_expected_the_allowance_is_spent(made, loss):
    """It may strike in one run of six: four that pass are luck half of the time."""
    for wary in (False, True):
        runs = Known(made, loss=loss, seeds=8, budget=0.02)
        pairs = compare(runs, PRECISIONS["16-true"], wary)
        assert pairs.verdict == ("equivalent" if not loss else "not equivalent")
        assert (len(runs.seeds("16-true")) == 8) == (wary and not loss)
        assert runs.further == 0


def test_a_given_budget_asks_for_no_further_runs(made):
    runs = Known(made, loss=0.05, budget=0.05)
    assert compared(runs).verdict == "inconclusive"
    assert runs.seeds("32-true") == list(range(5))


def test_a_further_run_that_breaks_is_left_out_and_told(made):
    runs = Known(made, loss=0.05, ends={6: "diverged"})
    pairs = compared(runs)
    assert [r.seed for r in pairs.further[:4]] == [5, 7, 8, 9]
    assert [note for note in pairs.notes if note.startswith("seed 6 was left out")]
    assert pairs.verdict == "not equivalent"


def test_no_memory_for_a_further_run_ends_it(made):
    runs = Known(made, loss=0.05, ends={5: "out of memory"})
    pairs = compared(runs)
    assert (pairs.verdict, pairs.look.further) == ("inconclusive", 0)
    assert "32-true, seed 5" in pairs.unmade


def own(made, value, seed=0, name="32-true"):
    score = replace(made.score(value), name="distance", own=True, majority=None)
    return made.result(seed=seed, precision=name, score=score)


@pytest.mark.parametrize(
    ("gain", "whose", "verdict"),
    [(0.5, own, "inconclusive"), (0.2, own, "equivalent"), (0.5, None, "equivalent")],
)
def test_a_metric_of_the_users_own_that_gains_much_settles_nothing(
    made, runs, gain, whose, verdict
):
    pairs = made.settled(
        *((own(made, 0.4, s), own(made, 0.4 + gain, s, "16-true")) for s in range(2)), mean=-gain
    )
    if whose is None:  # one of ours
        for result in [r for pair in pairs.pairs for r in pair]:
            result.score.own = False
    report = made.report(runs(), pairs)
    assert report.verdict == verdict
    assert ("let metric= return the negative" in str(report)) is (verdict == "inconclusive")
    assert any("score higher by" in w for w in report.warnings) is (verdict == "equivalent")


class Turned(nn.Sequential):
    """Says the opposite where it is evaluated in 16 bits."""

    def forward(self, x):
        y = super().forward(x)
        return y if self.training or y.dtype == torch.float32 else -y


def test_a_loss_taken_for_a_metric_is_inconclusive(digits_training):
    def cross_entropy(outputs, labels):
        return nn.functional.cross_entropy(outputs, labels, reduction="none")

    def turned():
        return Turned(nn.Flatten(), nn.Linear(64, 10))

    report = check(
        digits_training(metric=cross_entropy, model=turned), precision="bf16-true", seeds=3
    )
    assert report.verdict == "inconclusive", str(report)
    assert "cross_entropy of the 16-bit model is higher by" in str(report)


def inside(context):
    def step(model, batch):
        with torch.autocast("cuda", **context):
            return nn.functional.cross_entropy(model(batch[0]), batch[1])

    return step


@pytest.mark.parametrize(
    ("context", "ran", "ask"),
    [
        (
            {"enabled": False},
            "float32",
            "no operation that autocast casts",
        ),
        ({"dtype": torch.bfloat16}, "bfloat16", "does the step enter an autocast of its own"),
    ],
)
def test_runs_that_computed_nothing_in_the_format_prove_nothing(digits_training, context, ran, ask):
    training = digits_training(loss=None, training_step=inside(context), epochs=2)
    report = check(training, precision="16-mixed", budget="20pt", seeds=3)
    assert report.verdict == "inconclusive"
    assert not next(c for c in report.checks if c.name == "16 bit ran").passed
    assert "nothing was computed in float16" in str(report)
    assert f"all ran in {ran}" in str(report)
    assert re.search(ask, str(report))


class Factors(nn.Module):
    """Adds up what it looks up: there is nothing for autocast to cast."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(64, 10)

    def forward(self, x):
        return (self.table.weight * x.flatten(1)[:, :, None]).sum(1)


def test_a_model_of_which_autocast_casts_nothing_is_told_so(digits_training):
    report = check(digits_training(model=Factors), precision="16-mixed", budget="20pt", seeds=2)
    assert report.verdict == "inconclusive"
    assert "is there no operation that autocast casts (a matrix product" in str(report)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (0.1, None),
        (0.895, "one which changes nothing would pass a budget of 2 points"),
        (0.95, "lowers the metric"),
        (math.nan, None),
        (None, None),
    ],
)
def test_what_a_training_that_does_nothing_would_pass_is_no_equivalence(made, start, said):
    runs = Known(made, 0.0, budget=0.02)
    runs.untrained = start
    pairs = compared(runs)
    assert pairs.look.outcome == "equivalent"
    assert pairs.verdict == ("equivalent" if said is None else "inconclusive")
    assert (pairs.proves_nothing is None) if said is None else said in pairs.proves_nothing


def test_a_default_budget_of_more_than_half_of_what_is_learned_is_none(made):
    runs = Known(made, 0.0)
    runs.metrics = np.array([0.9, 0.3, 0.8, 0.4, 0.7] * 12)
    pairs = compared(runs)
    assert pairs.wide
    assert pairs.verdict == "inconclusive"
    assert "more than half of what training brings (from 10 % to " in pairs.proves_nothing
    assert not any("steady" in note for note in pairs.notes), "told once"
    runs.settings = runs.settings.with_(budget=0.3)
    assert compared(runs).verdict == "equivalent", "what the user sets is the user's"


def test_runs_that_remember_others_are_no_pairs(made):
    pairs = compared(Known(made, 0.5))
    assert pairs.verdict == "not equivalent"
    pairs.drift = "the training remembers earlier runs"
    assert pairs.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("gain", "start", "settled"),
    [
        (0.01, 0.85, True),
        (0.10, 0.10, True),  # more than the budget, and little beside what training brings
        (0.10, 0.75, False),
        (0.10, None, True),
        (-0.01, 0.85, True),
    ],
)
def test_a_cure_that_gains_half_of_a_training_is_not_settled(made, gain, start, settled):
    runs = Known(made, 0.0, budget=0.02)
    runs.untrained = start
    tried = [(made.result(0.9, seed=s), made.result(0.9 + gain, seed=s)) for s in range(2)]
    why = Pairs(PRECISIONS["16-true"]).unsettled(runs, tried, 0.02)
    assert (why is None) is settled
    assert settled or "train longer" in why


def test_a_wide_budget_is_told_in_points(made):
    runs = Known(made, 0.0)
    runs.metrics = np.array([0.9, 0.6, 0.8, 0.7, 0.75] * 12)
    runs.untrained = -1.0
    pairs = compared(runs)
    (note,) = pairs.notes
    spread, budget = (100 * x for x in (pairs.look.reference_spread, pairs.look.budget))
    assert f"differ by {spread:.3g} points over seeds (standard deviation)" in note
    assert f"so that a loss of {budget:.3g} points would pass; steady the training" in note
