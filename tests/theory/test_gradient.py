"""Rounding noise beside batch noise: against numpy, by construction, and its limits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_fp16.theory.gradient import (
    batch_variance,
    best_loss_scale,
    extrapolated,
    learns_slowly,
    meaningless,
    movement,
    noise,
    reached_at_the_end,
    sums,
)
from pytest_fp16.theory.rounding import FLOAT16


def gradients(count=6, size=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) + 0.3 for _ in range(count)]


def test_batch_variance_is_the_trace_of_numpys_covariance():
    given_ = gradients(5, 12)
    expected = np.trace(np.cov(np.stack([g.double().numpy() for g in given_]).T))
    assert batch_variance(given_) == pytest.approx(expected)


def test_rho_of_known_noise():
    exact = gradients(8, 50_000)
    generator = torch.Generator().manual_seed(1)
    low = [g + 0.1 * torch.randn(g.shape, generator=generator) for g in exact]
    found = noise(sums(exact, low), batch_variance(exact), FLOAT16.unit_roundoff)
    assert found.rho == pytest.approx(0.01, rel=0.02)  # 0.1² per entry over a variance of 1
    assert found.gain == pytest.approx(1, abs=0.01)
    assert found.bias < 1e-3  # errors that average out are no bias
    assert found.excess < 0.01


def test_a_constant_error_is_bias():
    exact = gradients(8, 5000)
    found = noise(
        sums(exact, [g + 0.1 for g in exact]), batch_variance(exact), FLOAT16.unit_roundoff
    )
    assert found.bias == pytest.approx(found.rho, rel=1e-4)


@given(st.floats(0.1, 10), st.floats(0.05, 3))
@settings(max_examples=30, deadline=None)
def test_noise_does_not_depend_on_the_scale_of_the_loss(scale, shrink):
    exact = gradients(4, 64)
    low = [g * shrink for g in exact]
    plain = noise(sums(exact, low), batch_variance(exact), 2**-11)
    scaled_exact = [g * scale for g in exact]
    other = noise(
        sums(scaled_exact, [g * scale for g in low]), batch_variance(scaled_exact), 2**-11
    )
    assert other.rho == pytest.approx(plain.rho, rel=1e-4)
    assert other.allowed == pytest.approx(plain.allowed, rel=1e-4)
    assert other.gain == pytest.approx(shrink, rel=1e-4)


def test_a_full_batch_has_no_variance_and_is_granted_rounding():
    exact = [torch.linspace(-1, 1, 100)] * 3
    close = [g * (1 + 4 * FLOAT16.unit_roundoff) for g in exact]
    far = [g * (1 + 400 * FLOAT16.unit_roundoff) for g in exact]
    assert noise(sums(exact, close), 0.0, FLOAT16.unit_roundoff).excess < 1
    assert noise(sums(exact, far), 0.0, FLOAT16.unit_roundoff, share=0.5).excess > 1


def test_underflow_and_what_it_costs():
    exact = [torch.tensor([1e-9, 2e-9, 1.0])] * 2
    low = [g.half().float() for g in exact]
    found = noise(sums(exact, low), 1.0, FLOAT16.unit_roundoff)
    assert found.zeroed == pytest.approx(2 / 3)
    assert found.zeroed_norm < 1e-15
    assert found.excess < 1


def test_not_finite():
    exact = gradients(2, 4)
    found = noise(sums(exact, [exact[0], torch.full((4,), math.inf)]), 1.0, 2**-11)
    assert found.excess == math.inf


def test_meaningless():
    gradient = torch.tensor([1e-9, -2e-9])
    assert meaningless(gradient, -gradient)
    assert not meaningless(gradient, gradient * 1.001)
    assert meaningless(torch.zeros(2), torch.zeros(2))


@pytest.mark.parametrize("exponent", [-12, -9, -7, -5, -2, 1])
def test_loss_scale_lifts_gradients_and_does_not_overflow(exponent):
    sizes = torch.logspace(exponent - 1, exponent, 500)
    scale = best_loss_scale([sizes], FLOAT16.smallest_normal, FLOAT16.largest)
    lifted = sizes * scale
    assert math.log2(scale) == int(math.log2(scale))
    assert float(lifted.quantile(0.02)) >= FLOAT16.smallest_normal
    assert float(lifted.max()) < FLOAT16.largest
    if exponent >= -2:
        assert scale == 1


def test_movement():
    way = torch.tensor([3.0, 4.0])
    assert movement(way, way).distance == 0
    assert movement(way, torch.zeros(2)).gain == 0
    assert movement(way, torch.zeros(2)).distance == 1
    across = movement(way, torch.tensor([-4.0, 3.0]))
    assert (across.gain, across.size, across.length) == (0, 1, 5)
    assert across.distance == pytest.approx(math.sqrt(2))
    assert movement(torch.zeros(2), torch.zeros(2)).size == 1
    assert math.isnan(movement(way, torch.tensor([math.nan, 0])).gain)


@given(st.floats(0.0, 0.99), st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_extrapolation_of_an_average_that_settles(ratio, blocks):
    first = torch.tensor([2.0, -1.0], dtype=torch.float64)
    walked, block = torch.zeros(2, dtype=torch.float64), first.clone()
    for _ in range(blocks):
        walked, block = walked + block, block * ratio
    assert extrapolated(first, first * ratio, blocks) == pytest.approx(float(walked.norm()))


def test_tensors_add_up():
    exact, low = gradients(3, 100), gradients(3, 100, seed=1)
    parts = [sums([g[a:b] for g in exact], [g[a:b] for g in low]) for a, b in ((0, 30), (30, 100))]
    whole = noise(sums(exact, low), batch_variance(exact), 2**-11)
    added = noise(parts[0] + parts[1], batch_variance(exact), 2**-11)
    for name in ("rho", "allowed", "bias", "gain", "relative", "zeroed"):
        assert getattr(added, name) == pytest.approx(getattr(whole, name)), name


@pytest.mark.parametrize(
    ("half", "candidate", "slow"),
    [
        ([1.0, 1.1], [0.5, 0.6], False),  # as fast
        ([1.0, 1.1], [1.2, 1.3], True),  # where the reference was before half of its steps
        ([0.6, 0.7], [0.8, 0.9], True),  # the reference had been faster still
        (None, [0.8, 0.9], False),  # nothing is known of half of the steps: most has been learnt
        (None, [1.4, 1.5], True),  # less than half of the progress
        ([0.5, 0.6], [0.55, 0.62], False),  # the reference has learnt nothing since
        ([1.0, 1.1], [0.2, 1.95], False),  # batches scatter more than they differ
    ],
)
def test_learning_at_half_the_speed(half, candidate, slow):
    assert learns_slowly([2.0, 2.1], half, [0.5, 0.6], candidate) is slow


def test_a_reference_that_learns_nothing_says_nothing():
    assert not learns_slowly([2.0, 2.2], [2.1, 2.1], [2.1, 2.0], [9.0, 9.0])


@pytest.mark.parametrize(
    ("middle", "end", "reached"),
    [(11.0, 21.0, 201.0), (11.0, 22.0, 211.0), (1.0, 1.0, None), (11.0, 12.0, None)],
)
def test_what_grows_evenly_is_followed_to_the_end(middle, end, reached):
    begin, middle, end = (torch.tensor([v, 0.0]) for v in (1.0, middle, end))
    assert reached_at_the_end(begin, middle, end, 20) == reached
