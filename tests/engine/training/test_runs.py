"""Each run of a check is made once, by whom it should be, and what is refused is not made."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pytest_fp16 import Settings
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.training import runs as home
from pytest_fp16.engine.training.runs import Runs
from pytest_fp16.engine.training.train import RunResult
from pytest_fp16.engine.training.validation import validated
from pytest_fp16.precision import REFERENCE, precision

CPU = torch.device("cpu")
HALF = precision("16-true")


@pytest.fixture(autouse=True)
def _state():
    with preserved_state():
        yield


def runs(subject, shelf=None, planned=None, progress=None, **settings):
    made = Settings().with_(device="cpu", **{"precisions": ("16-true",), **settings})
    return Runs(validated(subject, CPU), made, CPU, progress, shelf, planned)


@pytest.fixture
def made(monkeypatch):
    """(precision, seed, ended) of the runs that are really made; each ends as `made.ended` says."""

    class Made(list):
        ended = "finished"
        usual = None

    seen = Made()

    def train(subject, precision, seed, state, place, task, tell, amendment, usual):
        seen.append((precision.name, seed, subject, state))
        seen.usual = usual
        if tell is not None:
            tell(0, 0, 1.0)
        return RunResult(precision.name, seed, ended=seen.ended, losses=[2.0, math.inf, 3.0, 1.0])

    monkeypatch.setattr(home, "train", train)
    return seen


class Shelf:
    """A store in memory."""

    def __init__(self):
        self.kept = {}

    def load(self, precision, seed, state):
        return self.kept.get((precision.name, seed, str(state.get("kept in float32"))))

    def save(self, precision, seed, state, result):
        self.kept[precision.name, seed, str(state.get("kept in float32"))] = result


def test_a_run_is_made_once_for_each_precision_and_seed(digits_training, made):
    ours = runs(digits_training())
    for _ in range(2):
        for seed in (0, 1):
            assert ours.run(REFERENCE, seed).precision == "32-true"
            assert ours.run(HALF, seed).seed == seed
    assert [m[:2] for m in made] == [("32-true", 0), ("16-true", 0), ("32-true", 1), ("16-true", 1)]


def test_both_runs_of_a_seed_start_from_the_same_weights(digits_training, made):
    ours = runs(digits_training())
    ours.run(REFERENCE, 0), ours.run(HALF, 0), ours.run(REFERENCE, 1)
    first, second, other = (m[3] for m in made)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])


def test_a_run_knows_the_largest_loss_of_its_32_bit_twin(digits_training, made):
    ours = runs(digits_training())
    ours.run(REFERENCE, 0)
    assert made.usual is None
    ours.run(HALF, 0)
    assert made.usual == 3.0
    ours.fresh(HALF, 1)  # its twin was not made
    assert made.usual is None


@pytest.mark.parametrize("resume", [True, False])
def test_a_stored_run_is_read_only_where_it_may_be(digits_training, made, resume):
    shelf = Shelf()
    runs(digits_training(), shelf, store="x").run(HALF, 0)
    again = runs(digits_training(), shelf, store="x", resume=resume)
    assert again.run(HALF, 0).ended == "finished"
    assert len(made) == (1 if resume else 2)


def test_a_lack_of_memory_is_not_stored(digits_training, made):
    shelf = Shelf()
    made.ended = "out of memory"
    runs(digits_training(), shelf, store="x").run(HALF, 0)
    assert not shelf.kept


def test_what_a_plan_keeps_is_trained_and_stored_apart(digits_training, made):
    shelf, subject = Shelf(), digits_training()
    other = digits_training(name="kept")
    planned = {"16-true": (other, ("1",))}
    runs(subject, shelf, store="x", resume=True).run(HALF, 0)
    ours = runs(subject, shelf, planned, store="x", resume=True)
    ours.run(HALF, 0), ours.run(REFERENCE, 0)
    assert [m[2].name for m in made] == ["digits", "kept", "digits"]
    assert ours.subject_for(HALF) is other
    assert ours.subject_for(REFERENCE) is subject


def test_a_fresh_run_is_not_remembered(digits_training, made):
    ours = runs(digits_training())
    changed = digits_training(name="changed")
    ours.fresh(HALF, 0, subject=changed)
    ours.run(HALF, 0)
    assert [m[2].name for m in made] == ["changed", "digits"]


def test_progress_knows_how_far_it_is(digits_training, made):
    told = []
    ours = runs(digits_training(epochs=3), progress=lambda *said: told.append(said), seeds=2)
    steps = 3 * len(digits_training().train_data)
    assert ours.steps_per_run == steps
    assert ours.total == 2 * 2 * steps
    ours.run(REFERENCE, 0), ours.run(HALF, 0)
    assert [done for _, done, _ in told] == [1, steps + 1]
    assert "seed 0, 16-true, epoch 1/3, loss 1" in told[1][0]


def test_the_work_ahead_shrinks_with_what_is_settled(digits_training, made):
    both = ("16-true", "bf16-true")
    ours = runs(digits_training(), seeds=4, precisions=both)
    steps = ours.steps_per_run
    assert ours.total == 3 * 4 * steps
    ours.run(REFERENCE, 0), ours.run(HALF, 0)
    ours.settle(HALF)
    assert ours.total == (4 + 1 + 4) * steps
    ours.further = 4  # 32-bit runs beyond the allowance
    assert ours.total == (8 + 1 + 4) * steps
    ours.settle(precision("bf16-true"))
    assert ours.total == 2 * steps  # those that were made


def test_a_run_beyond_what_is_settled_is_part_of_the_work(digits_training, made):
    told = []
    ours = runs(digits_training(), progress=lambda *said: told.append(said), seeds=2)
    ours.run(REFERENCE, 0), ours.run(HALF, 0)
    ours.settle(HALF)
    assert ours.total == 2 * ours.steps_per_run
    ours.fresh(HALF, 0)
    _, done, total = told[-1]
    assert (done, total) == (2 * ours.steps_per_run + 1, 3 * ours.steps_per_run)


def test_no_canary_where_there_is_nothing_to_compare(digits_training):
    assert runs(digits_training()).canary(REFERENCE) is None
    assert runs(digits_training(), emulate="never").canary(HALF) is None
    emulated = runs(digits_training(), emulate="always")
    assert emulated.canary(HALF) is emulated.canary(HALF)  # one step for all seeds


class Refused(nn.Module):
    """linalg has no 16-bit kernels on a CPU, nor on CUDA."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(64, 10)

    def forward(self, x):
        return (
            self.net(x.flatten(1))
            + torch.linalg.det(x[:, 0] + 9 * torch.eye(8, dtype=x.dtype))[:, None] * 0
        )


@pytest.mark.parametrize(("target", "refused"), [("cpu", True), ("cuda", False)])
def test_what_the_targets_own_kernels_refuse_is_not_run(digits_training, made, target, refused):
    ours = runs(digits_training(model=Refused), target=target)
    found = ours.run(HALF, 0)
    assert (found.ended == "raised") == refused
    assert len(made) == (not refused)  # elsewhere emulation has the last word
    assert not refused or "no 16-bit kernel" in found.error
    assert ours.run(REFERENCE, 0).ended == "finished"


def test_a_cure_is_tried_although_the_training_was_refused(digits_training, made):
    ours = runs(digits_training(model=Refused), target="cpu")
    assert ours.fresh(HALF, 0).ended == "raised"
    mended = digits_training(model=Refused, forward=lambda model, x: model.net(x.flatten(1)))
    assert ours.fresh(HALF, 0, subject=mended).ended == "finished"


def test_a_training_starts_from_the_weights_of_its_own_seeds(digits_training):
    """Untrained models differ: what training brings is the mean over the seeds that were made."""
    model = digits_training().model()
    made = runs(digits_training())
    alone = [made.start([seed]) for seed in range(3)]
    assert len(set(alone)) > 1
    assert made.start(range(3)) == pytest.approx(sum(alone) / 3)
    shared = runs(digits_training(model=model))
    assert shared.start([1, 2]) == shared.start([0])
    assert set(shared._starts) == {0}


def test_a_start_that_has_no_metric_is_none(digits_training):
    made = runs(digits_training())
    made._starts[1] = None
    assert made.start([0]) is not None
    assert made.start([0, 1]) is None
