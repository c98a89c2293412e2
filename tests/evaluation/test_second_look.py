"""An ideal emulation beside a candidate that strays."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_fp16.engine.prediction.theory_batch import TheoryBatch
from pytest_fp16.engine.untouched import State
from pytest_fp16.evaluation import second_look
from pytest_fp16.evaluation.batch import Batch
from pytest_fp16.evaluation.second_look import SecondLook
from pytest_fp16.task import Task

N = 6


@pytest.fixture
def seen():
    """A batch of N decisions between three classes, and what theory says of it."""
    logits = torch.eye(3).repeat(2, 1).unsqueeze(1)
    none = torch.zeros(N, 1, dtype=torch.bool)
    batch = Batch(
        inputs=torch.zeros(N, 4), raw_labels=None, n=N, first=0, output=logits.squeeze(1),
        logits=logits, labels=None, valid=~none, seed=0,
    )  # fmt: skip
    theory = TheoryBatch(
        logits=logits, margin=torch.ones(N, 1), sigma=torch.full((N, 1), 0.1), bound=None,
        bounded=none, probable=~none, overflowed=none[:, 0], undecided=none[:, 0],
    )  # fmt: skip
    return batch, theory


def candidate(outputs):
    def run(inputs, seed, *, emulated, opaque):
        assert emulated
        assert opaque == "rounded"
        if isinstance(outputs, Exception):
            raise outputs
        return outputs

    return SimpleNamespace(model=nn.Linear(4, 3), habits=SimpleNamespace(writes=False), outputs=run)


def test_flips_and_errors_of_both_are_counted(seen):
    batch, theory = seen
    low, ideal = batch.logits.clone(), batch.output.clone()
    low[0, 0] = torch.tensor([0.0, 1.0, 0.0])
    low[1, 0, 0] += 0.2
    ideal[1, 0] += 0.2
    look, one = SecondLook(Task("classification")), candidate(ideal)
    assert look.take(one, batch, theory, low, State(one.model, False)) == []
    assert (look.inputs, look.flips, look.ideal_flips) == (N, 1, 0)
    assert look.ideal.count == look.candidate.count > 0
    assert look.candidate.spread > look.ideal.spread > 0


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (RuntimeError("no kernel\nat all"), "no second look by emulation: no kernel"),
        (torch.zeros(N, 2), "have the shape (2,) and not (3,)"),
    ],
)
def test_what_cannot_be_set_beside_it_is_told_once(seen, outputs, said):
    batch, theory = seen
    look, one = SecondLook(Task("classification")), candidate(outputs)
    before = State(one.model, False)
    (warning,) = look.take(one, batch, theory, batch.logits, before)
    assert said in warning
    assert look.take(one, batch, theory, batch.logits, before) == []
    assert not look.ideal.count


def test_it_costs_a_few_batches_at_most(seen, monkeypatch):
    batch, theory = seen
    monkeypatch.setattr(second_look, "MOST", 2 * N - 1)
    look, one = SecondLook(Task("classification")), candidate(batch.output)
    for _ in range(5):
        look.take(one, batch, theory, batch.logits, State(one.model, False))
    assert look.inputs == 2 * N
