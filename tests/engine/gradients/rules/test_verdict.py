"""Many findings make one verdict, and those that come second stay as notes."""

import json

import torch

from pytest_fp16.engine.gradients.evidence import Evidence
from pytest_fp16.engine.gradients.points import Point
from pytest_fp16.engine.gradients.probes.evaluated import Evaluated
from pytest_fp16.engine.gradients.probes.optimizer_probe import Probe
from pytest_fp16.engine.gradients.probes.second_look import SecondLook
from pytest_fp16.engine.gradients.probes.statistics_probe import Lag
from pytest_fp16.engine.gradients.rules.verdict import conclude
from pytest_fp16.engine.training.score import Score
from pytest_fp16.precision import precision
from pytest_fp16.theory.gradient import Movement, Noise
from pytest_fp16.theory.rounding import FLOAT16


def point(rho, step=0):
    return Point(step, [(1.0, 1.0)], Noise(rho, 1.0, 0.0, 1.0, 0.01, 0.0, 0.0))


def test_no_finding_is_equivalent_and_says_how_little_rounding_adds():
    evidence = Evidence(FLOAT16, points=[point(1e-4), point(3e-4)], batch_size=32)
    said = conclude(evidence, precision("16-true"))
    assert (said.verdict, said.culprit) == ("equivalent", None)
    assert "3.0e-04" in said.reason
    assert "batch 32, 2 points" in said.reason
    assert json.loads(json.dumps(said.figures))["batch_size"] == 32


def test_the_first_finding_is_the_reason_and_the_others_are_told():
    evidence = Evidence(
        FLOAT16,
        broke=("the loss is infinite", None),
        lags=[Lag("norm.running_var", 0.7, 0.1)],
    )
    said = conclude(evidence, precision("16-true"))
    assert said.verdict == "not equivalent"
    assert said.reason.startswith("the loss is infinite")
    assert said.culprit.module == "<loss>"
    assert any("running_var" in note for note in said.notes)
    assert not any(note == said.reason for note in said.notes)


def test_what_a_longer_look_let_pass_is_suspected():
    moved = Movement(gain=0.9, size=3.0, length=1.0)
    zeroed = {"zeroed": {"exp_avg_sq": 0.4}, "magnitudes": frozenset({"exp_avg_sq"})}
    probe = Probe(moved, finite=True, broke_at=-1, states={}, lost=0.1, **zeroed)
    look = SecondLook(8, [2.0, 2.1], [1.0, 1.1], [0.5, 0.6], [0.5, 0.6])
    said = conclude(Evidence(FLOAT16, optimizer=probe, second=look), precision("16-true"))
    assert (said.verdict, said.culprit) == ("equivalent", None)
    assert (said.suspect.module, said.suspect.operation) == ("<optimizer>", "exp_avg_sq")
    assert said.suspect.mechanism == "underflow"
    loud = Noise(3.0, 1.0, 0.0, 1.0, 0.5, 0.0, 0.0)
    bent = Point(4, [(1.0, 1.0)], loud, {"head.weight": loud})
    said = conclude(Evidence(FLOAT16, points=[bent], second=look), precision("16-true"))
    assert (said.verdict, said.suspect.operation) == ("equivalent", "backward")
    assert conclude(Evidence(FLOAT16, optimizer=probe), precision("16-true")).suspect is None


def test_what_two_rules_say_in_the_same_words_is_said_once():
    def seen(value):
        return Score("R²", value, 0.001, 9, True, torch.zeros(1))

    look = SecondLook(8, [2.0, 2.1], [1.0, 1.1], [0.5, 0.6], [1.9, 2.0])
    lost = Evaluated(seen(0.9), seen(0.5), 40)
    said = conclude(Evidence(FLOAT16, second=look, evaluated=lost), precision("16-true"))
    assert said.reason.startswith("the evaluation loses it")
    assert not any("evaluation" in note for note in said.notes)
