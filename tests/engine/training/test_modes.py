"""Which modules train while a model is trained."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Training, check
from pytest_fp16.engine.training import modes
from pytest_fp16.engine.training.modes import modes_kept, to_train

lightning = pytest.importorskip("lightning", reason="the extra 'lightning' is not installed")


class Distilled(lightning.LightningModule):
    """Learns from a teacher that its author has put into eval mode."""

    def __init__(self):
        super().__init__()
        self.teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5))
        self.teacher.requires_grad_(False).eval()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.seen = set()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        SEEN.add((self.training, self.teacher.training, self.net.training))
        return nn.functional.cross_entropy(self.net(batch[0]) + self.teacher(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


SEEN: set[tuple[bool, bool, bool]] = set()


def test_a_lightning_modules_modes_are_left_as_its_trainer_leaves_them(digits_training):
    SEEN.clear()
    given = {"model": Distilled, "optimizer": None, "loss": None}
    report = check(digits_training(**given), precision="bf16-mixed", seeds=2, budget=0.1)
    assert report.verdict == "equivalent", str(report)
    assert {(True, False, True)} == SEEN


def test_an_older_trainer_sets_all(monkeypatch):
    monkeypatch.setattr(lightning, "__version__", "2.1.4")
    assert to_train(Distilled()).teacher.training
    monkeypatch.setattr(lightning, "__version__", "3.0.0dev1")
    assert not to_train(Distilled()).teacher.training


def test_a_loop_of_a_users_own_sets_all():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    assert to_train(model) is model
    assert all(module.training for module in model.modules())
    assert modes.to_train(model)[1].training


class Adapter(nn.Linear):
    """Merges itself into its weights to evaluate, as adapters of low rank do."""

    merged = False

    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)


@pytest.mark.parametrize("fails", [False, True])
def test_modes_are_as_they_were_and_each_module_is_asked(fails):
    model = nn.Sequential(Adapter(2, 2), nn.Dropout().eval())
    try:
        with modes_kept(model):
            model.eval()
            assert model[0].merged
            if fails:
                raise ValueError
    except ValueError:
        pass
    assert [m.training for m in model.modules()] == [True, True, False]
    assert not model[0].merged


def test_a_training_evaluates_with_every_module_in_eval_mode():
    seen = set()

    class Watched(nn.Linear):
        def forward(self, x):
            seen.add(self.training)
            return super().forward(x)

    x = torch.randn(64, 4)
    data = [(x, (x[:, 0] > 0).long())]
    training = Training(
        model=lambda: nn.Sequential(Watched(4, 2)),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.5),
        loss=nn.functional.cross_entropy,
        train_data=data,
        eval_data=data,
        epochs=5,
    )
    check(training, precision="bf16-mixed", seeds=2, budget=0.5)
    assert seen == {True, False}
