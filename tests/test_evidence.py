"""What the totals make of a batch's outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check


@pytest.mark.parametrize("labelled", [True, False])
def test_a_tie_is_no_flip_but_costs_what_argmax_makes_of_it(labelled):
    """1.0005 and 1 are one value in bfloat16; argmax then takes the first class."""
    logits = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    logits[7] = torch.tensor([1.0, 1.0005, -1.0])
    data = [(logits, logits.argmax(1))] if labelled else [logits]
    evaluation = Evaluation(model=nn.Identity(), data=data, labelled=labelled)
    report = check(evaluation, precision="bf16-true")
    assert (report.flips, report.ties) == (0, 1)
    assert report.metric.loss == pytest.approx(0.005)


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
