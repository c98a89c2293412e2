"""Lightning modules: what they bring is used, and what is not heard of them is said."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_fp16 import Settings, Training, check
from pytest_fp16.conformance import examine
from pytest_fp16.engine.training.lightning import configured, own_loss, unheard
from pytest_fp16.errors import SettingError


def sgd():
    return torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)


def step_lr(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 1)


@pytest.mark.parametrize("form", ["one", "list", "pair", "dict", "list of dict", "config", "tuple"])
def test_every_form_of_configure_optimizers(form):
    o = sgd()
    s = step_lr(o)
    made, scheduled, interval = {
        "one": (o, None, "epoch"),
        "list": ([o], None, "epoch"),
        "pair": (([o], [s]), s, "epoch"),
        "dict": ({"optimizer": o, "lr_scheduler": s}, s, "epoch"),
        "list of dict": ([{"optimizer": o, "lr_scheduler": {"scheduler": s}}], s, "epoch"),
        "config": (([o], [{"scheduler": s, "interval": "step"}]), s, "step"),
        "tuple": ((o,), None, "epoch"),
    }[form]
    module = SimpleNamespace(configure_optimizers=lambda: made)
    assert configured(module) == (o, scheduled, interval)


def test_several_optimizers_are_refused():
    module = SimpleNamespace(configure_optimizers=lambda: [sgd(), sgd()])
    with pytest.raises(SettingError, match="returned 2 optimizers"):
        configured(module)


def test_a_step_may_take_the_index_or_not():
    assert own_loss(SimpleNamespace(training_step=lambda batch: batch), 3, 7) == 3
    assert own_loss(SimpleNamespace(training_step=lambda batch, batch_idx: batch_idx), 3, 7) == 7


def module_class():
    """A real Lightning module with what such modules usually have."""
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")

    class Digits(lightning.LightningModule):
        def __init__(self, hidden=32, rate=0.1):
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Sequential(
                *(nn.Flatten(), nn.Linear(64, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
                *(nn.Dropout(0.1), nn.Linear(hidden, 10)),
            )
            self.seen, self.came = [], []

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = nn.functional.cross_entropy(self(x), y)
            self.log("train_loss", loss, prog_bar=True)
            self.seen.append(batch_idx)
            self.came.append((self.global_step, self.current_epoch))
            return {"loss": loss, "epoch": self.current_epoch}

        def validation_step(self, batch, batch_idx):
            x, y = batch
            self.log("val_loss", nn.functional.cross_entropy(self(x), y))

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), self.hparams.rate, momentum=0.9)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=200)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "interval": "step"},
            }

    return Digits


def training(digits, model, **changes):
    (train_x, train_y), (test_x, test_y) = digits
    parts = {
        "train_data": DataLoader(TensorDataset(train_x, train_y), batch_size=64, shuffle=True),
        "eval_data": DataLoader(TensorDataset(test_x, test_y), batch_size=200),
        "optimizer": None,
        "loss": None,
        "epochs": 2,
    }
    return Training(model=model, **{**parts, **changes})


def test_a_real_lightning_module_is_trained_and_resumed(digits, tmp_path):
    subject = training(digits, module_class())
    settings = Settings(
        precisions=("16-true", "bf16-mixed"), seeds=3, store=str(tmp_path), resume=True
    )
    first = examine(subject, settings)
    for report in first:
        assert report.verdict == "equivalent", str(report)
        assert report.metric.reference > 0.9
        assert report.forecast.verdict == "equivalent", report.forecast.reason
        assert report.training["ended"] == ["finished"] * len(report.training["ended"])
        assert not any("left out" in w for w in report.warnings)
    kept = len(list(tmp_path.glob("*.json")))
    again = examine(training(digits, module_class()), settings)
    for one, other in zip(first, again, strict=True):
        said = [w for w in other.warnings if " runs were read from " not in w]
        assert len(said) < len(other.warnings)
        assert other.model_copy(update={"warnings": said}) == one
    assert len(list(tmp_path.glob("*.json"))) == kept


@pytest.mark.parametrize(("leaves_out", "adds_up"), [(False, 1), (True, 1), (False, 3)])
def test_a_lightning_module_trains_as_its_trainer_does(digits, leaves_out, adds_up):
    """Same data in the same order: the Trainer's weights after two epochs, and ours."""
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")
    from pytest_fp16.engine.training.order import ordered
    from pytest_fp16.engine.training.place import Place
    from pytest_fp16.engine.training.train import with_last
    from pytest_fp16.engine.training.trainee import Trainee, initial_state
    from pytest_fp16.precision import REFERENCE

    (x, y), _ = digits
    loader = DataLoader(TensorDataset(x[:512], y[:512]), batch_size=64)

    class Plain(module_class()):
        def __init__(self):
            super().__init__()
            self.net[4] = nn.Identity()  # dropout draws differ between the two loops

        def training_step(self, batch, batch_idx):
            found = super().training_step(batch, batch_idx)
            found["loss"] = found["loss"] * (1.0 if self.current_epoch else 0.5)  # a curriculum
            return None if leaves_out and batch_idx % 3 == 1 else found

    subject = training(digits, Plain, train_data=loader, accumulate=adds_up)
    state = initial_state(subject, 0)
    theirs = Plain()
    theirs.load_state_dict(state)
    trainer = lightning.Trainer(
        max_epochs=2,
        accumulate_grad_batches=adds_up,
        accelerator="cpu",
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False),
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no validation data, few workers: the Trainer's advice
        trainer.fit(theirs, loader)
    ours = Trainee(subject, REFERENCE, 0, state, Place(torch.device("cpu")))
    with ours.installed():
        for epoch in range(2):
            ours.model.train()
            for batch, last in with_last(ordered(loader, 0, epoch)):
                ours.step(batch, last)
            ours.end_epoch(0.0)
    assert ours.model.came == theirs.came
    assert ours.model.seen == theirs.seen == [*range(8), *range(8)]
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], value, rtol=0, atol=1e-6)


def test_hooks_of_the_trainer_are_named(digits):
    class Hooked(module_class()):
        def on_before_optimizer_step(self, optimizer):
            raise AssertionError("unreachable: there is no Trainer")

    report = check(training(digits, Hooked, epochs=1), precision="bf16-mixed", seeds=1)
    assert any("on_before_optimizer_step" in w for w in report.warnings)
    assert unheard(nn.Linear(2, 2)) == []


def test_manual_optimization_that_never_goes_backwards_is_refused(digits):
    class Manual(module_class()):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(SettingError, match="never called manual_backward"):
        check(training(digits, Manual), precision="16-true")


def test_asking_for_a_trainer_is_refused_with_what_to_do(digits):
    class Asking(module_class()):
        def configure_optimizers(self):
            steps = self.trainer.estimated_stepping_batches
            return torch.optim.SGD(self.parameters(), lr=1 / steps)

    with pytest.raises(SettingError, match="asks for a Trainer"):
        check(training(digits, Asking), precision="16-true")


def test_the_gradient_check_goes_by_epochs_too(digits):
    """A loss that begins with the second epoch is found to lose its gradient in 16 bits there."""
    (x, y), _ = digits
    loader = DataLoader(TensorDataset(x[:512], y[:512]), batch_size=256)

    class Late(module_class()):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)["loss"]
            return loss * 1e-9 * 1e9 if self.current_epoch else loss  # 1e9 is beyond float16

    report = check(training(digits, Late, train_data=loader), precision="16-true", seeds=3)
    assert report.forecast.verdict == "not equivalent", report.forecast.reason


def test_asking_for_a_trainer_while_training_is_refused_with_what_to_do(digits):
    class Asking(module_class()):
        def training_step(self, batch, batch_idx):
            self.trainer.datamodule.switch()
            return super().training_step(batch, batch_idx)

    with pytest.raises(SettingError, match=r"Trainer for 'datamodule'.*pass training_step="):
        check(training(digits, Asking), precision="16-true")
