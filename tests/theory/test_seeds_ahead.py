"""What would settle an open verdict: more pairs, or more 32-bit runs."""

import numpy as np
import pytest

from pytest_fp16.theory.seeds import sequential
from pytest_fp16.theory.seeds_ahead import further_runs, seeds_missing

STEADY = 0.01 * np.array([-1.26, -0.63, 0.0, 0.63, 1.26])  # a spread of 0.01


@pytest.mark.parametrize(
    ("losses", "resolution", "budget", "outcome"),
    [
        pytest.param([0.2] * 5, 0.001, None, "not equivalent", id="settled"),
        pytest.param([0.1, -0.1, 0, 0.08, -0.08], 0.001, None, "undecided", id="mean unknown"),
        pytest.param([0.051, 0.049, 0.050], 0.05, None, "undecided", id="resolution is budget"),
        pytest.param([0.044, 0.045, 0.046], 0.001, 0.0452, "undecided", id="given budget"),
        pytest.param([0.01], 0.001, None, "undecided", id="no look yet"),
    ],
)
def test_no_further_runs_are_made_for_nothing(losses, resolution, budget, outcome):
    look = sequential(losses, 0.9 + STEADY, resolution, 5, budget)
    assert look.outcome == outcome
    assert further_runs(look, losses, 5) == 0


def test_seeds_missing_settles_most_undecided_looks(settled):
    random, asked, done = np.random.default_rng(5), 0, 0
    while asked < 20:
        reference, own = random.standard_normal((2, 180))
        losses = reference - own + 2 * random.choice([0.0, 2.0, 3.0])
        look = settled(losses, reference, 0.5, 5)
        more = seeds_missing(look, losses[: look.n], 5)
        if look.outcome != "undecided":
            assert more == 0
            continue
        assert more >= 1
        if 5 + more > 60:  # each total has a plan of its own to simulate
            continue
        asked += 1
        total = 5 + more
        again = sequential(losses[:total], reference[:total], 0.5, total, None)
        if again.outcome == "undecided":
            runs = reference[: 3 * total]
            again = sequential(losses[:total], runs, 0.5, total, None, further=2)
        done += again.outcome != "undecided"
    assert done / asked > 0.6


def test_one_pair_asks_for_as_many_as_a_first_look_needs():
    look = sequential([0.01], [0.9], 0.003, 1, None)
    assert look.outcome == "undecided"
    assert seeds_missing(look, [0.01], 1) == 2
