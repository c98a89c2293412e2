"""Lightning modules that optimize by hand: a generator and a discriminator, each in its turn."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pytest_fp16 import Training, check
from pytest_fp16.diagnosis.training_cures import proposals
from pytest_fp16.engine.gradients.check import gradient_check
from pytest_fp16.engine.gradients.points import gradients
from pytest_fp16.engine.training.order import ordered
from pytest_fp16.engine.training.place import Amendment, Place
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.errors import SettingError
from pytest_fp16.precision import PRECISIONS, precision
from pytest_fp16.report.model import Culprit
from pytest_fp16.settings import Settings

lightning = pytest.importorskip("lightning", reason="Lightning is not installed")
CPU = torch.device("cpu")


class Adversaries(lightning.LightningModule):
    """Draws the second half of a point from the first; who tells them apart goes first."""

    eps = 1e-4

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.draws = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        self.tells = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x):
        return self.draws(x)

    def training_step(self, batch, batch_idx):
        x, t = batch
        told, drawn = self.optimizers()
        scores = lambda y: self.tells(torch.cat([x, y], -1))  # noqa: E731
        self.toggle_optimizer(told)
        found = self(x)
        real, fake = scores(t), scores(found.detach())
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        self.manual_backward(loss)
        self.clip_gradients(told, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        told.step()
        told.zero_grad()
        self.untoggle_optimizer(told)
        self.toggle_optimizer(drawn)
        found = self(x)
        self.manual_backward(F.mse_loss(found, t) + 0.1 * F.softplus(-scores(found)).mean())
        drawn.step()
        drawn.zero_grad()
        self.untoggle_optimizer(drawn)

    def configure_optimizers(self):
        tells = torch.optim.Adam(self.tells.parameters(), lr=2e-3, eps=self.eps)
        return [tells, torch.optim.SGD(self.draws.parameters(), lr=0.05, momentum=0.9)], []


class Sudden(Adversaries):
    """Adam's default epsilon, which is zero in float16; and who tells is dead at first."""

    eps = 1e-8

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.tells[2].weight.zero_()


def points():
    x = torch.randn(512, 2, generator=torch.Generator().manual_seed(0))
    return x, torch.stack([x.prod(-1), x[:, 0] - x[:, 1]], -1)


def subject(model=Adversaries, **changes):
    x, t = points()
    data = list(zip(x.split(64), t.split(64), strict=True))
    given = {"train_data": data, "eval_data": data, "epochs": 8, "task": "regression"}
    return Training(model=model, **{"optimizer": None, "loss": None, **given, **changes})


def trainee(held, name="32-true", emulated=False, amendment=None, target="cuda"):
    state, place = initial_state(held, 0), Place(CPU, target, emulated)
    return Trainee(held, precision(name), 0, state, place, *([amendment] if amendment else []))


def test_it_trains_as_its_trainer_does():
    loader = DataLoader(TensorDataset(*points()), batch_size=64)
    held = subject(train_data=loader)
    ours, theirs = trainee(held), Adversaries()
    theirs.load_state_dict(initial_state(held, 0))
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", **dict.fromkeys(off, False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no validation data, few workers: the Trainer's advice
        trainer.fit(theirs, loader)
    with ours.installed():
        for epoch in range(2):
            ours.model.train()
            for batch in ordered(loader, 0, epoch):
                ours.step(batch)
    assert ours.applied == 16
    assert ours.counted.steps == trainer.global_step == 32  # of both optimizers
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], value, rtol=0, atol=1e-6)


def test_gradients_are_each_optimizers_own_and_nothing_moves():
    held = subject()
    ours, batch = trainee(held), held.train_data[0]
    before = {n: p.detach().clone() for n, p in ours.model.named_parameters()}
    found = gradients(ours, batch, 0).by_name
    assert set(found) == set(before)
    for name, p in ours.model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.requires_grad
    x, t = batch
    (loss := F.mse_loss(ours.model(x), t)).backward()
    scores = ours.model.tells(torch.cat([x, ours.model(x)], -1))
    (0.1 * F.softplus(-scores).mean()).backward()
    assert loss > 0
    torch.testing.assert_close(found["draws.0.weight"], ours.model.draws[0].weight.grad)


class Patient(lightning.LightningModule):
    """Adds up the gradients of two batches, by hand, with one optimizer and a scheduler."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = F.mse_loss(self(batch[0]), batch[1]) / 2
        self.manual_backward(loss)
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()
            self.lr_schedulers().step()
        self.log("loss", loss)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.2)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)]


class Searching(Patient):
    """L-BFGS, which asks for the loss again and again."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()

        def closure():
            optimizer.zero_grad()
            loss = F.mse_loss(self(batch[0]), batch[1])
            self.manual_backward(loss)
            return loss

        optimizer.step(closure=closure)

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.2, max_iter=4)


def test_a_step_that_asks_for_the_loss_itself():
    held = subject(Searching)
    ours = trainee(held)
    with ours.installed():
        assert len(gradients(ours, held.train_data[0], 0).by_name) == 4
        first = [ours.step(batch) for batch in held.train_data]
        last = [ours.step(batch) for batch in held.train_data]
    assert sum(last) < sum(first)
    report = check(subject(Searching, epochs=1), precision="16-mixed", seeds=2)
    assert report.verdict == "not equivalent"  # torch scales no loss that is asked for again


class Asked(Searching):
    """An optimizer that may ask for the loss, and does so once."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2)


def test_a_hook_of_all_optimizers_is_taken_from_all():
    held = subject()
    ours, seen = trainee(held), []
    handle = ours.optimizer.register_step_pre_hook(lambda *_: seen.append(None))
    with ours.installed():
        ours.step(held.train_data[0])
        handle.remove()
        ours.step(held.train_data[1])
    assert len(seen) == 2


def test_a_loss_that_is_asked_for_again_is_that_of_the_weights_by_then():
    """Torch's own autocast keeps its 16-bit copies of the weights as long as its region lasts."""
    held = subject(Searching)
    ours = trainee(held, "bf16-mixed", target="cpu")
    with ours.installed():
        ours.step(held.train_data[0])
        losses = [float(loss.detach()) for loss in ours.by_hand.losses]
    assert len(losses) == 4
    assert losses == sorted(set(losses), reverse=True)


def test_a_factor_on_a_loss_that_is_asked_for_is_taken_out_again():
    held, found = subject(Asked), []
    for factor in (None, 1024.0):
        ours = trainee(held, amendment=Amendment(loss_scale=factor))
        with ours.installed():
            ours.step(held.train_data[0])
        found.append(ours.model.net[0].weight)
    torch.testing.assert_close(*found)


def test_gradients_that_are_added_up_by_hand():
    held = subject(Patient)
    ours = trainee(held)
    before = ours.model.net[0].weight.detach().clone()
    with ours.installed():
        assert len(gradients(ours, held.train_data[0], 0).by_name) == 4
        ours.step(held.train_data[0])
        assert torch.equal(ours.model.net[0].weight, before)
        ours.step(held.train_data[1])
    assert not torch.equal(ours.model.net[0].weight, before)
    assert ours.optimizer.param_groups[0]["lr"] == pytest.approx(0.2 * 0.999)
    report = check(held, precision="bf16-mixed", seeds=2)
    assert report.forecast.verdict == "equivalent", report.forecast.reason
    assert report.verdict != "not equivalent", str(report)


@pytest.mark.parametrize("name", ["16-true", "16-mixed", "bf16-mixed"])
def test_two_optimizers_that_16_bits_do_no_harm(name):
    report = check(subject(), precision=name, seeds=3)
    assert report.forecast.verdict == "equivalent", report.forecast.reason
    assert report.verdict != "not equivalent", str(report)
    assert report.training["ended"] == ["finished"] * len(report.training["ended"])


def test_an_epsilon_of_one_of_them_that_is_zero():
    report = check(subject(Sudden), precision="16-true", seeds=2)
    assert (report.forecast.verdict, report.verdict) == ("not equivalent", "not equivalent")
    assert (report.culprit.module, report.culprit.mechanism) == ("<optimizer>", "eps-underflow")
    assert report.cure.kind == "optimizer epsilon"


class Clipped(Patient):
    """Clips by hand what is still scaled, as under a Trainer."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.mse_loss(self(batch[0]), batch[1]))
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optimizer.step()


def test_gradients_that_are_clipped_while_they_are_scaled():
    report = check(subject(Clipped), precision="16-mixed", seeds=4)
    assert (report.forecast.verdict, report.verdict) == ("not equivalent", "not equivalent")
    assert report.culprit.variant == "while scaled"
    assert check(subject(Clipped), precision="bf16-mixed", seeds=2).verdict == "equivalent"


class ClippedByTorch(Patient):
    """The same by torch's own function, which nobody asks for the scale either."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.mse_loss(self(batch[0]), batch[1]))
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        optimizer.step()


def test_what_a_step_does_to_scaled_gradients_is_seen_in_its_way():
    found = gradient_check(subject(ClippedByTorch), precision("16-mixed"), Settings(), CPU)
    assert found.verdict == "not equivalent"
    assert found.culprit.variant == "while scaled"
    assert "in 32 bits too" in found.culprit.evidence


class Bounded(Sudden):
    """The discriminator's answers are probabilities, which have to be between 0 and 1."""

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        told = torch.sigmoid(self.tells(torch.cat([batch[0], batch[1]], -1)).float())
        F.binary_cross_entropy(told, torch.ones_like(told))


def test_an_error_over_weights_that_an_optimizer_has_lost():
    report = check(subject(Bounded), precision="16-true", seeds=2)
    assert "should be between 0 and 1" in report.error
    assert (report.culprit.module, report.culprit.mechanism) == ("<optimizer>", "eps-underflow")
    assert report.cure.kind == "optimizer epsilon"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}, "optimizer= cannot take part"),
        ({"accumulate": 2, "clip_grad_norm": 1.0}, "clip_grad_norm=, accumulate= cannot"),
    ],
)
def test_what_is_the_modules_own_is_not_to_be_given(changes, words):
    with pytest.raises(SettingError, match=words):
        check(subject(**changes), precision="16-true")


class Silent(Adversaries):
    def training_step(self, batch, batch_idx):
        F.mse_loss(self(batch[0]), batch[1]).backward()


def test_a_backward_pass_of_its_own_cannot_be_followed():
    with pytest.raises(SettingError, match="never called manual_backward"):
        check(subject(Silent), precision="16-true")


class Automatic(Adversaries):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = True


def test_a_module_that_is_given_a_loss_too_has_its_own_steps_line_tried():
    """Its own step is what runs, and the loss that is given plays no part."""
    line = "model.py:3"
    culprit = Culprit(
        module="<loss>", operation="exp", mechanism="overflow", evidence="", source=line
    )
    held = subject(Automatic, loss=F.mse_loss)
    kinds = [p.kind for p in proposals(held, Automatic(), PRECISIONS["16-true"], culprit, None)]
    assert kinds[0] == "upcast"
    assert "loss in float32" not in kinds


class Reading(Searching):
    """Looks at its gradients before it steps, and steps by what it sees."""

    zeroes_last = False

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2)

    def training_step(self, batch, batch_idx):
        one = self.optimizers()
        if not self.zeroes_last:
            one.zero_grad()
        self.manual_backward(F.mse_loss(self.net(batch[0]), batch[1]))
        norm = torch.stack([p.grad.norm() for p in self.parameters()]).norm()
        assert norm > 0
        one.step()
        if self.zeroes_last:
            one.zero_grad()


class ReadingLast(Reading):
    zeroes_last = True


@pytest.mark.parametrize("model", [Reading, ReadingLast])
def test_a_step_may_look_at_its_gradients(model):
    held = subject(model)
    ours = trainee(held)
    plain = gradients(ours, held.train_data[0], 0).by_name
    again = gradients(ours, held.train_data[0], 0).by_name
    assert all(p.grad is None for p in ours.model.parameters())
    with ours.installed():
        loss = F.mse_loss(ours.model.net(held.train_data[0][0]), held.train_data[0][1])
    wanted = torch.autograd.grad(loss, list(ours.model.parameters()))
    for (name, grad), own in zip(plain.items(), wanted, strict=True):
        torch.testing.assert_close(grad, own)
        torch.testing.assert_close(again[name], own)


@pytest.mark.parametrize("name", ["16-mixed", "bf16-true"])
def test_one_that_looks_at_its_gradients_is_trained(name):
    report = check(subject(Reading), precision=name, seeds=2, budget=1.0)
    assert report.verdict in ("equivalent", "inconclusive")
    assert report.error is None
