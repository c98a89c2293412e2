"""What the totals make of a batch's outputs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.evaluation.evidence import lost_values


@pytest.mark.parametrize("labelled", [True, False])
def test_a_tie_is_no_flip_but_costs_what_argmax_makes_of_it(labelled):
    """1.0005 and 1 are one value in bfloat16; argmax then takes the first class."""
    logits = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    logits[7] = torch.tensor([1.0, 1.0005, -1.0])
    data = [(logits, logits.argmax(1))] if labelled else [logits]
    evaluation = Evaluation(model=nn.Identity(), data=data, labelled=labelled)
    report = check(evaluation, precision="bf16-true")
    assert (report.flips, report.ties) == (0, 1)
    by_margin = 0.0005 / 0.7 / 200  # unlabelled: of a median margin of 0.7
    assert report.metric.loss == (
        pytest.approx(0.005) if labelled else pytest.approx(by_margin, rel=0.2)
    )


def test_the_headline_without_labels_shows_the_loss_that_was_judged():
    logits = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    logits[7] = torch.tensor([1.0, 1.0005, -1.0])
    evaluation = Evaluation(model=nn.Identity(), data=[logits], labelled=False)
    report = check(evaluation, precision="bf16-true", budget=0.001)
    assert report.verdict == "not equivalent"
    assert "0 flips and 1 tie of 200 (0.5 %, budget 0.1 %; no labels)" in str(report)


class _Noisy(nn.Module):
    """Logits of ordinary size, except at padded positions, where 16 bits see none of the digits."""

    def forward(self, x):
        pad = x[..., :1] > 4
        return torch.where(pad, (x + 4000) - 4000, x)


@pytest.mark.parametrize("ignored", [True, False])
def test_positions_that_do_not_count_have_not_moved(ignored):
    logits = torch.randn(40, 6, 3, generator=torch.Generator().manual_seed(0)).clamp(max=3.9)
    logits[:, 4:] = torch.tensor([4.25, 0.7, 1.6])
    labels = logits.argmax(-1)
    if ignored:
        labels[:, 4:] = -100
    report = check(Evaluation(model=_Noisy(), data=[(logits, labels)]), precision="16-true")
    assert report.verdict == "equivalent", str(report)
    assert any("survived by luck" in w for w in report.warnings) is not ignored


class _Hidden(nn.Module):
    """Two of four classes hidden by the smallest number of the type, which is another in each."""

    def forward(self, x):
        hidden = torch.tensor([False, False, True, True])
        return x.masked_fill(hidden, torch.finfo(x.dtype).min)


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_what_hides_a_class_has_not_moved(precision):
    logits = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    report = check(Evaluation(model=_Hidden(), data=[logits], labelled=False), precision=precision)
    assert report.verdict == "equivalent", str(report)
    assert not any("survived by luck" in w for w in report.warnings)


class _Forbidding(nn.Module):
    """Each second decision may not be what the first one was, as in a pointer network."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def forward(self, x):
        first = x[:, 0]
        taken = nn.functional.one_hot(first.argmax(-1), x.shape[-1]).bool()
        return torch.stack([first, x[:, 1].masked_fill(taken, self.mask)], 1)


@pytest.mark.parametrize("mask", [-1e4, -1e8])
def test_a_class_that_another_decision_forbids_has_not_moved(mask):
    """3.0005 and 3 are one value in bfloat16, so that another class is masked: by a constant."""
    logits = torch.randn(100, 2, 5, generator=torch.Generator().manual_seed(0))
    logits[7, 0, :2] = torch.tensor([3.0, 3.0005])
    labels = logits.argmax(-1)
    subject = Evaluation(model=_Forbidding(mask), data=[(logits, labels)])
    report = check(subject, precision="bf16-true", budget=0.05)
    assert report.verdict == "equivalent", str(report)
    assert not any("of their own spread" in w for w in report.warnings)


@pytest.mark.parametrize("mask", [-1e4, -1e8])
def test_nor_does_a_mask_hide_how_far_the_others_have(mask):
    class Coarse(nn.Module):
        def forward(self, x):
            off = torch.arange(x.shape[-1]) == x.shape[-1] - 1
            return ((x + 400) - 400).masked_fill(off, mask)

    logits = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    logits[:, 1] += 8  # no decision falls
    report = check(Evaluation(model=Coarse(), data=[logits], labelled=False), precision="bf16-true")
    assert report.verdict == "equivalent", str(report)
    assert any("survived by luck" in w for w in report.warnings)


class _Rejecting(nn.Module):
    """Classes of next to no chance are hidden: in 16 bits those are other ones, and more."""

    def forward(self, x):
        chances = (4 * x).softmax(-1)
        chances = chances * (chances > 2e-4)
        logs = chances.log()
        return torch.where(logs.isfinite(), logs, torch.finfo(logs.dtype).min)


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_another_class_that_is_hidden_has_not_moved(precision):
    logits = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    report = check(
        Evaluation(model=_Rejecting(), data=[logits], labelled=False), precision=precision
    )
    assert not any("of their own spread" in w for w in report.warnings)


def test_a_tie_of_the_reference_is_none_that_16_bits_made():
    logits = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    logits[:40, :2] = 3.0
    report = check(Evaluation(model=nn.Identity(), data=[logits], labelled=False))
    assert (report.flips, report.ties) == (0, 0)
    assert not any("tie exactly" in w for w in report.warnings)


@pytest.mark.parametrize(
    ("reference", "values", "lost"),
    [
        ([0.0, 1.0, 2.0], [0.0, torch.inf, torch.nan], 2),
        ([0.0, 1.0, -torch.inf], [-torch.inf, 1.0, 2.0], 0),
        ([0.0, 1.0, -torch.inf], [-torch.inf, 1.0, -torch.inf], 1),
        ([0.0, 1.0, -torch.inf], [torch.inf, 1.0, -torch.inf], 1),
        ([0.0, 1.0, -torch.inf], [0.0, torch.nan, torch.nan], 1),
    ],
)
def test_one_rejected_class_for_another_is_no_loss(reference, values, lost):
    assert lost_values(torch.tensor([reference]), torch.tensor([values])).tolist() == [lost]


class _Filtered(nn.Linear):
    """The five largest of ten logits, as a sampler's filter leaves them."""

    def forward(self, x):
        logits = super().forward(x)
        return logits.masked_fill(logits < logits.topk(5).values[:, -1:], -torch.inf)


def test_a_filter_of_the_models_own_may_reject_another_class():
    torch.manual_seed(0)
    model, x = _Filtered(16, 10).eval(), torch.randn(2000, 16)
    with torch.no_grad():
        rejected = copy.deepcopy(model).bfloat16()(x.bfloat16()).isinf() & model(x).isfinite()
    assert rejected.any()
    subject = Evaluation(model=model, data=[x], labelled=False)
    report = check(subject, precision="bf16-true", budget=0.02)
    assert report.verdict == report.forecast.verdict == "equivalent", str(report)


class _Codebook(nn.Module):
    """The nearest of eight codes: halfway between two, both are as far from the label."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.7))
        self.codes = nn.Parameter((torch.arange(8.0) + 0.5) / 8 * 1.7)

    def forward(self, x):
        return self.codes[(x * self.scale - self.codes).abs().argmin(-1)] / self.scale


def test_a_code_as_near_as_another_is_no_expected_loss():
    x = torch.rand(2000, 1, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    evaluation = Evaluation(model=_Codebook(), data=[(x, x[:, 0])], task="regression")
    report = check(evaluation, precision="bf16-true")
    assert report.forecast.undecided > 0
    assert abs(report.forecast.metric_loss - report.metric.loss) < 5e-4
    assert report.forecast.verdict == report.verdict == "equivalent"
