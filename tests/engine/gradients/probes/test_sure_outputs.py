"""What fails only once a model has learned: sure outputs, and batches without mistakes."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.check import gradient_check
from pytest_fp16.engine.gradients.probes import sure_outputs
from pytest_fp16.engine.gradients.probes.confidence import confidence_of, decisions, scaling
from pytest_fp16.engine.gradients.probes.sure_outputs import wrong_share
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.precision import REFERENCE, precision
from pytest_fp16.settings import Settings

CPU = torch.device("cpu")


def points(spread, count=512):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (count,), generator=generator)
    return 3.0 * torch.eye(4)[y] + spread * torch.randn(count, 4, generator=generator), y


def training(loss, spread=1.2, size=32, **changes):
    x, y = points(spread)
    data = list(zip(x.split(size), y.split(size), strict=True))
    given = {"train_data": data, "eval_data": data, "epochs": 12, **changes}
    return Training(
        model=lambda: nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)),
        optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9),
        loss=loss,
        **given,
    )


def advantage(z, y, eps=1e-8):
    """Weights of rewards over their spread, which is zero once all have the same."""
    chosen = F.log_softmax(z, -1).gather(-1, y[:, None]).squeeze(-1)
    reward = (z.argmax(-1) == y).to(z.dtype)
    advantage = (reward - reward.mean()) / (reward.std() + eps)
    return -(chosen + 0.1 * advantage * chosen).mean()


def found_by(subject, name="16-true"):
    return gradient_check(subject, precision(name), Settings(), CPU)


def test_a_reward_without_spread_is_found_before_there_is_one():
    found = found_by(training(advantage))
    assert found.verdict == "not equivalent"
    culprit = found.culprit
    assert (culprit.module, culprit.operation) == ("<loss>", "div")
    assert culprit.mechanism == "eps-underflow"
    assert "a batch without mistakes" in found.reason
    assert "steps will see such a batch" in found.reason


class Smoothed(torch.autograd.Function):
    """Cross entropy, smoothed by logarithms of a softmax, with its slope written down."""

    @staticmethod
    def forward(ctx, z, y):
        p = torch.exp(z - z.amax(-1, keepdim=True))
        p = (p / p.sum(-1, keepdim=True)).to(z.dtype)
        ctx.save_for_backward(p, F.one_hot(y, 3).to(p.dtype))
        return -0.9 * torch.log(p).gather(-1, y[:, None]).mean() - 0.1 * torch.log(p).mean()

    @staticmethod
    def backward(ctx, grad):
        p, one = ctx.saved_tensors
        return (grad * (p - 0.9 * one - 0.1 / 3) / len(p)).to(p.dtype), None


@pytest.mark.parametrize(("name", "times"), [("16-true", 1), ("16-mixed", 64)])
def test_an_infinite_loss_whose_slope_is_finite_is_no_failure(name, times):
    """Nor where the first scale of a scaler is too large for it."""
    subject = training(lambda z, y: times * Smoothed.apply(3 * z, y))
    slower = partial(torch.optim.SGD, lr=0.01 / times, momentum=0.9)
    subject = replace(subject, optimizer=slower)
    assert found_by(subject, name).verdict == "equivalent"


@pytest.mark.parametrize("name", ["bf16-true", "bf16-mixed"])
def test_bfloat16_holds_the_guard(name):
    assert found_by(training(advantage), name).verdict == "equivalent"


def test_a_guard_that_float16_holds_is_sound():
    assert found_by(training(partial(advantage, eps=1e-3))).verdict == "equivalent"


def test_where_no_batch_will_be_without_mistakes_it_is_a_note():
    """Clouds that overlap, in batches of 128: some are always wrong."""
    found = found_by(training(advantage, spread=3.0, size=128))
    assert found.verdict == "equivalent", found.reason
    assert any("without mistakes" in n and "none is expected" in n for n in found.notes)


def test_a_scaler_skips_the_steps_that_are_lost():
    found = found_by(training(advantage), "16-mixed")
    assert found.verdict == "equivalent", found.reason
    assert any("the scaler skips its step" in n for n in found.notes)


def test_a_slope_that_float32_loses_too_is_looked_for_where_it_does_not():
    """The root of 1 - p: at a margin of 20 p is one in float32 too, in float16 at 8."""

    def loss(z, y):
        p = torch.softmax(z, -1).gather(-1, y[:, None]).squeeze(-1)
        return (-((1 - p) ** 0.5) * torch.log(p + 1e-4)).mean()

    found = found_by(training(loss, spread=1.5))
    assert found.culprit.mechanism == "cancellation"
    assert "confident" in found.reason
    assert found_by(training(loss, spread=1.5), "bf16-mixed").verdict == "equivalent"


def trained(subject):
    return Trainee(subject, REFERENCE, 0, initial_state(subject, 0), Place(CPU, "cuda"))


@pytest.mark.parametrize("tail", [[], [nn.Softmax(1)]])
def test_what_is_wrong_can_be_made_right(tail):
    x, y = points(2.0)
    subject = training(F.cross_entropy)
    trainee = trained(subject)
    trainee.model.append(nn.Sequential(*tail))
    sure = confidence_of(trainee, (x, y), solved=True)
    before = trainee.model(x).detach()
    after = scaling(sure)(None, None, before)
    assert float((before.argmax(1) == y).float().mean()) < 0.9
    assert bool((after.argmax(1) == y).all())
    if tail:
        assert torch.allclose(after.sum(1), torch.ones(len(y)))


def test_right_labels_of_zero_and_one():
    x, y = points(2.0)
    subject = training(F.binary_cross_entropy_with_logits)
    trainee, targets = trained(subject), F.one_hot(y, 3).float()
    sure = confidence_of(trainee, (x, targets), solved=True)
    after = scaling(sure)(None, None, trainee.model(x).detach())
    assert bool(((after > 0) == (targets > 0.5)).all())


def test_the_share_of_mistakes():
    x, y = points(2.0)
    subject = training(F.cross_entropy)
    trainee = trained(subject)
    batches = list(zip(x.split(64), y.split(64), strict=True))
    found, size = wrong_share(trainee, batches)
    _, right = decisions(trainee.model(x), y)
    assert found == pytest.approx(float((~right).float().mean()), abs=0.01)
    assert size == 64
    assert trainee.model.training
    assert wrong_share(trainee, [(x, x)]) is None


def test_a_model_that_keeps_nothing_of_its_outputs_is_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr(sure_outputs, "is_lost", lambda *given: asked.append(given))
    subject, batch = training(F.cross_entropy), points(1.2, 32)
    reference, candidate = trained(subject), trained(subject)
    assert sure_outputs.breaking(reference, candidate, batch) is None
    assert len(asked) == 1


def test_an_error_that_changed_outputs_cause_is_no_finding():
    def strict(z, y):
        if z.dtype == torch.float16 and bool((z.argmax(-1) == y).all()):
            raise ValueError("nothing left to learn")
        return F.cross_entropy(z, y)

    assert found_by(training(strict)).verdict == "equivalent"


@pytest.mark.parametrize("solves", [False, True])
def test_an_old_policy_is_not_made_sure_of_its_mistakes(solves):
    x, y = points(2.0)
    subject = training(F.cross_entropy)
    trainee, old = trained(subject), -trained(subject).model(x).detach()
    for batch in subject.train_data:
        trainee.step(batch)
    sure = confidence_of(trainee, (x, y), solved=solves)
    _, after = scaling(sure)(None, None, (trainee.model(x).detach(), old))
    right = old.argmax(1) == y
    assert 0.05 < float(right.float().mean()) < 0.95
    assert torch.equal(after[~right], old[~right]) is not solves
    assert bool((after.argmax(1)[right] == y[right]).all())
    assert bool((after.argmax(1) == y).all()) is solves


def test_a_ratio_to_an_old_policy_is_sound():
    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.new, self.old = (nn.Linear(4, 3) for _ in range(2))
            self.old.requires_grad_(False)

        def forward(self, x):
            return (self.new(x), self.old(x)) if self.training else self.new(x)

    def loss(outputs, y):
        new, old = (F.log_softmax(z, -1).gather(-1, y[:, None]) for z in outputs)
        ratio = (new - old).exp()
        return -torch.minimum(ratio, ratio.clamp(0.1, 6)).mean() + F.cross_entropy(outputs[0], y)

    subject = replace(training(loss), model=Policy)
    assert found_by(subject).verdict == "equivalent"


class Remembering(nn.Module):
    """A classifier, and what it has said of each input so far."""

    def __init__(self, count=512):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        self.register_buffer("said", torch.zeros(count, 3))

    def forward(self, x, index):
        return self.body(x)


def remembered(highest, epochs=24):
    """log(1 - what was said times what is said), both held below one."""
    x, y = points(0.5)
    parts = zip(x.split(32), torch.arange(512).split(32), y.split(32), strict=True)
    data = [((x, index), y) for x, index, y in parts]

    def step(model, batch):
        (x, index), y = batch
        z = model(x, index)
        told = z.softmax(-1).clamp(max=highest)
        kept = 0.3 * model.said[index] + 0.7 * told.detach()
        model.said[index] = kept
        return F.cross_entropy(z, y) - 0.01 * (1 - (kept * told).sum(-1)).log().mean().neg()

    given = {"model": Remembering, "training_step": step, "train_data": data, "eval_data": data}
    return replace(training(None), **given, epochs=epochs)


def test_what_a_model_keeps_of_its_outputs_becomes_sure_with_them():
    found = found_by(remembered(1 - 1e-4), "bf16-true")
    assert found.verdict == "not equivalent"
    assert "confident outputs" in found.reason
    assert (found.culprit.module, found.culprit.operation) == ("<loss>", "log")


def test_a_memory_that_is_held_further_below_one_is_sound():
    assert found_by(remembered(1 - 1 / 64), "bf16-true").verdict == "equivalent"
