"""What a user can get wrong about a training is found before the first long run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.training.validation import validated
from pytest_fp16.errors import DataError, ModelError, SettingError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _state():
    with preserved_state():
        yield


OUTSIDE = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def _once(data):
    yield from data


def _backward(model, batch, **options):
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    loss.backward(**options)
    return loss


BAD = {
    "data that yields once": (
        lambda t: {"train_data": _once(t.train_data)},
        DataError,
        "train_data yields once only",
    ),
    "no data": (lambda t: {"train_data": []}, DataError, "train_data is empty"),
    "no evaluation data": (lambda t: {"eval_data": []}, DataError, "eval_data is empty"),
    "data that is none": (lambda t: {"eval_data": 3}, DataError, "eval_data must yield batches"),
    "an optimizer that is none": (
        lambda t: {"optimizer": lambda params: "sgd"},
        SettingError,
        "it returned str",
    ),
    "no optimizer": (lambda t: {"optimizer": None}, SettingError, "configure_optimizers"),
    "a loss per input": (
        lambda t: {"loss": nn.CrossEntropyLoss(reduction="none")},
        ModelError,
        "the loss must be a scalar tensor",
    ),
    "a loss that is a number": (
        lambda t: {"loss": lambda o, t: nn.functional.cross_entropy(o, t).item()},
        ModelError,
        "the loss must be a scalar tensor",
    ),
    "no loss": (
        lambda t: {"loss": None},
        SettingError,
        r"loss must be a function .*training_step=lambda",
    ),
    "a step that returns nothing": (
        lambda t: {"training_step": lambda model, batch: None},
        ModelError,
        "must return the loss .got None for the first batch.",
    ),
    "a step that goes backward itself": (
        lambda t: {"training_step": _backward},
        ModelError,
        r"the training step calls backward\(\) itself; return the loss, and leave backward",
    ),
    "a step that goes backward itself and returns a number": (
        lambda t: {"training_step": lambda model, batch: _backward(model, batch).detach()},
        ModelError,
        r"the training step calls backward\(\) itself; return the loss, and leave backward",
    ),
    "a loss without gradient": (
        lambda t: {"loss": lambda o, t: nn.functional.cross_entropy(o.detach(), t)},
        ModelError,
        "requires no gradient",
    ),
    "a step with a model from outside": (
        lambda t: {"training_step": lambda model, batch: t.loss(OUTSIDE(batch[0]), batch[1])},
        ModelError,
        r"no gradient reaches one; does training_step= use what it is given",
    ),
    "a forward with a model from outside": (
        lambda t: {"forward": lambda model, x: OUTSIDE(x)},
        ModelError,
        "does forward= use what it is given",
    ),
    "a loss of something from outside": (
        lambda t: {"loss": lambda o, t: OUTSIDE[1].weight.square().sum()},
        ModelError,
        "does loss= use what it is given",
    ),
    "a model from outside that is evaluated": (
        lambda t: {
            "training_step": lambda model, batch: t.loss(model(batch[0]), batch[1]),
            "forward": lambda model, x: OUTSIDE(x),
        },
        SettingError,
        "forward= never uses the model that it is given",
    ),
    "a step whose arguments are swapped": (
        lambda t: {"training_step": lambda batch, model: t.loss(model(batch[0]), batch[1])},
        ModelError,
        r"object is not callable .*training_step= is called with \(model, batch\)",
    ),
    "a loss that is NaN": (
        lambda t: {"loss": lambda o, t: o.sum() * float("nan")},
        ModelError,
        "the loss of the untrained float32 model is nan",
    ),
    "a model in 16 bits": (lambda t: {"model": lambda: t.model().half()}, ModelError, "16 bits"),
    "a class that needs arguments": (
        lambda t: {"model": nn.Linear},
        ModelError,
        r"Linear cannot be called so .*lambda: Linear\(",
    ),
    "a function that makes none": (
        lambda t: {"model": lambda: {}["model"]},
        ModelError,
        "making the model raised KeyError",
    ),
    "an object with labels in it": (
        lambda t: {"train_data": [SimpleNamespace(x=x, y=y) for x, y in t.train_data]},
        DataError,
        r"it is SimpleNamespace: yield a pair .*\(data, data\.y\).* -100",
    ),
    "no model": (lambda t: {"model": 3}, ModelError, "function that makes one"),
    "nothing to train": (
        lambda t: {"model": lambda: t.model().requires_grad_(False)},
        ModelError,
        "nothing to train",
    ),
    "labels out of range": (
        lambda t: {"eval_data": [(x, y + 5) for x, y in t.eval_data]},
        DataError,
        "labels run from",
    ),
    "one batch instead of a list": (
        lambda t: {"train_data": t.train_data[0]},
        DataError,
        r"put it into a list: \[\(inputs, labels\)\]",
    ),
    "a dataset without a loader": (
        lambda t: {"train_data": torch.utils.data.TensorDataset(*t.train_data[0])},
        DataError,
        "put it into a DataLoader",
    ),
    "an optimizer of what the model has not": (
        lambda t: {"optimizer": lambda model: torch.optim.SGD(model.weights(), lr=0.1)},
        ModelError,
        r"making optimizer and sched.* no attribute 'weights' \(at .*test_validation\.py:\d+\)",
    ),
    "a scheduler that goes by epochs": (
        lambda t: {
            "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau,
            "scheduler_step": "step",
        },
        SettingError,
        "leave scheduler_step at 'epoch'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(digits_training, case):
    change, error, words = BAD[case]
    subject = digits_training(**change(digits_training()))
    with pytest.raises(error, match=words):
        validated(subject, CPU)


def test_a_healthy_training_is_sound(digits_training):
    subject = digits_training()
    found = validated(subject, CPU)
    assert found.subject is subject
    assert found.task.kind == "classification"
    assert found.steps == len(subject.train_data)
    assert found.notes == []


def test_data_without_a_length_has_no_known_number_of_steps(digits_training):
    class Lengthless:
        def __iter__(self):
            return iter(digits_training().train_data)

    assert validated(digits_training(train_data=Lengthless()), CPU).steps is None


def test_an_epoch_that_is_shorter_than_a_step_is_said(digits_training):
    count = len(digits_training().train_data)
    assert validated(digits_training(accumulate=count), CPU).notes == []
    (note,) = validated(digits_training(accumulate=count + 1), CPU).notes
    assert f"accumulate={count + 1}, and an epoch of train_data has {count} batch(es)" in note


def test_an_evaluation_of_what_is_trained_on_is_said(digits_training):
    data = digits_training().train_data
    (note,) = validated(digits_training(train_data=data, eval_data=data), CPU).notes
    assert "eval_data is train_data" in note


def test_a_function_that_returns_one_module_means_that_module(digits_training):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = model[1].weight.detach().clone()
    found = validated(digits_training(model=lambda: model), CPU)
    assert found.subject.model is model
    (note,) = found.notes
    assert "returns the same module each time" in note
    assert torch.equal(model[1].weight, before)


def test_data_that_does_not_repeat_is_named(digits_training):
    class Restless:
        """Augments by a generator of its own that nobody knows."""

        def __init__(self, batches):
            self.batches, self.own = batches, torch.Generator().manual_seed(0)

        def __iter__(self):
            for x, y in self.batches:
                yield x + torch.rand(x.shape, generator=self.own), y

    data = Restless(digits_training().train_data)
    (note,) = validated(digits_training(train_data=data), CPU).notes
    assert "does not repeat under the same seed" in note


def test_an_order_that_does_not_repeat_is_named(digits_training):
    class Shuffled:
        """Permutes by a generator outside; the second order begins as the first does."""

        def __init__(self, batches):
            self.batches, self.orders = batches, iter([[0, 1, 2], [0, 2, 1]] * 9)

        def __iter__(self):
            return (self.batches[i] for i in next(self.orders))

    data = Shuffled(digits_training().train_data)
    (note,) = validated(digits_training(train_data=data), CPU).notes
    assert "does not repeat under the same seed" in note


def test_what_the_users_code_raises_says_what_was_being_done(digits_training):
    def broken(z, y):
        raise KeyError("no such label")

    with pytest.raises(ModelError, match=r"raised KeyError.*test_validation\.py:\d") as told:
        validated(digits_training(loss=broken), CPU)
    assert isinstance(told.value.__cause__, KeyError)

    def only_in_training(model, x):
        if not model.training:
            raise ValueError("no head for evaluation")
        return model(x)

    with pytest.raises(ModelError, match="evaluating a batch of eval_data in float32 raised Value"):
        validated(digits_training(forward=only_in_training), CPU)


def test_the_users_own_errors_stay_as_they_are(digits_training):
    def own(z, y):
        raise DataError("these labels are for another model")

    with pytest.raises(DataError, match="for another model"):
        validated(digits_training(loss=own), CPU)


def test_a_models_gradient_mode_is_no_matter(digits_training):
    with torch.no_grad():
        assert validated(digits_training(), CPU).notes == []


def test_a_loss_beside_a_step_of_ones_own_is_said_to_be_left_out(digits_training):
    def step(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    said = "loss= is not used"
    assert said in " ".join(validated(digits_training(training_step=step), CPU).notes)
    assert said not in " ".join(
        validated(digits_training(training_step=step, loss=None), CPU).notes
    )


def _cast_loss(dtype):
    return lambda outputs, targets: nn.functional.cross_entropy(outputs.to(dtype).float(), targets)


def test_a_step_that_casts_to_16_bits_by_itself_is_told(digits_training):
    (note,) = validated(digits_training(loss=_cast_loss(torch.float16)), CPU).notes
    assert note.startswith("32-true itself computes in float16, as the program asks: a cast (")
    assert "test_validation.py:" in note
    assert validated(digits_training(loss=_cast_loss(torch.float64)), CPU).notes == []


def test_a_step_that_goes_backward_as_well_is_left_to_do_so(digits_training):
    def step(model, batch):
        return _backward(model, batch, retain_graph=True)

    assert validated(digits_training(training_step=step, loss=None), CPU).notes == []


def test_a_part_that_is_the_same_in_each_module_is_copied(digits_training):
    """A pretrained part would be trained by run after run, and be another one for each."""
    part = nn.Linear(64, 10)
    before = part.weight.detach().clone()
    found = validated(
        digits_training(model=lambda: nn.Sequential(nn.Flatten(), part, nn.Linear(10, 10))), CPU
    )
    one, other = found.subject.model(), found.subject.model()
    assert one[1].weight is not part.weight
    assert torch.equal(one[1].weight, before)
    assert not torch.equal(one[2].weight, other[2].weight), "seeds still vary the rest"
    assert torch.equal(part.weight, before)


class Weighted(torch.nn.Module):
    """Weighs its terms by numbers that are to be learned."""

    def __init__(self, learns=True):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1), requires_grad=learns)

    def forward(self, outputs, targets):
        loss = torch.nn.functional.cross_entropy(outputs, targets)
        return (loss * (-self.weight).exp() + self.weight).sum()


@pytest.mark.parametrize("learns", [True, False])
def test_what_a_loss_would_learn_is_told(digits_training, learns):
    notes = validated(digits_training(loss=Weighted(learns)), torch.device("cpu")).notes
    told = [note for note in notes if note.startswith("loss= has parameters of its own (weight), ")]
    assert len(told) == learns
