import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pytest_fp16.theory.margin import (
    certified_by_lemma,
    classification_tolerance,
    flips_and_ties,
    floating_point_error,
    hidden,
    margin,
    probabilities,
    top_two,
)

values = st.floats(-8, 8, width=32)
logits_pairs = st.integers(2, 6).flatmap(
    lambda classes: st.tuples(
        hnp.arrays("float32", (4, 1, classes), elements=values),
        hnp.arrays("float32", (4, 1, classes), elements=st.floats(-2, 2, width=32)),
    )
)


@given(pair=logits_pairs)
def test_what_the_lemma_certifies_never_changes_its_class(pair):
    reference, error = (torch.from_numpy(p) for p in pair)
    candidate = reference + error
    certified = certified_by_lemma(reference, candidate)

    same = reference.argmax(-1) == candidate.argmax(-1)
    flips, ties = flips_and_ties(candidate, reference.argmax(-1))

    assert same[certified].all()
    assert not flips[certified].any()
    assert not ties[certified].any()


def test_the_lemma_claims_nothing_at_equality():
    reference = torch.tensor([[[0.75, 0.25]]])
    candidate = torch.tensor([[[0.5, 0.5]]])

    assert classification_tolerance(reference).item() == 0.5
    assert floating_point_error(reference, candidate).item() == 0.25
    assert not certified_by_lemma(reference, candidate).item()
    assert certified_by_lemma(reference, torch.tensor([[[0.51, 0.49]]])).item()


@given(pair=logits_pairs)
def test_delta_and_gamma_by_their_definitions(pair):
    reference, error = (torch.from_numpy(p) for p in pair)
    assume(probabilities(reference) is not reference)  # logits may happen to sum to one
    p, q = reference.softmax(-1), (reference + error).softmax(-1)
    ordered = p.sort(-1, descending=True).values

    torch.testing.assert_close(
        classification_tolerance(reference), ordered[..., 0] - ordered[..., 1]
    )
    torch.testing.assert_close(
        floating_point_error(reference, reference + error), (p - q).abs().max(-1).values
    )


def test_probabilities_are_left_as_they_are():
    p = torch.randn(3, 1, 5).softmax(-1)

    assert probabilities(p) is p
    torch.testing.assert_close(probabilities(p.log()), p)


def test_probabilities_stay_so_where_16_bits_bend_their_sum():
    reference = torch.full((1, 1, 50), 0.02)
    candidate = reference.to(torch.bfloat16).float() * 1.01

    expected = (reference - candidate).abs().max()
    torch.testing.assert_close(floating_point_error(reference, candidate).squeeze(), expected)


def test_top_two_and_margin():
    logits = torch.tensor([[[1.0, 5.0, 3.0]], [[2.0, -1.0, float("nan")]]])
    top, other = top_two(logits)

    assert top.tolist() == [[1], [0]]
    assert other.tolist() == [[2], [1]]
    assert margin(logits, top, other).tolist() == [[2.0], [3.0]]


def test_one_class_has_no_margin():
    with pytest.raises(ValueError, match="at least two classes"):
        top_two(torch.zeros(3, 1, 1))


@pytest.mark.parametrize(
    ("row", "flip", "tie"),
    [
        ([2.0, 1.0, 0.0], False, False),
        ([1.0, 2.0, 0.0], True, False),
        ([2.0, 2.0, 0.0], False, True),
        ([1.0, 2.0, 2.0], True, False),
        ([float("nan"), 1.0, 0.0], True, False),
        ([1.0, float("nan"), 0.0], True, False),
        ([float("inf"), 1.0, 0.0], False, False),
    ],
)
def test_flips_and_ties_against_class_zero(row, flip, tie):
    flips, ties = flips_and_ties(torch.tensor([[row]]), torch.tensor([[0]]))

    assert (flips.item(), ties.item()) == (flip, tie)


def test_a_tie_at_infinity_is_a_flip():
    candidate = torch.tensor([[[torch.inf, torch.inf, 0.0]], [[torch.inf, 1.0, 0.0]]])
    flips, ties = flips_and_ties(candidate, torch.zeros(2, 1, dtype=torch.long))
    assert flips.flatten().tolist() == [True, False]
    assert not ties.any()


@pytest.mark.parametrize("mask", [-1e4, -1e8, torch.finfo(torch.float32).min])
def test_a_mask_hides_a_class_by_any_constant(mask):
    rows = torch.tensor([[0.1, -3.0, mask], [5.0, mask, 4.999], [mask, mask, 2.0]])
    assert hidden(rows).tolist() == (rows == mask).tolist()
    logs = torch.tensor([[-1e-6, -14.0, mask], [-0.7, -0.7, mask]])
    assert hidden(logs).tolist() == (logs == mask).tolist()


@given(hnp.arrays("float32", (8, 4), elements=st.floats(-50, 50, width=32)), st.floats(1e-3, 1e6))
def test_what_competes_is_not_hidden_in_whatever_unit(rows, unit):
    rows[:, 0] = 10  # logits, or scores, of ordinary size
    assert not hidden(torch.from_numpy(rows * np.float32(unit))).any()


def test_nothing_is_hidden_where_nothing_is_known_of_the_size():
    assert not hidden(torch.zeros(0, 3)).any()
    assert not hidden(torch.zeros(4, 1)).any()
    assert not hidden(torch.tensor([[0.0, 0.0, -1.0]])).any()
    assert not hidden(torch.full((2, 3), torch.nan)).any()
