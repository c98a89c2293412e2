"""Runs of a training that are never made."""

from types import SimpleNamespace

import pytest
import torch

from pytest_fp16 import Settings
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.training.runs import Runs
from pytest_fp16.engine.training.score import Score
from pytest_fp16.engine.training.train import RunResult
from pytest_fp16.engine.training.validation import validated
from pytest_fp16.precision import PRECISIONS
from pytest_fp16.theory.seeds import Look
from pytest_fp16.training.pairs import Pairs
from pytest_fp16.training.report import report_of

CPU = torch.device("cpu")


@pytest.fixture
def runs(digits_training):
    """Makes the runs of a training, none of them made, with a canary that is known."""

    def make(canary=None, **settings):
        with preserved_state():
            given = Settings().with_(device="cpu", precisions=("16-true",), **settings)
            made = Runs(validated(digits_training(), CPU), given, CPU)
        made.canary = lambda precision: canary
        return made

    return make


ROWS = [[3.0, 1.0, 0.0], [0.0, 2.0, 1.5]]


def score(value, rows=ROWS):
    predictions = torch.tensor(rows).unsqueeze(1)
    return Score("accuracy", value, 0.01, 600, True, predictions, 1 / 600, 0.1)


def result(value=0.9, seed=0, precision="16-true", **changes):
    given = {
        "score": score(value),
        "losses": [1.0, 0.5 + seed / 10],
        "dtypes": {"float16": 40, "float32": 10},
        "state_dtypes": {"parameters": ["float16"], "optimizer": []},
        **changes,
    }
    return RunResult(precision, seed, **given)


def pair(reference=0.95, candidate=0.94, seed=0, **changes):
    return result(reference, seed, "32-true"), result(candidate, seed, **changes)


def settled(*found, outcome="equivalent", **look):
    known = {"n": len(found), "mean": 0.01, "lower": -0.01, "upper": 0.02, "budget": 0.03}
    pairs = Pairs(PRECISIONS["16-true"], list(found))
    pairs.look = Look(outcome=outcome, **{**known, **look})
    return pairs


def report(runs, pairs, forecast=None):
    return report_of(runs, pairs, forecast, None, None)


@pytest.fixture
def made():
    """Makes scores, results, pairs, and reports on them."""
    return SimpleNamespace(
        rows=ROWS, score=score, result=result, pair=pair, settled=settled, report=report
    )
