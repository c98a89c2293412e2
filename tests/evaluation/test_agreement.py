"""Without labels: what a flip costs, and which models that lets pass."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.evaluation.agreement import Agreement

REAL = {"allow_nan": False, "allow_infinity": False}
margins = st.lists(st.floats(1e-6, 1e6, **REAL), min_size=1, max_size=40)


def agreement(gaps, flips=(), weights=None, classes=None, flipped=None):
    made = Agreement()
    gaps = torch.tensor(gaps, dtype=torch.float64).reshape(-1, 1)
    leads = torch.tensor(flips, dtype=torch.float64)
    own = torch.zeros_like(gaps) if classes is None else torch.tensor(classes).reshape(-1, 1)
    theirs = torch.zeros_like(leads) if flipped is None else torch.tensor(flipped)
    made.add(gaps, own.long(), torch.ones_like(gaps, dtype=torch.bool))
    weights = torch.ones_like(leads) if weights is None else torch.tensor(weights)
    made.add_flips(leads, theirs.long(), weights)
    return made


@given(margins, st.data())
def test_a_flip_costs_its_margin_in_medians_and_at_most_one(gaps, data):
    flips = data.draw(st.lists(st.sampled_from(gaps), max_size=len(gaps)))
    median = sorted(gaps)[(len(gaps) - 1) // 2]
    cost = sum(min(1.0, flip / median) for flip in flips) / len(gaps)
    # A bin is an eighth of a power of two; both ends of the quotient can be off by one.
    assert 1 - agreement(gaps, flips).value == pytest.approx(cost, rel=2 ** (1 / 8) - 1)


@given(margins, st.floats(1e-3, 1e3, **REAL))
def test_the_logits_scale_has_no_part_in_it(gaps, scale):
    plain = agreement(gaps, gaps[:3]).value
    assert agreement([g * scale for g in gaps], [g * scale for g in gaps[:3]]).value == (
        pytest.approx(plain, abs=2 ** (1 / 8) - 1)
    )


def test_what_decides_nothing_costs_a_whole_decision():
    assert agreement([1.0] * 10, [torch.inf]).value == 0.9
    assert agreement([0.0] * 10, [0.0]).value == 0.9  # no margin is smaller than the others
    assert agreement([1.0] * 10, [1.0], [0.25]).value == pytest.approx(0.975)


def test_a_rare_class_is_not_measured_by_the_margins_of_a_common_one():
    gaps, classes = [16.0] * 90 + [1.0] * 10, [0] * 90 + [1] * 10
    background = agreement(gaps, [1.0] * 10, classes=classes, flipped=[0] * 10)
    objects = agreement(gaps, [1.0] * 10, classes=classes, flipped=[1] * 10)
    assert background.value == pytest.approx(1 - 10 / 16 / 100)
    assert objects.value == pytest.approx(0.9)


def test_a_class_of_few_decisions_has_the_median_of_all():
    gaps, classes = [16.0] * 93 + [1.0] * 7, [0] * 93 + [1] * 7
    assert agreement(gaps, [1.0], classes=classes, flipped=[1]).value == pytest.approx(
        1 - 1 / 16 / 100
    )


def test_classes_of_a_vocabulary_find_a_place():
    gaps = [1.0] * 20
    assert agreement(gaps, [1.0], classes=range(40_000, 60_000, 1000), flipped=[59_000]).value < 1


def test_decisions_that_do_not_count_have_no_part_in_it():
    made = Agreement()
    classes = torch.zeros(4, 3, dtype=torch.long)
    made.add(torch.ones(4, 3), classes, torch.tensor([[True, True, False]] * 3 + [[False] * 3]))
    assert (made.count, made.inputs) == (6, 3)


def test_before_the_first_decision_there_is_none():
    assert agreement([]).value != agreement([]).value


@pytest.fixture
def untrained():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 10)).eval()


@pytest.fixture
def inputs():
    return [torch.randn(200, 16, generator=torch.Generator().manual_seed(i)) for i in range(10)]


def test_flips_where_the_reference_can_hardly_tell_are_no_failure(untrained, inputs):
    report = check(Evaluation(model=untrained, data=inputs), precision="bf16-true")
    assert report.flips + report.ties > 0
    assert report.verdict == "equivalent", str(report)
    assert report.forecast.verdict == "equivalent"
    assert report.metric.name == "agreement by margin"
    assert 0 < report.metric.loss < (report.flips + report.ties) / 2000


def test_a_budget_that_was_set_is_one_for_flips(untrained, inputs):
    report = check(Evaluation(model=untrained, data=inputs), precision="bf16-true", budget=1e-4)
    assert report.verdict == "not equivalent"
    assert report.metric.name == "agreement with the reference"


class Small(nn.Module):
    """Logits so near each other, beside their size, that bfloat16 holds no difference."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return 1 + 1e-4 * self.body(x)


@pytest.mark.parametrize("name", ["bf16-true", "bf16-mixed"])
def test_logits_that_become_equal_are_one_however_small_their_margins(untrained, inputs, name):
    report = check(Evaluation(model=Small(untrained), data=inputs), precision=name)
    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert report.metric.loss > 0.3


def test_a_model_that_is_wrong_on_one_input_in_fifty_is_one(untrained, inputs):
    class Rarely(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = untrained

        def forward(self, x):
            z = self.body(x)
            return z if x.dtype == torch.float32 else torch.where(x[:, :1] > 2.05, -z, z)

    report = check(Evaluation(model=Rarely(), data=inputs), precision="16-true")
    assert report.verdict == "not equivalent"
