"""The theory of a batch is that of its chunks, row by row."""

import torch

from pytest_fp16.engine.prediction.theory_batch import TheoryBatch, concatenate, differ


def chunk(rows, start=0.0, bound=True):
    values = start + torch.arange(float(rows)).unsqueeze(1)
    flags = torch.arange(rows) % 2 == 0
    return TheoryBatch(
        logits=torch.stack([values, -values], -1),
        margin=2 * values,
        sigma=values / 8,
        bound=values / 2 if bound else None,
        bounded=flags.unsqueeze(1),
        probable=~flags.unsqueeze(1),
        overflowed=flags,
        undecided=~flags,
    )


def test_chunks_are_joined_in_their_order():
    whole = concatenate([chunk(3), chunk(2, start=10.0)])
    assert whole.margin[:, 0].tolist() == [0, 2, 4, 20, 22]
    assert whole.sigma.tolist() == (whole.margin / 16).tolist()
    assert whole.bound.tolist() == (whole.margin / 4).tolist()
    assert whole.logits.shape == (5, 1, 2)
    assert whole.bounded[:, 0].tolist() == [True, False, True, True, False]
    assert torch.equal(whole.probable, ~whole.bounded)
    assert torch.equal(whole.overflowed, whole.bounded[:, 0])
    assert torch.equal(whole.undecided, whole.probable[:, 0])


def test_without_a_worst_case_there_is_none():
    assert concatenate([chunk(3, bound=False), chunk(2, bound=False)]).bound is None


def test_on_the_host_nothing_changes_but_the_place():
    held = chunk(3).on_host()
    assert held.margin.device.type == "cpu"
    assert torch.equal(held.margin, chunk(3).margin)
    assert held.noisy_classes is None


def test_logits_differ_by_more_than_the_order_of_a_sum():
    alone = torch.tensor([[[100.0, -torch.inf]], [[0.0, torch.nan]]])
    sure = torch.tensor([[0.0], [torch.nan]])
    assert not differ(alone, alone + 0.01, sure)
    assert differ(alone, alone + 0.2, sure)
    # what is not finite in one of them says nothing
    assert not differ(alone, torch.tensor([[[torch.inf, -torch.inf]], [[0.0, 3.0]]]), sure)


def test_logits_differ_by_more_than_they_are_uncertain_by():
    alone = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    moved = alone + torch.tensor([[[0.1]], [[0.02]]])
    assert not differ(alone, moved, torch.tensor([[0.12], [0.03]]))
    assert differ(alone, moved, torch.tensor([[0.12], [0.01]]))
