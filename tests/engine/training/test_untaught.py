"""A 32-bit training that learned nothing proves nothing of 16 bits."""

import pytest
import torch
from torch import nn

from pytest_fp16 import check
from pytest_fp16.engine.training.score import Score
from pytest_fp16.engine.training.untaught import learned_nothing, remarked, unmoved

SURE, OTHER = [[3.0, 1.0, 0.0]], [[0.0, 2.0, 1.5]]


def score(value, rows=(SURE, OTHER), majority: "float | None" = 0.5, name="accuracy"):
    return Score(name, value, 0.01, 600, True, torch.tensor(rows), 1 / 600, majority)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (score(0.34), "accuracy 34.0%, guesses have 33.3%"),
        (score(0.5, (SURE, SURE)), "every decision is the commonest label, 50.0%"),
        (score(0.5), None),  # rare labels may be among what is right
        (score(0.9), None),
        (score(-0.2, majority=None, name="R²"), "R² -0.2, a constant has 0"),
        (score(0.3, majority=None, name="R²"), None),
        (score(-5.0, majority=None, name="my_score"), None),
    ],
)
def test_what_tells_of_nothing_learned(found, said):
    why = learned_nothing([found])
    assert (said in why) if said else why is None


def test_one_seed_that_learned_is_enough():
    assert learned_nothing([score(0.3), score(0.9)]) is None


def test_untrained_networks_differ_by_more_than_a_sample_of_guesses():
    assert learned_nothing([score(0.25), score(0.45)]) is not None


def test_decisions_no_better_than_one_label_are_remarked():
    assert "near chance" in remarked(score(0.5))
    assert remarked(score(0.6)) is None


def no_steps(params):
    return torch.optim.SGD(params, lr=0.0)


def test_two_trainings_that_learned_nothing_are_inconclusive(digits_training):
    report = check(digits_training(optimizer=no_steps), precision="16-mixed", seeds=4)
    assert report.verdict == "inconclusive"
    assert report.training["seeds"] == [0, 1]
    (one,) = [c for c in report.checks if c.name == "same over seeds"]
    assert not one.passed
    assert "learned nothing" in one.detail
    assert "train longer" in str(report)


def test_a_run_that_breaks_is_no_matter_of_learning_but_no_cure_passes_at_chance(digits_training):
    def scaled():
        layers = [nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)]
        nn.init.constant_(layers[2].bias, 1e5)
        return nn.Sequential(nn.Flatten(), *layers)

    given = digits_training(model=scaled, optimizer=no_steps)
    report = check(given, precision="16-true", seeds=3)
    assert report.verdict == "not equivalent"
    assert any("32-bit training learned nothing" in w for w in report.warnings)
    assert (report.cure.verdict, report.cure.verified) == ("inconclusive", False)
    assert "learned nothing" in report.cure.unsettled


@pytest.mark.parametrize(
    ("start", "trained", "budget", "wide", "said"),
    [
        (0.1, 0.9, 0.1, False, None),
        (0.1, 0.9, 0.1, True, None),
        (0.1, 0.9, 0.5, True, "more than half"),
        (0.1, 0.9, 0.5, False, None),
        (0.1, 0.9, 0.8, False, "changes nothing would pass"),
        (0.9, 0.9, 0.01, False, "changes nothing would pass"),
        (2.3, 0.3, 0.1, False, "is its sign right"),
        (float("nan"), 0.9, 0.1, True, None),
    ],
)
def test_what_training_brought_is_more_than_the_budget(start, trained, budget, wide, said):
    found = unmoved(start, trained, budget, wide, "R²")
    assert (found is None) if said is None else said in found


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("accuracy", "from 90 % to 90.5 %, so that one which changes nothing would pass a budget "
         "of 2 points"),
        ("R²", "from 0.9 to 0.905, so that one which changes nothing would pass a budget of 0.02"),
    ],
)  # fmt: skip
def test_it_is_told_in_the_unit_of_the_metric(name, said):
    assert said in unmoved(0.9, 0.905, 0.02, False, name)


@pytest.mark.parametrize("metric", [None, "accuracy"])
def test_a_pretrained_model_that_is_not_trained_is_inconclusive(digits_training, metric):
    """bfloat16 loses every one of these steps, and nothing else of it shows."""
    made = digits_training(epochs=6)
    torch.manual_seed(0)
    model = made.model()
    optimizer = made.optimizer(model.parameters())
    for _ in range(4):
        for x, y in made.train_data:
            optimizer.zero_grad()
            made.loss(model(x), y).backward()
            optimizer.step()
    own = (lambda out, y: (out.argmax(-1) == y).float()) if metric else None
    training = digits_training(
        model=model, optimizer=lambda p: torch.optim.SGD(p, lr=1e-6), metric=own, epochs=1
    )
    report = check(training, precision="bf16-true", seeds=3)
    assert report.verdict == "inconclusive", str(report)
    assert "one which changes nothing would pass" in str(report)


def test_a_metric_whose_sign_is_wrong_is_inconclusive(digits_training):
    training = digits_training(
        metric=lambda out, y: nn.functional.cross_entropy(out, y, reduction="none")
    )
    report = check(training, precision="16-true", seeds=3)
    assert report.verdict == "inconclusive", str(report)
    assert "is its sign right?" in str(report)
