"""What asks for a longer look, and what one lets pass."""

import pytest

from pytest_fp16.engine.gradients.evidence import Evidence
from pytest_fp16.engine.gradients.points import Point
from pytest_fp16.engine.gradients.probes.optimizer_probe import Probe
from pytest_fp16.engine.gradients.probes.second_look import SecondLook
from pytest_fp16.engine.gradients.rules.rules import RULES
from pytest_fp16.engine.gradients.rules.second_look_rules import needs_longer_look, suspected
from pytest_fp16.theory.gradient import Movement, Noise
from pytest_fp16.theory.rounding import BFLOAT16

BENT = Noise(25.0, 1.0, 0.0, 0.26, 0.8, 0.0, 0.0)
#: Losses of 32 bits: before, after half of the steps and after all.
LEARNT = [0.4, 0.41], [0.05, 0.06], [0.02, 0.03]


def moved(gain):
    return Probe(Movement(gain, 1.1 * gain, 1.0), True, -1, {}, {}, lost=0.5)


def test_a_longer_look_is_for_what_nothing_else_explains():
    losses = [(1.0, 1.0), (1.0, 1.0)]
    stands = Evidence(BFLOAT16, weights=Movement(0.05, 0.1, 1.0), first_losses=losses)
    turns = Evidence(BFLOAT16, weights=Movement(0.5, 2.0, 1.0), first_losses=losses)
    bent = Point(0, [(1.0, 1.0)], BENT, {"gate": BENT})
    assert needs_longer_look(Evidence(BFLOAT16)) is None
    assert needs_longer_look(stands) is False
    assert needs_longer_look(turns) is False
    assert needs_longer_look(Evidence(BFLOAT16, points=[bent])) is True
    stands.lost_buffers = ["mean"]
    assert needs_longer_look(stands) is None


@pytest.mark.parametrize(("gain", "asked"), [(0.9, None), (0.47, False), (0.05, None)])
def test_weights_that_go_some_of_their_way_ask_for_one(gain, asked):
    assert needs_longer_look(Evidence(BFLOAT16, optimizer=moved(gain))) is asked


@pytest.mark.parametrize(
    ("losses", "passes"),
    [
        ((*LEARNT, [0.03, 0.02]), True),  # next to nothing is left
        ((*LEARNT, [0.05, 0.06]), False),  # as after half of the steps
        (([2.3, 2.4], [1.6, 1.7], [1.0, 1.1], [1.0, 1.1]), False),  # much is, at a standstill
        (([0.0, -0.1], [-1.0, -1.1], [-2.0, -2.1], [-2.0, -2.1]), False),  # nobody knows
    ],
)
def test_they_do_no_harm_where_next_to_nothing_is_left_to_learn(losses, passes):
    seen = Evidence(BFLOAT16, optimizer=moved(0.47), second=SecondLook(60, *losses))
    found = [finding for rule in RULES if (finding := rule(seen)) is not None]
    assert (not found) is passes
    if passes:
        assert suspected(seen).mechanism == "absorption"
    else:
        assert found[0].reason.startswith("the weights stand still")


def test_a_near_standstill_is_one_whatever_has_been_learnt():
    seen = Evidence(BFLOAT16, optimizer=moved(0.05), second=SecondLook(60, *LEARNT, [0.03, 0.02]))
    assert any(rule(seen) for rule in RULES)
