"""The rules about an optimizer's steps, on evidence whose figures are known."""

import math
from dataclasses import replace

import pytest
import torch

from pytest_fp16.engine.gradients.evidence import Evidence
from pytest_fp16.engine.gradients.origins.found import Found
from pytest_fp16.engine.gradients.origins.lost_digits import LostDigits
from pytest_fp16.engine.gradients.probes.evaluated import Evaluated
from pytest_fp16.engine.gradients.probes.optimizer_probe import Probe
from pytest_fp16.engine.gradients.probes.second_look import SecondLook
from pytest_fp16.engine.gradients.rules.step_rules import (
    epsilon,
    optimizer,
    ran_off,
    slow,
    still,
    stuck,
    vanished,
    wayward,
    weights,
)
from pytest_fp16.engine.training.score import Score
from pytest_fp16.theory.gradient import Movement
from pytest_fp16.theory.rounding import BFLOAT16, FLOAT16

MAGNITUDES = frozenset({"exp_avg_sq", "square_avg", "sum", "max_exp_avg_sq"})
HEALTHY = Movement(gain=0.95, size=1.0, length=1.0)
SLOW = SecondLook(8, [2.0, 2.1], [1.0, 1.1], [0.5, 0.6], [1.9, 2.0])
LEARNS = SecondLook(8, [2.0, 2.1], [1.0, 1.1], [0.5, 0.6], [0.5, 0.6])


def probe(moved=HEALTHY, **changes):
    given = {"finite": True, "broke_at": -1, "states": {}, "zeroed": {}, "lost": 0.25}
    return Probe(moved, **{**given, "magnitudes": MAGNITUDES, **changes})


def evidence(fmt=FLOAT16, **known):
    return Evidence(fmt, **known)


def first_steps(moved, last=(1.0, 1.0)):
    return evidence(weights=moved, first_losses=[(2.0, 2.0), last], optimizer=probe())


def test_a_healthy_optimizer_and_an_unknown_one_are_no_findings():
    for known in (
        evidence(),
        evidence(optimizer=probe(), weights=HEALTHY, first_losses=[(2.0, 2.0), (1.0, 1.0)]),
    ):
        for rule in (epsilon, ran_off, optimizer, weights, slow):
            assert rule(known) is None
        assert not wayward(known)


@pytest.mark.parametrize("state", ["exp_avg_sq", "square_avg", "sum"])
def test_an_epsilon_of_zero_counts_where_the_second_moment_is_zero_too(state):
    found = epsilon(evidence(epsilon=("eps", 1e-8), optimizer=probe(zeroed={state: 0.4})))
    assert (found.module, found.mechanism) == ("<optimizer>", "eps-underflow")
    assert "1e-08" in found.reason
    assert "40% of the second moment" in found.reason
    assert epsilon(evidence(epsilon=("eps", 1e-8), optimizer=probe(zeroed={state: 0.0}))) is None
    # a first moment may be zero: nothing is divided by it
    momentum = probe(zeroed={"exp_avg": 0.9})
    assert epsilon(evidence(epsilon=("eps", 1e-8), optimizer=momentum)) is None
    assert epsilon(evidence(optimizer=probe(zeroed={state: 0.4}))) is None


def test_an_epsilon_of_zero_that_broke_the_optimizer_counts_without_zeros_left():
    broken = probe(finite=False, broke_at=3)
    assert epsilon(evidence(epsilon=("eps", 1e-8), optimizer=broken)) is not None


def test_what_is_not_finite_names_its_step():
    found = optimizer(evidence(optimizer=probe(finite=False, broke_at=48)))
    assert found.mechanism == "overflow"
    assert "after 48 steps" in found.evidence


@pytest.mark.parametrize(("decades", "told"), [(1.4, False), (1.6, True), (3.0, True)])
def test_a_second_moment_that_cannot_decay(decades, told):
    found = optimizer(evidence(optimizer=probe(states={"exp_avg_sq": decades})))
    assert (found is not None) == told
    assert not told or (found.operation, found.mechanism) == ("exp_avg_sq", "absorption")
    # A first moment that is too large is in the weights' way, and judged there.
    assert optimizer(evidence(optimizer=probe(states={"exp_avg": decades}))) is None


@pytest.mark.parametrize(("gain", "told"), [(0.05, True), (0.45, True), (0.55, False)])
def test_weights_that_the_optimizer_leaves_behind(gain, told):
    found = optimizer(evidence(optimizer=probe(Movement(gain, gain, 1.0))))
    assert (found is not None) == told
    if told:
        assert "stand still" in found.reason
        assert "25% of updates" in found.reason
        assert found.mechanism == "absorption"


def test_weights_that_did_not_move_in_32_bits_are_not_left_behind():
    assert optimizer(evidence(optimizer=probe(Movement(0.0, 0.0, 0.0)))) is None
    assert weights(first_steps(Movement(0.0, 0.0, 0.0))) is None


def test_weights_that_go_far_another_way_do_not_stand_still():
    found = optimizer(evidence(optimizer=probe(Movement(0.1, 3.0, 1.0))))
    assert "another way" in found.reason
    assert "3 times as far" in found.evidence


@pytest.mark.parametrize(
    ("moved", "last", "told"),
    [
        (Movement(0.05, 0.05, 1.0), (1.0, 1.9), True),  # a standstill needs no loss to show it
        (Movement(0.2, 0.2, 1.0), (1.0, 1.9), False),
        (Movement(0.05, 2.0, 1.0), (1.0, 1.0), False),  # elsewhere, and the loss falls
        (Movement(0.05, 2.0, 1.0), (1.0, 9.0), True),
        (Movement(5.0, 20.0, 1.0), (1.0, 1.0), False),  # far, and harmless
        (Movement(5.0, 20.0, 1.0), (1.0, 9.0), True),
        (Movement(5.0, 9.0, 1.0), (1.0, 9.0), False),
    ],
)
def test_first_steps_are_judged_by_where_they_lead(moved, last, told):
    assert (weights(first_steps(moved, last)) is not None) == told


def test_a_loss_that_rises_in_32_bits_too_is_no_runaway():
    moved = Movement(5.0, 20.0, 1.0)
    assert weights(first_steps(moved, (9.0, 9.0))) is None


def test_only_a_vanished_second_moment_makes_a_runaway_of_the_optimizer_alone():
    far = Movement(5.0, 20.0, 1.0)
    found = ran_off(evidence(optimizer=probe(far, zeroed={"exp_avg_sq": 0.9})))
    assert (found.operation, found.mechanism) == ("exp_avg_sq", "underflow")
    assert "90% of exp_avg_sq is zero in float16" in found.evidence
    assert ran_off(evidence(optimizer=probe(far))) is None
    assert ran_off(evidence(optimizer=probe(zeroed={"exp_avg_sq": 0.9}))) is None


def test_slow_learning_is_laid_to_what_vanished():
    plain = slow(evidence(BFLOAT16, second=SLOW, optimizer=probe()))
    assert plain.mechanism == "precision-loss"
    assert "half the speed" in plain.reason
    lost = slow(evidence(second=SLOW, optimizer=probe(zeroed={"exp_avg_sq": 0.3})))
    assert (lost.operation, lost.mechanism) == ("exp_avg_sq", "underflow")
    assert slow(evidence(second=LEARNS, optimizer=probe())) is None


@pytest.mark.parametrize(
    ("zeroed", "expected"),
    [
        ({}, ("", 0.0)),
        ({"exp_avg": 0.4}, ("", 0.0)),
        ({"exp_avg": 0.8}, ("exp_avg", 0.8)),  # most of any state
        ({"exp_avg_sq": 0.1, "exp_avg": 0.8}, ("exp_avg_sq", 0.1)),  # the divisor before all
        ({"exp_avg_sq": 0.1, "max_exp_avg_sq": 0.2}, ("max_exp_avg_sq", 0.2)),
    ],
)
def test_the_state_that_vanished(zeroed, expected):
    assert vanished(probe(zeroed=zeroed)) == expected
    assert vanished(None) == ("", 0.0)


def test_wayward_weights_miss_their_place_by_more_than_the_way():
    assert wayward(evidence(weights=Movement(0.1, 2.0, 1.0)))
    assert wayward(evidence(optimizer=probe(Movement(0.1, 2.0, 1.0))))
    assert wayward(evidence(weights=Movement(math.nan, math.nan, 1.0)))
    assert not wayward(evidence(weights=Movement(0.6, 0.6, 1.0)))  # short of it
    assert not wayward(evidence(weights=Movement(0.1, 2.0, 0.0)))  # there was no way


def test_a_second_moment_of_any_name_that_cannot_decay():
    known = {"states": {"power": 2.0}}
    found = optimizer(evidence(optimizer=probe(magnitudes=frozenset({"power"}), **known)))
    assert (found.operation, found.mechanism) == ("power", "absorption")
    assert optimizer(evidence(optimizer=probe(**known))) is None


def test_an_epsilon_has_the_name_its_optimizer_gives_it():
    lost = evidence(epsilon=("epsilon", 1e-8), optimizer=probe(zeroed={"sum": 0.5}))
    assert epsilon(lost).operation == "epsilon"
    assert "epsilon 1e-08 is zero" in epsilon(lost).reason


@pytest.mark.parametrize(
    ("moved", "zeroed", "mechanism", "words"),
    [
        ((0.1, 0.12), {}, "absorption", "stand still"),
        ((0.1, 0.8), {}, "absorption", "stand still"),
        ((0.1, 0.12), {"sum": 0.1}, "absorption", "stand still"),
        ((0.1, 0.8), {"sum": 0.1}, "underflow", "another way"),
        ((0.1, 3.0), {"sum": 0.1}, "underflow", "another way"),
    ],
)
def test_steps_that_turn_for_want_of_a_second_moment_are_no_standstill(
    moved, zeroed, mechanism, words
):
    found = optimizer(evidence(optimizer=probe(Movement(*moved, 1.0), zeroed=zeroed)))
    assert found.mechanism == mechanism
    assert words in found.reason


@pytest.mark.parametrize(
    ("losses", "lost"),
    [
        ([], False),
        ([(2.0, 2.0), (1.0, math.nan)], True),
        ([(2.0, math.nan), (1.0, 1.0)], False),
        ([(2.0, 2.0), (math.nan, math.nan)], False),
    ],
)
def test_steps_are_stuck_where_the_last_is_lost_in_16_bits_alone(losses, lost):
    assert stuck(losses) is lost


def test_steps_that_a_scaler_goes_on_skipping_name_what_loses_them():
    origin = Found("<loss>", "log", "eps-underflow", 1.0)
    found = slow(evidence(second=SLOW, stuck=origin))
    assert (found.module, found.operation, found.mechanism) == ("<loss>", "log", "eps-underflow")
    assert "whatever the loss scale" in found.reason
    assert slow(evidence(second=LEARNS, stuck=origin)) is None


def test_weights_that_stand_still_are_no_finding_where_the_model_learns():
    """A few weights that go far in 32 bits alone are most of the way."""
    known = first_steps(Movement(0.05, 0.1, 1.0))
    assert still(known)
    assert weights(known).mechanism == "absorption"
    known.second = SLOW
    assert weights(known).mechanism == "absorption"
    known.second = LEARNS
    assert weights(known) is None


def test_a_loss_that_ended_the_longer_look_names_what_lost_it():
    origin = Found("<loss>", "sqrt", "cancellation", 2.0, source="train.py:7")
    ended = replace(SLOW, candidate=[math.nan], ended=37, origin=origin)
    found = slow(evidence(optimizer=probe(zeroed={"exp_avg_sq": 0.3}), second=ended))
    assert (found.module, found.operation) == ("<loss>", "sqrt")
    assert found.mechanism == "cancellation"
    assert found.reason.startswith("after 37 steps the loss is not finite in 16 bits: sqrt")
    assert found.source == "train.py:7"


def test_steps_are_not_blamed_for_what_the_weights_of_32_bits_lose_too():
    zeroed = probe(zeroed={"exp_avg_sq": 0.3})
    assert slow(evidence(optimizer=zeroed, second=SLOW)).operation == "exp_avg_sq"

    def seen(value):
        return Score("R²", value, 0.001, 9, True, torch.zeros(1))

    lost = evidence(optimizer=zeroed, second=SLOW, evaluated=Evaluated(seen(0.9), seen(0.5), 40))
    found = slow(lost)
    assert (found.module, found.mechanism) == ("", "precision-loss")
    lost.digits = LostDigits("wave", "sin", "train.py:9", 1.0, 400.0, 0.3)
    found = slow(lost)
    assert (found.module, found.operation) == ("wave", "sin")
    assert "evaluated in 16 bits" in found.evidence


FAR = Movement(gain=0.3, size=4.0, length=1.0)


@pytest.mark.parametrize(
    ("eps", "share", "moved", "ended", "blamed"),
    [
        (1e-6, 0.8, FAR, 4, "<optimizer>"),
        (1e-4, 0.8, FAR, 4, "head"),  # it bounds them
        (None, 0.8, FAR, 4, "head"),
        (1e-6, 0.3, FAR, 4, "head"),  # a part of it: steps are no longer than they were
        (1e-6, 0.8, HEALTHY, 4, "head"),
        (1e-6, 0.8, FAR, 5, "head"),  # so far the check has not looked at 32-bit weights
    ],
)
def test_steps_that_led_where_something_overflows_are_to_blame(eps, share, moved, ended, blamed):
    origin = Found("head", "mul", "overflow", 100.0, 7e4, "net.py:3")
    look = replace(SLOW, candidate=[math.nan], ended=ended, origin=origin)
    known = probe(zeroed={"exp_avg_sq": share})
    found = slow(evidence(optimizer=known, weights=moved, second=look, least_epsilon=eps))
    assert found.module == blamed
    assert f"after {ended} steps the loss is not finite in 16 bits: mul in head" in found.reason
    if blamed == "<optimizer>":
        assert (found.operation, found.mechanism) == ("exp_avg_sq", "underflow")
        assert f"{share:.0%} of exp_avg_sq is zero in float16" in found.evidence
