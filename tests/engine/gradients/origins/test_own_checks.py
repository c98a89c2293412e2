"""Programs that decide by their values are shown more batches; the others are not."""

import itertools

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.check import gradient_check
from pytest_fp16.engine.gradients.origins.own_checks import SHOWN, decides, failing
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.precision import REFERENCE, precision
from pytest_fp16.settings import Settings

CPU = torch.device("cpu")


class Looked(nn.Module):
    """Adds a row of a table, read at a number that comes with the inputs."""

    def __init__(self):
        super().__init__()
        self.body, self.table = nn.Linear(4, 3), nn.Parameter(torch.zeros(1000, 3))

    def forward(self, x, t):
        return self.body(x) + self.table[t.long()]


def subject(model, loss=F.cross_entropy, last=0.0):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(320, 4, generator=generator), torch.arange(320) % 3
    t = torch.arange(320.0) % 200
    t[-1] = last
    parts = zip(x.split(16), t.split(16), y.split(16), strict=True)
    inputs = (lambda x, t: (x, t)) if model is Looked else (lambda x, t: x)
    data = [(inputs(x, t), y) for x, t, y in parts]
    given = {"train_data": data, "eval_data": data, "loss": loss, "model": model, "epochs": 2}
    return Training(**given, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))


def trainee(training, name):
    place = Place(CPU, "cuda", name != "32-true")
    wanted = REFERENCE if name == "32-true" else precision(name)
    return Trainee(training, wanted, 0, initial_state(training, 0), place)


def linear():
    return nn.Linear(4, 3)


def checked(z, y):
    # Said, as torch.compile takes the default away from the whole process.
    return -Categorical(probs=z.softmax(-1), validate_args=True).log_prob(y).mean()


@pytest.mark.parametrize(
    ("training", "decided"),
    [(subject(linear), False), (subject(Looked), True), (subject(linear, checked), True)],
)
def test_what_decides(training, decided):
    assert decides(trainee(training, "bf16-true"), training.train_data[0]) is decided


def test_a_check_that_fails_at_once_has_decided():
    def never(z, y):
        assert not bool((z == z).all())

    training = subject(linear, never)
    assert decides(trainee(training, "bf16-true"), training.train_data[0])


def test_a_float32_index_that_is_made_whole_is_no_decision_of_the_formats():
    training = subject(Looked)
    assert not decides(trainee(training, "bf16-mixed"), training.train_data[0])


def test_one_batch_of_many_fails():
    training = subject(Looked, last=999.0)
    exact, low = trainee(training, "32-true"), trainee(training, "bf16-true")
    found = failing(exact, low, training.train_data)
    assert isinstance(found.error, IndexError)
    assert found.batch is training.train_data[-1]
    assert failing(exact, trainee(training, "16-true"), training.train_data) is None
    assert failing(exact, low, training.train_data[:-1]) is None


def test_an_error_of_32_bits_too_is_the_programs_own():
    training = subject(Looked, last=1000.0)
    exact, low = trainee(training, "32-true"), trainee(training, "bf16-true")
    assert failing(exact, low, training.train_data) is None


def surgery(z, y):
    """A quotient that 16 bits lose for a batch whose inputs are small, in a step that decides."""
    small = z.square().sum() * 1e-8
    return F.cross_entropy(z, y) + (small / small if bool(small < 1) else 0.0)


@pytest.mark.parametrize(("name", "lost"), [("16-true", True), ("16-mixed", False)])
def test_a_loss_that_few_batches_lose(name, lost):
    training = subject(linear, surgery)
    training.train_data[-1] = (training.train_data[-1][0] * 0, training.train_data[-1][1])
    training.train_data[-2] = (training.train_data[-2][0] * 100, training.train_data[-2][1])
    exact, low = trainee(training, "32-true"), trainee(training, name)
    with torch.no_grad():
        exact.model.bias.fill_(0.1)
    found = failing(exact, low, training.train_data[-2:])
    assert (found is not None) is lost
    if lost:
        assert (found.seed, found.error) == (1, None)


def test_no_more_batches_than_that():
    training, seen = subject(Looked), []
    exact, low = trainee(training, "32-true"), trainee(training, "bf16-true")
    endless = itertools.cycle(training.train_data)
    assert failing(exact, low, (seen.append(1) or batch for batch in endless)) is None
    assert len(seen) == SHOWN


@pytest.mark.parametrize("name", ["16-true", "bf16-true", "bf16-mixed"])
def test_the_check_flags_it(name):
    found = gradient_check(subject(Looked, last=999.0), precision(name), Settings(), CPU)
    flagged = found.verdict == "not equivalent"
    assert flagged is (name == "bf16-true"), found.reason
    if flagged:
        assert "IndexError" in found.reason
        assert (found.culprit.mechanism, found.culprit.variant) == ("absorption", "whole numbers")
        assert "999 becomes 1000" in found.culprit.evidence
        assert "test_own_checks.py" in found.culprit.source
