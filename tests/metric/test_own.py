"""A metric of the user's own, whichever kind it is."""

import pytest
import torch

from pytest_fp16 import DatasetMetric
from pytest_fp16.errors import DataError
from pytest_fp16.metric.dataset import Pooled
from pytest_fp16.metric.own import first_look, gained, indifferent, lost_scores, tally_of
from pytest_fp16.metric.scores import Scores


def scores(outputs, labels):
    return outputs[:, 0] - labels


def total(outputs, labels):
    return outputs.sum() - labels.sum()


def test_each_kind_has_its_tally():
    assert isinstance(tally_of(scores), Scores)
    assert isinstance(tally_of(DatasetMetric(total)), Pooled)


def test_a_tally_is_fed_outputs_and_labels():
    outputs, labels = torch.tensor([[1.0], [4.0]]), torch.tensor([0.0, 1.0])
    for metric, value in ((scores, 2.0), (DatasetMetric(total), 4.0)):
        tally = tally_of(metric)
        tally.take(outputs, labels, 2)
        assert (tally.value, tally.count) == (value, 2)


def test_the_first_look_is_what_the_metric_says():
    outputs, labels = torch.tensor([[1.0], [4.0]]), torch.tensor([0.0, 1.0])
    assert first_look(scores, outputs, labels, 2) == [1.0, 3.0]
    assert first_look(DatasetMetric(total), outputs, labels, 2) == [4.0]
    with pytest.raises(DataError, match="one score per input"):
        first_look(total, outputs, labels, 2)


def test_a_gain_is_told_with_its_name_and_budget():
    said = "loss of the 16-bit model is higher by 0.5 (budget 0.01), which rounding does not"
    assert gained("loss", 0.5, 0.01).startswith(said)


def test_outputs_that_are_wrong_show_what_scores_there_are():
    outputs, labels = torch.eye(3), torch.arange(3)
    found = lost_scores(lambda o, y: (o.argmax(1) == y).float(), outputs, labels, 3)
    assert set(found.tolist()) >= {0.0}
    shares = lost_scores(lambda o, y: (o == 1).float().mean(1), torch.ones(3, 64), labels, 3)
    assert set(shares.tolist()) > {0.0, 1.0}
    assert not len(lost_scores(lambda o, y: 1 / 0, outputs, labels, 3))
    assert not len(lost_scores(DatasetMetric(total), outputs, labels, 3))
    assert not len(lost_scores(scores, torch.tensor(1.0), labels, 3))


@pytest.mark.parametrize(
    ("outputs", "metric", "told"),
    [
        (torch.zeros(4, 3), lambda o, y: o.square().sum(1), True),  # a layer that is dead
        (torch.ones(4, 3), lambda o, y: torch.ones(len(o)), True),
        (torch.ones(4, 3), lambda o, y: (o == 1).float().mean(1), False),
        (torch.zeros(4, 3), lambda o, y: 1 / 0, False),
    ],
)
def test_a_metric_that_wrong_outputs_leave_alone_is_told_of(outputs, metric, told):
    wrong = lost_scores(metric, outputs, None, 4)
    scores = [0.0] if not len(wrong) else first_look(metric, outputs, None, 4)
    said = indifferent(scores, wrong)
    assert bool(said) == told
    assert not told or "for wrong outputs as for the reference's own" in said[0]
