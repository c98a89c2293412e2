"""A certificate is sound: no error within the bounds changes the decision. And it is given."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_fp16.engine.prediction.certificates import Certifier, clear_rivals
from pytest_fp16.engine.prediction.rivals import EXTRA_COMPETITORS
from pytest_fp16.engine.prediction.theory_batch import PROBABLE_SIGMAS
from pytest_fp16.engine.tracing.sites import Sums
from pytest_fp16.task import Task
from pytest_fp16.theory.rounding import FLOAT16

ROWS = 3


class KnownRivals:
    """Backward passes whose outcome is known: each class has one bound and one σ."""

    def __init__(self, bounds, sigmas):
        self.bounds, self.sigmas, self.asked = bounds, sigmas, 0

    def sums(self, classes):
        # A `Sums` of one site per input: |∂g/∂y · ulp| is twice the bound, √12 times σ.
        return Sums(12 * self.sigmas[classes].square(), 2 * self.bounds[classes])

    def ask(self, asked, reference):
        self.asked += int(asked.any(0).sum())
        self.ranks = reference.argsort(-1, descending=True)[:, 0]

    def of(self, fmt, extra):
        return self.sums(self.ranks[:, extra + 2]) if extra + 2 < self.ranks.shape[1] else None


def judged(logits, bounds, sigmas, kind="classification", undecided=None, predicted=None):
    """What is certified of logits [N, C] where class k has a known bound and σ."""
    n = len(logits)
    reference = logits.unsqueeze(1)
    ranks = logits.argsort(-1, descending=True)
    rivals = KnownRivals(bounds, sigmas)
    own = rivals.sums(ranks[:, 1])
    ratio = torch.maximum(
        bounds / own.bound.unsqueeze(1), sigmas / own.sigma.unsqueeze(1)
    )  # [N, C]
    none = torch.zeros(n, dtype=torch.bool)
    trace = SimpleNamespace(
        doubts=SimpleNamespace(undecided=none if undecided is None else undecided),
        recorder=SimpleNamespace(overflowed=none.clone()),
    )
    certifier = Certifier(Task(kind), FLOAT16, screen=ratio.amax(0))
    canonical = reference if predicted is None else predicted.unsqueeze(1)
    said = certifier.judge(trace, canonical, reference, own)
    clear_rivals([(certifier, said)], reference, rivals)
    return said, ranks, rivals


finite = st.integers(-60, 60).map(lambda i: i / 7)
sizes = st.integers(1, 30).map(lambda i: i / 20)


@st.composite
def cases(draw):
    classes = draw(st.integers(2, 7))
    row = st.lists(finite, min_size=classes, max_size=classes, unique=True)
    logits = torch.tensor(draw(st.lists(row, min_size=ROWS, max_size=ROWS)))
    bounds = torch.tensor(draw(st.lists(sizes, min_size=classes, max_size=classes)))
    return logits, bounds, bounds * draw(st.sampled_from([0.1, 0.25, 0.5]))


@given(cases())
def test_every_competitor_clears_its_own_bound(case):
    logits, bounds, sigmas = case
    said, ranks, _ = judged(*case)
    gaps = logits.gather(-1, ranks[:, :1]) - logits  # [N, C]
    others = torch.ones_like(gaps, dtype=torch.bool).scatter(-1, ranks[:, :1], False)
    for certified, needed in (
        (said.bounded[:, 0], bounds),
        (said.probable[:, 0], PROBABLE_SIGMAS * sigmas),
    ):
        slack = 1e-5 * (1 + logits.abs().amax())
        cleared = ((gaps >= needed - slack) | ~others).all(-1)
        assert bool((cleared | ~certified).all()), "certified, and yet a class could win"


@given(cases())
def test_who_is_far_from_all_is_certified(case):
    logits, bounds, sigmas = case
    far = logits.clone()
    top = logits.argmax(-1, keepdim=True)
    far.scatter_(-1, top, 1e4)
    said, _, rivals = judged(far, bounds, sigmas)
    assert bool(said.bounded.all())
    assert bool(said.probable.all())
    assert rivals.asked == 0  # nobody comes near: no pass is spent


def one(*logits):
    return torch.tensor([logits])


def test_a_third_class_with_a_wider_bound_is_asked_about():
    bounds = torch.tensor([0.1, 0.1, 2.0, 0.1])
    said, _, rivals = judged(one(3.0, 2.0, 1.5, -5.0), bounds, bounds / 100)
    assert rivals.asked == 1
    assert not bool(said.bounded.any())
    assert bool(said.probable.all())
    said, _, _ = judged(one(3.0, 2.0, 0.5, -5.0), bounds, bounds / 100)
    assert bool(said.bounded.all())


def test_only_so_many_passes_are_spent():
    bounds = torch.full((8,), 0.4)
    crowd = one(3.0, 2.5, 2.45, 2.4, 2.35, 2.3, 2.25, 2.2)
    bounds[-1] = 3.0  # a wide screen, so that all of them need a pass
    said, _, rivals = judged(crowd, bounds, bounds / 100)
    assert rivals.asked <= EXTRA_COMPETITORS
    assert not bool(said.bounded.any())


@pytest.mark.parametrize("near", [True, False])
def test_an_input_near_a_decision_inside_has_no_certificate(near):
    bounds = torch.full((3,), 0.1)
    said, _, _ = judged(one(3.0, 1.0, 0.0), bounds, bounds / 9, undecided=torch.tensor([near]))
    assert bool(said.bounded.any()) is bool(said.probable.any()) is not near


def test_values_are_no_decisions():
    bounds = torch.full((3,), 0.1)
    said, _, rivals = judged(one(30.0, 1.0, 0.0), bounds, bounds / 9, kind="regression")
    assert not bool(said.bounded.any() or said.probable.any())
    assert rivals.asked == 0
    assert said.sigma.shape == said.margin.shape == (1, 1)


def test_a_third_class_that_is_nan_is_cleared_of_nothing():
    bounds = torch.full((3,), 0.1)
    reference, logits = one(3.0, 1.0, 0.0), one(3.0, 1.0, float("nan"))
    said, _, _ = judged(reference, bounds, bounds / 9, predicted=logits)
    assert not bool(said.bounded.any() or said.probable.any())
