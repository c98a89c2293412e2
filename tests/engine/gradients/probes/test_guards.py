"""Constants that are zero in the format, and what they guard."""

import linecache
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training
from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.gradients.check import gradient_check
from pytest_fp16.engine.gradients.probes.guards import Guard, Guards, lost_guards
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.precision import precision
from pytest_fp16.settings import Settings
from pytest_fp16.theory.rounding import FORMATS

HALF = torch.float16
EMULATED = Place(torch.device("cpu"), "cuda", emulated=True)
X = torch.tensor([[1.0, 2.0, 4.0], [0.5, 0.25, 3.0]])

USED = {
    "div": lambda x: x / (x.std() + 1e-8),
    "reciprocal": lambda x: 1 / (x.abs() + 1e-9),
    "log": lambda x: torch.log(x + 1e-12),
    "rsqrt": lambda x: torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-12),
    "sqrt": lambda x: (x.square().sum(-1) + 1e-12).sqrt(),
    "div after sqrt": lambda x: x / (x.square().sum(-1, keepdim=True) + 1e-12).sqrt(),
    "div by clamp": lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12),
    "div in normalize": partial(F.normalize, dim=-1),
}


def found_in(function, x=X, dtype=HALF):
    model = nn.Identity()
    with Emulation("cuda"), Guards(model, dtype) as guards:
        function(model(x.to(dtype)))
    return guards


@pytest.mark.parametrize("case", USED)
def test_a_lost_guard_is_found_with_what_needs_it(case):
    guards = found_in(USED[case])
    (guard,) = guards.found.values()
    assert guard.operation == case.split()[0]
    assert guard.module == "<loss>"
    assert 0 < guard.constant < 2**-25
    assert min(guards.smallest.values()) > 0.1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / (x.std() + 1e-4),  # a guard that float16 holds
        lambda x: x.float() / (x.float().std() + 1e-8),  # an island
        lambda x: x / (x + 1),
        lambda x: torch.log(x + x.std()),
    ],
)
def test_what_is_no_lost_guard(function):
    assert not found_in(function).found


def test_a_small_number_that_nothing_divides_by_guards_nothing():
    (guard,) = found_in(lambda x: (x + 1e-9) * 2).found.values()
    assert guard.operation is None


def test_bfloat16_holds_them():
    assert not found_in(USED["div"], dtype=torch.bfloat16).found


class Spread(nn.Module):
    """A likelihood whose variance is learned, of noise that has none."""

    def __init__(self):
        super().__init__()
        self.mean, self.log_var = nn.Linear(4, 1), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.mean(x), self.log_var


def likelihood(outputs, y, eps=1e-8):
    mean, log_var = outputs
    var = log_var.exp() + eps
    return 0.5 * ((y - mean).square() / var + var.log()).mean()


def training(loss, epochs):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 4, generator=generator)
    y = x[:, :1] * 0
    data = list(zip(x.split(16), y.split(16), strict=True))
    return Training(
        model=Spread,
        optimizer=partial(torch.optim.Adamax, lr=0.02, eps=1e-4),
        loss=loss,
        train_data=data,
        eval_data=data,
        epochs=epochs,
        task="regression",
    )


def checked(loss, epochs, name="16-true"):
    return gradient_check(training(loss, epochs), precision(name), Settings(), torch.device("cpu"))


def test_a_term_that_falls_to_zero_before_the_end():
    found = checked(likelihood, 80)
    assert found.verdict == "not equivalent"
    assert (found.culprit.module, found.culprit.mechanism) == ("<loss>", "eps-underflow")
    assert "1e-08 is zero in float16" in found.reason
    name, _, number = found.culprit.source.rpartition(":")
    assert "log_var.exp() + eps" in linecache.getline(name, int(number))


def test_one_that_does_not_get_there_is_a_note():
    found = checked(likelihood, 20)
    assert found.verdict == "equivalent", found.reason
    (note,) = [n for n in found.notes if "guards" in n]
    assert "1e-08, which guards div (" in note
    assert "is zero in float16; the least it was added to in 32 bits is" in note


def test_a_guard_with_nothing_beside_it_is_emptied():
    guards = Guards(torch.nn.Identity(), HALF, {"a": Guard("", None, 1e-8, "div")})
    assert not guards.emptied
    for term, emptied in ((1e-3, False), (0.0, True), (1e-9, True), (math.nan, False)):
        guards.found["a"].terms.append(term)
        assert guards.emptied is emptied


def test_a_guard_that_is_held_is_not_spoken_of():
    found = checked(partial(likelihood, eps=1e-3), 80)
    assert found.verdict == "equivalent", found.reason
    assert not any("guards" in n for n in found.notes)


def test_a_loss_that_counts_its_calls_may_end_the_search():
    subject = training(likelihood, 2)
    trainee = Trainee(subject, precision("16-true"), 0, initial_state(subject, 0), EMULATED)

    def ends(outputs, y):
        raise RuntimeError("called once too often")

    trainee.subject = replace(subject, loss=ends)
    assert lost_guards(trainee, subject.train_data[0], FORMATS[HALF]) == {}
    trainee.subject = subject
    assert len(lost_guards(trainee, subject.train_data[0], FORMATS[HALF])) == 1
