"""The search finds what bisection finds, in fewer cuts where the guesses are good."""

import math
import random

import pytest

from pytest_fp16.diagnosis.search import Search

SOUGHT = 0.16


def found(shares, damage, lost=None):
    """(origin, number of cuts) of a program whose squared damage at a cut is known."""
    search, cuts = Search(shares, SOUGHT, lost), 0
    while (cut := search.cut()) is not None:
        assert search.harmless < cut < search.harmful
        search.learn(cut, damage[cut])
        cuts += 1
    return search.harmful - 1, cuts


def grown(shares):
    """The squared damage of each cut, if the error grows by these parts."""
    total, damage = sum(shares), [0.0]
    for share in shares:
        damage.append(damage[-1] + share / total)
    return damage


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_first_cut_that_does_enough(seed):
    draw = random.Random(seed)
    shares = [draw.random() ** 8 for _ in range(draw.randint(1, 200))]
    damage = grown(shares)
    wrong = [draw.random() for _ in shares]
    wanted = next(i for i, d in enumerate(damage[1:]) if d >= SOUGHT or i == len(shares) - 1)
    for expected in (shares, wrong, [0.0] * len(shares)):
        for lost in (None, wanted, draw.randrange(len(shares))):
            assert found(expected, damage, lost)[0] == wanted


def test_guesses_save_cuts_and_bad_ones_cost_few():
    plain, good, misled = [], [], []
    for seed in range(50):
        draw = random.Random(seed)
        shares = [draw.random() ** 4 for _ in range(256)]
        damage = grown(shares)
        plain.append(found([0.0] * 256, [float(d >= SOUGHT) for d in damage])[1])
        good.append(found(shares, damage)[1])
        misled.append(found(shares[::-1], damage, lost=200)[1])
    assert sum(good) < 0.9 * sum(plain)
    assert max(misled) <= 2 * math.log2(256)


def test_an_overflow_is_found_in_two_cuts():
    assert found([0.0] * 300, [0.0] * 150 + [1.0] * 151, lost=149) == (149, 2)


def test_an_error_that_is_there_from_the_start_is_soon_found():
    damage = [0.0, *([0.9] * 200)]
    assert found([1.0] * 200, damage)[0] == 0
    assert found([1.0] * 200, damage)[1] <= 5


def test_cuts_are_chosen_among_those_that_are_asked_for():
    search, borders = Search([1.0] * 100, SOUGHT, None), {10, 15, 40, 80}
    damage, asked = grown([1.0] * 100), []
    while (cut := search.cut(borders)) is not None:
        search.learn(cut, damage[cut])
        asked.append(cut)
    assert set(asked) <= borders
    assert (search.harmless, search.harmful) == (15, 40)
    assert search.grown == pytest.approx(0.25)
