"""Even numbers, and where formats leave them."""

import pytest
import torch

from pytest_fp16.theory.pace import Pace, pace_of


def one(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "stands"), [(torch.bfloat16, 256), (torch.float16, 2048)])
def test_a_count_stands_still_at_two_to_the_digits(dtype, stands):
    played = Pace(one(0.0), one(1.0), factor=False).played(5000, dtype)
    assert float(played[-1]) == stands
    assert len(played) == stands + 2  # the start, and the step that changes nothing


def test_a_short_count_arrives():
    played = Pace(one(0.0), one(1.0), factor=False).played(200, torch.bfloat16)
    assert [float(v) for v in played] == list(range(201))


@pytest.mark.parametrize("factor", [0.998, 1.002])
def test_a_factor_within_half_a_spacing_of_one_is_none(factor):
    pace = Pace(one(8.5), one(factor), factor=True)
    assert len(pace.played(700, torch.bfloat16)) == 2
    moved = float(pace.played(700, torch.float16)[-1]) / 8.5
    assert moved == pytest.approx(factor**700, rel=0.3)


def test_a_step_in_parts_rounds_each_of_them():
    pace = Pace(one(0.0), one(4.0), factor=False)
    assert float(pace.played(1000, torch.bfloat16)[-1]) == 1024
    assert float(pace.played(1000, torch.bfloat16, every=4)[-1]) == 256


def test_a_bound_is_not_passed():
    pace = Pace(one(0.0), one(0.01), factor=False)
    assert float(pace.played(300, torch.float16, stop=one(0.5))[-1]) == 0.5
    falling = Pace(one(1.0), one(0.9), factor=True)
    assert float(falling.played(300, torch.float16, stop=one(0.25))[-1]) == 0.25


def test_the_pace_is_seen_from_what_float32_gives():
    tau, count = torch.tensor(8.0), torch.tensor(3.0)
    taus, counts = [tau], [count]
    for _ in range(60):
        taus.append(taus[-1] * 0.998)
        counts.append(counts[-1] + 1)
    falls, grows = pace_of(taus), pace_of(counts)
    assert falls.factor
    assert float(falls.by) == pytest.approx(0.998, rel=1e-7)
    assert not grows.factor
    assert float(grows.at(450)) == 453


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 1.0, 1.0],  # nothing moves
        [0.0, 1.0, 1.0],
        [0.0, 0.1, 0.19, 0.271],  # an average on its way to one
        [1.0, 2.0, float("inf")],
        [1e4, 1e4 + 1e-3],  # float32's own rounding
        [2.0],
    ],
)
def test_what_is_not_even_has_no_pace(values):
    assert pace_of([torch.tensor(v) for v in values]) is None
