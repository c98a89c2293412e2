"""A training in full."""

import math

import pytest

from pytest_fp16.report.terminal import full

FACTS = {
    "seeds": [0, 1, 2],
    "reference_metrics": [0.88, 0.9, 0.89],
    "candidate_metrics": [0.875, 0.9, math.nan],
    "ended": ["finished", "finished", "not finite"],
    "mean_loss": 0.0025,
    "lower": -0.012,
    "upper": 0.017,
    "gradient_check": {
        "points": [
            {"rho": 1e-5, "rho_allowed": 0.5, "worst_tensor": "a.weight"},
            {"rho": 0.0004, "rho_allowed": 0.5, "worst_tensor": "c.weight"},
        ],
        "updates_lost": 0.0363,
    },
}


def lines(passed, **changes):
    text = full(passed(kind="training", training={**FACTS, **changes}))
    return [line.strip() for line in text.splitlines()]


def test_runs_spread_limits_and_gradients(passed):
    assert lines(passed)[-4:] == [
        "runs: seed 0 88.0 → 87.5 %, seed 1 90.0 → 90.0 %, seed 2 89.0 → NaN % (not finite)",
        "spread of the 32-bit runs over seeds: 1.00 points",
        "mean loss: 0.25 points, 95 % limits -1.20 to 1.70",
        "gradient check: rounding adds 0.0004 of the batch noise (allowed 0.5), most in c.weight; "
        "3.6 % of updates lost to rounding",
    ]


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"mean_loss": None, "lower": None, "upper": None}, "mean loss"),
        ({"lower": -math.inf, "upper": math.inf}, "mean loss"),
        ({"gradient_check": {}}, "gradient check"),
        ({"reference_metrics": [0.9, None, math.nan]}, "spread"),
    ],
)
def test_what_is_not_known_is_not_said(passed, changes, missing):
    assert not any(line.startswith(missing) for line in lines(passed, **changes))


def test_it_says_nothing_of_a_theory_pass(passed):
    assert not any("theory pass" in line for line in lines(passed))


def test_a_metric_of_its_own_units(passed, metric):
    report = passed(kind="training", training=FACTS, metric=metric(name="R²"))
    assert "  spread of the 32-bit runs over seeds: 0.0100" in full(report).splitlines()
