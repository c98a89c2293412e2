"""Watched steps stop at what broke them, and name it."""

from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.probes.watched_steps import Replays, watched
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.precision import REFERENCE, precision


def trainee(loss, optimizer=torch.optim.SGD):
    data = [(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))] * 3
    given = {"train_data": data, "eval_data": data, "loss": loss, "model": lambda: nn.Linear(2, 2)}
    subject = Training(**given, optimizer=lambda params: optimizer(params, lr=0.1))
    place = Place(torch.device("cpu"), "cuda", True)
    return Trainee(subject, precision("16-true"), 0, initial_state(subject, 0), place), data


def test_the_step_that_broke_is_the_last():
    calls = []

    def loss(z, y):
        calls.append(z)
        return F.cross_entropy(z, y) * (1e5 if len(calls) == 2 else 1)

    fresh, data = trainee(loss)
    origin = watched(fresh, data, seed=0)
    assert len(calls) == 2
    assert (origin.found.operation, origin.found.mechanism) == ("mul", "overflow")


def test_an_error_ends_them_where_it_was_raised():
    def loss(z, y):
        raise ValueError("no")

    fresh, data = trainee(loss)
    origin = watched(fresh, data, seed=None)
    assert (origin.found, origin.failed_in) == (None, "<loss>")


class Squared(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure=None):
        total = sum((p.grad * 1e4).square().sum() for p in self.param_groups[0]["params"])
        assert total > 0
        super().step()


@pytest.mark.parametrize(
    ("optimizer", "name", "seen"),
    [(Squared, "16-true", True), (Squared, "16-mixed", False), (torch.optim.SGD, "16-true", False)],
)
def test_a_step_of_ones_own_is_watched_for_what_leaves_the_range(optimizer, name, seen):
    fresh, data = trainee(F.cross_entropy, optimizer)
    state = initial_state(fresh.subject, 0)
    exact = Trainee(fresh.subject, REFERENCE, 0, state, fresh.place)
    replays = Replays(exact, state, precision(name), fresh.place, 0)
    found = replays.beyond_range(data, data)
    assert (found is not None) is seen
    if seen:
        assert (found.module, found.mechanism) == ("<optimizer>", "overflow")


def steep(clips):
    """Eighty weights whose gradients float16 holds, and whose common length it does not."""
    data = [(torch.full((4, 10), 2000.0), torch.zeros(4))] * 3
    return Training(
        model=lambda: nn.Linear(10, 8),
        optimizer=lambda params: torch.optim.SGD(params, lr=1e-6),
        loss=lambda z, y: 5 * z.sum(),
        train_data=data,
        eval_data=data,
        clip_grad_norm=1.0 if clips else None,
    )


@pytest.mark.parametrize(("clips", "first"), [(True, True), (True, False), (False, True)])
def test_clipping_by_a_length_that_is_infinite_is_named(clips, first):
    subject = steep(clips)
    place = Place(torch.device("cpu"), "cuda", True)
    state = initial_state(subject, 0)
    exact = Trainee(subject, REFERENCE, 0, state, place)
    replays = Replays(exact, state, precision("16-true"), place, 0)
    small = [(x * 1e-3, y) for x, y in subject.train_data]
    held = (small, subject.train_data) if first else (subject.train_data, small)
    found = replays.beyond_range(*held)
    assert (found is not None) is clips
    if clips:
        assert (found.module, found.operation) == ("<optimizer>", "clip_grad_norm_")
        assert found.mechanism == "overflow"


def test_of_several_batches_the_one_that_breaks_is_found_with_what_it_draws():
    def loss(z, y):
        drawn = float(torch.rand(()))
        return F.cross_entropy(z, y) * (1e5 if drawn == second else 1)

    torch.manual_seed(1)
    second = float(torch.rand(()))
    fresh, data = trainee(loss)
    exact = Trainee(fresh.subject, REFERENCE, 0, initial_state(fresh.subject, 0), fresh.place)
    replays = Replays(exact, initial_state(fresh.subject, 0), fresh.precision, fresh.place, 0)
    assert replays.cause_in(data[:1]) is None
    assert replays.cause_in(data).operation == "mul"


class Keeps(nn.Linear):
    """Keeps averages in float32 and its last outputs as they are, the latter since some step."""

    def __init__(self, since=0, fails=False):
        super().__init__(2, 2)
        self.since, self.fails, self.steps, self.means = since, fails, 0, [torch.zeros(2)]

    def forward(self, x):
        out = super().forward(x)
        if self.fails and out.dtype == torch.float16:
            raise RuntimeError("no")
        if self.training:
            self.steps += 1
            self.means = [torch.lerp(self.means[0], out.detach().float().mean(0), 0.1)]
            self.last = out.detach() if self.steps > self.since else None
        return out


def keeping(**given):
    data = [(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))] * 4
    subject = Training(
        model=lambda: Keeps(**given),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        loss=F.cross_entropy,
        train_data=data,
        eval_data=data,
    )
    place, state = Place(torch.device("cpu"), "cuda", True), initial_state(subject, 0)
    exact = Trainee(subject, REFERENCE, 0, state, place)
    for batch in data:
        exact.step(batch)
    return Replays(exact, state, precision("16-true"), place, 0), data


@pytest.mark.parametrize("since", [0, 2])
def test_a_candidate_that_follows_keeps_what_its_own_steps_keep_in_their_formats(since):
    replays, data = keeping(since=since)
    early = replays.fresh()
    replays.learn_formats(data)
    for one in (early, replays.fresh()):
        one.follow(replays.reference)
        assert one.model.means[0].dtype == torch.float32
        assert one.model.last.dtype == torch.float16
        assert torch.equal(one.model.means[0], replays.reference.model.means[0])
        one.step(data[0])  # it refuses none of them
    replays.fresh = Mock(side_effect=AssertionError("all is known, no step need be made"))
    replays.learn_formats(data)


def test_a_list_that_grows_is_known_by_what_it_holds_so_far():
    replays, data = keeping()
    replays.reference.model.means *= 3
    replays.learn_formats(data)
    replays.fresh = Mock(side_effect=AssertionError("all is known, no step need be made"))
    replays.learn_formats(data)


def test_what_is_kept_from_the_start_is_known_and_steps_that_raise_tell_no_more():
    replays, data = keeping(fails=True)
    replays.learn_formats(data)
    own = replays.fresh()
    own.follow(replays.reference)
    assert own.model.means[0].dtype == torch.float32  # made in the constructor
    assert own.model.last.dtype == torch.float16  # as if it were cast with the model


def test_memory_that_does_not_do_for_a_step_is_passed_on():
    replays, _ = keeping()
    replays.fresh = lambda: type(
        "Full", (), {"model": nn.Linear(1, 1), "step": Mock(side_effect=torch.OutOfMemoryError)}
    )
    with pytest.raises(torch.OutOfMemoryError):
        replays.learn_formats([None])
