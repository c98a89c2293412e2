"""The metric of a trained model on the evaluation data, beside the same written down."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.training import score as home
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.score import score
from pytest_fp16.errors import DataError
from pytest_fp16.precision import REFERENCE, precision
from pytest_fp16.theory.budget import accuracy_error

PLACE = Place(torch.device("cpu"), "cuda", emulated=True)


@pytest.fixture(autouse=True)
def _state():
    with preserved_state():
        yield


def logits(count=60, classes=4):
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(0))


def of(digits_training, x, y, model=None, name="32-true", **more):
    wanted = REFERENCE if name == "32-true" else precision(name)
    data = list(zip(x.split(16), y.split(16), strict=True))
    subject = digits_training(model=nn.Identity, eval_data=data, **more)
    return score(subject, model or nn.Identity(), wanted, PLACE, None)


def test_accuracy_over_all_batches(digits_training):
    x = logits()
    y = x.argmax(-1)
    y[:15] = (y[:15] + 1) % 4
    found, task = of(digits_training, x, y)
    assert (found.name, task.kind) == ("accuracy", "classification")
    assert (found.value, found.inputs) == (pytest.approx(0.75), 60)
    assert found.grain == pytest.approx(1 / 60)
    assert found.majority == pytest.approx(float(y.bincount().max()) / 60)
    assert found.resolution == pytest.approx(min(max(accuracy_error(45, 45, 60), 1e-3), 1e-2))
    assert found.finite
    assert torch.equal(found.predictions[:, 0], x)


def test_positions_that_do_not_count(digits_training):
    x = logits(48, 3).reshape(8, 6, 3)
    y = x.argmax(-1)
    y[:, 4:] = -100
    y[0, 0] = (y[0, 0] + 1) % 3
    found, task = of(digits_training, x.movedim(-1, 1), y)
    assert task.many
    assert found.value == pytest.approx(31 / 32)
    assert found.grain == pytest.approx(1 / 32)
    assert found.inputs == 8


def test_regression_is_judged_by_r_squared(digits_training):
    y = logits(60, 1)[:, 0]
    x = (y + 0.3).unsqueeze(1)
    found, task = of(digits_training, x, y)
    wanted = 1 - 0.09 * 60 / float((y - y.mean()).square().sum())
    assert task.kind == "regression"
    assert found.value == pytest.approx(wanted, rel=1e-5)
    assert found.majority is None
    assert found.grain == 0


def test_a_score_of_the_users_own(digits_training):
    x, y = logits(), torch.zeros(60).long()

    def negative_loss(outputs, labels):
        return -F.cross_entropy(outputs, labels, reduction="none")

    found, _ = of(digits_training, x, y, metric=negative_loss)
    assert found.name == "negative_loss"
    assert found.value == pytest.approx(-float(F.cross_entropy(x, y)), rel=1e-5)


def test_an_output_that_is_not_finite_is_seen(digits_training):
    x = logits()
    x[55, 0] = torch.nan
    assert not of(digits_training, x, torch.zeros(60).long())[0].finite


@pytest.mark.parametrize("name", ["16-true", "bf16-mixed"])
def test_a_model_is_evaluated_in_eval_mode_and_in_its_precision(digits_training, name):
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 4)

        def forward(self, x):
            z = self.net(x)
            seen.append((self.training, z.dtype, z.requires_grad))
            return z

    model = Watching().train()
    if name.endswith("true"):
        model = model.half()
    found, _ = of(digits_training, logits(), torch.zeros(60).long(), model, name)
    dtype = torch.float16 if name == "16-true" else torch.bfloat16
    assert set(seen) == {(False, dtype, False)}
    assert model.training  # given back as it was
    assert found.predictions.dtype == torch.float32


def test_a_mode_is_given_back_where_a_model_raises(digits_training):
    class Raising(nn.Module):
        def forward(self, x):
            raise ZeroDivisionError

    model = Raising().train()
    with pytest.raises(ZeroDivisionError):
        of(digits_training, logits(), torch.zeros(60).long(), model)
    assert model.training


@pytest.mark.parametrize(("kept", "rows"), [(40, 10), (70, 17), (10_000, 60)])
def test_so_many_predictions_are_kept_from_the_first_on(digits_training, monkeypatch, kept, rows):
    own = home._Sums.__init__
    monkeypatch.setattr(home._Sums, "__init__", lambda self: own(self, room=kept))
    x = logits()
    found, _ = of(digits_training, x, torch.zeros(60).long())
    assert torch.equal(found.predictions[:, 0], x[:rows])


def test_what_cannot_be_scored_says_why(digits_training):
    with pytest.raises(DataError, match="eval_data yields no batches"):
        score(digits_training(eval_data=[]), nn.Identity(), REFERENCE, PLACE, None)
    with pytest.raises(DataError, match="no metric of its own in a training"):
        of(digits_training, logits(), torch.zeros(60).long(), task="embedding")


def test_labels_that_only_the_users_metric_reads(digits_training):
    x = logits()

    def spelled(outputs, words):
        return torch.tensor(
            [float(len(w) == int(o.argmax())) for o, w in zip(outputs, words, strict=True)]
        )

    data = [(x, ["x" * int(c) for c in x.argmax(-1)])]
    subject = digits_training(model=nn.Identity, eval_data=data, metric=spelled)
    found, task = score(subject, nn.Identity(), REFERENCE, PLACE, None)
    assert (found.value, found.inputs, task.kind) == (1.0, len(x), "classification")


class Slope(nn.Module):
    """The gradient of a sum of squares, which is twice its input."""

    def forward(self, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(x.square().sum(), x)[0]


@pytest.mark.parametrize("name", ["32-true", "16-true", "bf16-mixed"])
def test_a_model_that_differentiates_is_scored_with_gradients(digits_training, name):
    x = logits()
    found, _ = of(digits_training, x, 2 * x, Slope(), name, task="regression")
    assert found.value == pytest.approx(1, abs=1e-3)
    assert found.inputs == len(x)


def test_a_gradient_that_nobody_records_is_the_models_own_error(digits_training):
    class Cut(nn.Module):
        def forward(self, x):
            return torch.autograd.grad((x * 2).sum(), x.detach())[0]

    x = logits()
    with pytest.raises(RuntimeError, match="grad"):
        of(digits_training, x, 2 * x, Cut(), task="regression")


def test_a_score_that_is_one_or_zero_is_resolved_as_an_accuracy(digits_training):
    x = logits(600)
    y = x.argmax(-1)
    y[:540] = (y[:540] + 1) % 4

    def exact(outputs, labels):
        return (outputs.argmax(1) == labels).float()

    own, _ = of(digits_training, x, y, metric=exact)
    accuracy, _ = of(digits_training, x, y)
    assert own.own
    assert (own.value, own.resolution, own.grain) == pytest.approx(
        (accuracy.value, accuracy.resolution, accuracy.grain)
    )


def test_probabilities_are_decided_at_a_half(digits_training):
    y = (logits(60, 1) > 0).float()
    found, task = of(digits_training, torch.sigmoid(logits(60, 1)), y)
    assert (task.kind, task.threshold) == ("multilabel", 0.5)
    assert (found.name, found.value) == ("accuracy at 0.5", 1.0)


def test_logits_of_a_first_batch_that_lie_between_0_and_1_are_logits(digits_training):
    x = logits(60, 1).sort(0, descending=True).values / 10
    assert 0 < x[:16].min() < x[:16].max() < 1 < 20 * -x.min()
    found, task = of(digits_training, x, (x > 0).float())
    assert (task.threshold, found.name, found.value) == (0.0, "accuracy", 1.0)
    assert found.inputs == 60
