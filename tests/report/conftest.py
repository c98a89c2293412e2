import pytest

from pytest_fp16.report.model import Check, Culprit, Cure, Forecast, Metric, Report, Run, Site


def _metric(**changes):
    known = {
        "name": "accuracy",
        "reference": 0.97123,
        "candidate": 0.61234,
        "loss": 0.35889,
        "budget": 0.0081,
        "budget_origin": "default",
        "labelled": True,
    }
    return Metric(**{**known, **changes})


@pytest.fixture
def metric():
    """Makes a metric; keywords replace its fields."""
    return _metric


@pytest.fixture
def failed():
    """Makes the report of design section 5, with an overflow; keywords replace its fields."""

    def make(**changes):
        known = {
            "name": "test_digits",
            "kind": "evaluation",
            "task": "classification",
            "precision": "16-true",
            "verdict": "not equivalent",
            "checks": [
                Check(name="finite", passed=True, detail="every output is finite"),
                Check(name="as predicted", passed=False, detail="130 flips, 2 allowed"),
                Check(name="good enough", passed=False, detail="loss above the budget"),
            ],
            "metric": _metric(),
            "inputs": 360,
            "decisions": 360,
            "flips": 130,
            "ties": 0,
            "forecast": Forecast(
                verdict="not equivalent",
                reason="overflow in blocks.1.norm",
                method="adjoint",
                metric_loss=0.3,
                flips_expected=120.5,
                flips_allowed=2,
            ),
            "culprit": Culprit(
                module="blocks.1.norm",
                operation="pow",
                mechanism="overflow",
                evidence="largest value 9.0e+04, float16 holds 6.55e+04",
                source="norms.py:12",
            ),
            "cure": Cure(
                kind="keep_in_float32",
                modules=["blocks.1.norm"],
                verified=True,
                description="keep blocks.1.norm in float32",
                verdict="equivalent",
                flips=0,
                metric=0.97123,
            ),
            "run": Run(device="cpu", target="cuda", mode="emulated"),
        }
        return Report(**{**known, **changes})

    return make


@pytest.fixture
def passed(failed, metric):
    """Makes a passing report; keywords replace its fields."""

    def make(**changes):
        known = {
            "verdict": "equivalent",
            "checks": [Check(name="finite", passed=True, detail="every output is finite")],
            "metric": metric(candidate=0.97123, loss=0.0),
            "flips": 0,
            "culprit": None,
            "cure": None,
        }
        return failed(**{**known, **changes})

    return make


@pytest.fixture
def site():
    """Makes a site; keywords replace its fields."""

    def make(**changes):
        known = {
            "module": "head",
            "operation": "linear",
            "share": 0.25,
            "largest": 12.5,
            "headroom": 12.36,
        }
        return Site(**{**known, **changes})

    return make
