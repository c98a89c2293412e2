"""One native training step before an emulated run: kernels that are missing, and agreement."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pytest_fp16 import check
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.training import canary as training_canary
from pytest_fp16.engine.training.canary import LARGE_DIFFERENCE, one_step
from pytest_fp16.engine.training.order import preserved_generators
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import initial_state
from pytest_fp16.precision import precision

CPU = torch.device("cpu")


def canary(subject, name, target="cpu"):
    with preserved_state(), preserved_generators(subject.train_data):
        state = initial_state(subject, 0)
        return one_step(subject, precision(name), 0, state, Place(CPU, target, emulated=True))


@pytest.mark.parametrize("name", ["16-true", "bf16-true", "bf16-mixed", "16-mixed"])
def test_emulation_agrees_with_the_kernels_of_this_device(digits_training, name):
    found = canary(digits_training(), name)
    assert found.error is None, found.text
    assert found.difference < (0.01 if name.startswith("16") else 0.05)


def test_what_is_accumulated_is_applied(digits_training):
    found = canary(digits_training(accumulate=3, clip_grad_norm=1.0), "bf16-true")
    assert found.difference is not None, found.text
    assert found.difference < 0.05, found.text


def test_an_optimizer_that_asks_for_the_loss_is_tried_without_a_gradient_of_its_own(
    digits_training,
):
    found = canary(digits_training(optimizer=lambda p: torch.optim.LBFGS(p, lr=0.1)), "bf16-true")
    assert found.error is None, found.text
    assert found.difference is None


def test_a_batch_that_cannot_be_cut_is_taken_whole(digits_training):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(64, 10)

        def forward(self, x):
            return self.net(x.reshape(64, 64))

    data = [b for b in digits_training().train_data if len(b[0]) == 64]
    found = canary(digits_training(model=Fixed, train_data=data, eval_data=data), "bf16-true")
    assert found.error is None, found.text


def test_sparse_gradients_are_tried(digits_training):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(17, 10, sparse=True), nn.Linear(10, 10)

        def forward(self, x):
            return self.head(self.words((16 * x).long().flatten(1)).mean(1))

    data = [(x.float(), y) for x, y in digits_training().train_data]
    sgd = lambda p: torch.optim.SGD(p, lr=0.1)  # noqa: E731
    subject = digits_training(model=Words, train_data=data, eval_data=data, optimizer=sgd)
    for name in ("bf16-mixed", "16-mixed"):
        found = canary(subject, name)
        assert found.error is None, found.text
        assert found.difference < 0.05


def test_the_backward_pass_and_the_optimizer_are_tried_too(digits_training):
    class Refusing(torch.optim.SGD):
        def step(self, closure=None):
            weight = self.param_groups[0]["params"][0].detach()
            nn.functional.multi_margin_loss(weight, torch.zeros(len(weight), dtype=torch.long))
            return super().step(closure)

    found = canary(digits_training(optimizer=lambda p: Refusing(p, lr=0.1)), "16-true")
    assert found.unsupported


@pytest.mark.parametrize(("target", "verdict"), [("cpu", "not equivalent"), ("cuda", "equivalent")])
def test_a_missing_kernel_is_a_verdict_on_the_target_and_a_warning_elsewhere(
    digits_training, target, verdict
):
    """The CPU has no float16 kernel for the multi-class hinge loss; CUDA has."""
    subject = digits_training(loss=nn.functional.multi_margin_loss)
    report = check(
        subject, precision="16-true", target=target, seeds=3, emulate="always", budget=0.1
    )
    assert report.verdict == verdict, str(report)
    assert "multi_margin" in report.run.canary
    assert report.run.unsupported == [report.run.canary]
    if target == "cuda":
        assert any("speaks for cuda" in w for w in report.warnings)
    else:
        assert report.culprit.mechanism == "unsupported-op"
        assert report.training["ended"] == ["raised"]
        assert not any("canary" in w for w in report.warnings)
        assert report.cure.kind in ("loss in float32", "mixed")  # tried under a canary of its own


def test_what_no_device_promotes_is_a_verdict_for_every_target(digits_training):
    def loss(outputs, targets):
        weight = torch.ones(10)  # float32 beside float16 outputs
        return nn.functional.nll_loss(outputs.log_softmax(-1), targets, weight)

    given = {"target": "cuda", "seeds": 1, "emulate": "always", "budget": 0.1}
    report = check(digits_training(loss=loss), precision="16-true", **given)
    assert report.verdict == "not equivalent"
    assert report.training["ended"] == ["raised"]
    assert (report.cure.kind, report.cure.verified) == ("loss in float32", True)


def test_a_scaler_refuses_an_optimizer_with_a_closure_as_torch_does(digits_training):
    found = canary(digits_training(optimizer=lambda p: torch.optim.LBFGS(p, lr=0.1)), "16-mixed")
    assert "Closure use is not currently supported" in str(found.error)


def test_a_healthy_training_names_its_canary(digits_training):
    report = check(digits_training(), precision="bf16-true", seeds=3)
    assert "made a training step natively on cpu" in report.run.canary
    assert report.run.unsupported == []


def test_a_step_that_the_devices_own_kernel_does_not_make(digits_training, monkeypatch):
    """As a CPU's fused SGD: in torch 2.13 it leaves all but small 16-bit tensors as they are."""
    real = training_canary.Trainee

    def defective(*given):
        trainee = real(*given)
        if not trainee.place.emulated:
            start = [p.detach().clone() for p in trainee.parameters()]

            def undo(*_):
                with torch.no_grad():
                    for parameter, value in zip(trainee.parameters(), start, strict=True):
                        parameter.copy_(value)

            trainee.optimizer.register_step_post_hook(undo)
        return trainee

    monkeypatch.setattr(training_canary, "Trainee", defective)
    found = canary(digits_training(), "bf16-true")
    assert "native step is 0 times as long" in found.text
    assert found.difference == 1


@pytest.mark.parametrize(
    ("native", "emulated", "said", "difference"),
    [
        (math.nan, math.nan, "its step makes the weights NaN or infinite, as in emulation", 0.1),
        (math.inf, 1.0, "NaN or infinite after the native step only", math.inf),
        (1.0, math.nan, "NaN or infinite after the emulated step only", math.inf),
        (1.1, 1.0, "", 0.1),
        (0.0, 0.0, "", 0.1),
        (40.0, 1.0, "40 times as long", 39.0),
    ],
)
def test_what_is_said_of_two_steps(native, emulated, said, difference):
    text, found = training_canary._steps(native, emulated, 0.1)
    assert (said in text, bool(text)) == (True, bool(said))
    assert found == difference


def test_gradients_that_are_lost_in_both_runs_are_no_difference(digits_training):
    def loss(outputs, targets):
        nothing = outputs * 0
        return nn.functional.cross_entropy(outputs, targets) + (nothing / (nothing + 1e-8)).sum()

    subject = digits_training(
        model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), loss=loss
    )
    found = canary(subject, "16-true")
    assert found.difference is None
    assert found.text.endswith("its gradient is NaN or infinite, as in emulation")
    assert canary(subject, "bf16-true").difference is not None


def test_what_the_target_computes_otherwise_is_no_fault_of_emulation(digits_training):
    class Counted(nn.Module):
        """Weighs inputs by a count that float16 cannot take beyond 2048 on CUDA."""

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(x * torch.ones_like(x[:1]).expand(3000, -1).cumsum(0)[-1] / 1000)

    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    data = [(x, (x[:, 0] > 0).long())]
    sgd = lambda p: torch.optim.SGD(p, lr=0.1)  # noqa: E731
    subject = digits_training(model=Counted, train_data=data, eval_data=data, optimizer=sgd)
    found = canary(subject, "16-true", target="cuda")
    assert found.difference < LARGE_DIFFERENCE
    assert "of this device's kernels by" in found.text
    assert "gradients are those of cpu's own kernels, the verdict speaks for cuda" in found.text
