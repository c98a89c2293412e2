"""What a batch knows of the reference's answers."""

import torch

from pytest_fp16.evaluation.batch import Batch


def batch(logits):
    valid = torch.ones(logits.shape[:2], dtype=torch.bool)
    return Batch(None, None, len(logits), 0, logits, logits, None, valid, seed=0)


def test_the_reference_takes_its_largest_logit_and_never_a_nan():
    logits = torch.tensor([[[1.0, 3.0, 2.0]], [[torch.nan, -1.0, -2.0]], [[-torch.inf, 0.0, 0.0]]])
    assert batch(logits).top.tolist() == [[1], [1], [1]]


def test_positions_have_answers_of_their_own():
    assert batch(torch.eye(3).expand(2, 3, 3)).top.tolist() == [[0, 1, 2], [0, 1, 2]]
