"""Targets that outputs meet in 16 bits, and that leave the loss no slope."""

from functools import partial

import pytest
import torch
from torch import nn

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.check import gradient_check
from pytest_fp16.engine.gradients.probes.late_failures import Met
from pytest_fp16.precision import precision
from pytest_fp16.settings import Settings


def distance(z, t):
    return (z - t).square().sum(-1).sqrt().mean()


def places(loss, count=512, **changes):
    """Two numbers between one and two, told from four with noise."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=random)
    y = 1.5 + 0.4 * torch.tanh(x[:, :2]) + 0.02 * torch.randn(count, 2, generator=random)
    data = list(zip(x.split(32), y.split(32), strict=True))
    given = {"train_data": data, "eval_data": data, "task": "regression", "epochs": 12}
    given["optimizer"] = partial(torch.optim.SGD, lr=0.1)
    return Training(
        model=lambda: nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2)),
        loss=loss,
        **{**given, **changes},
    )


def found_by(subject, name="bf16-true"):
    return gradient_check(subject, precision(name), Settings(), torch.device("cpu"))


def test_a_distance_of_zero_is_found_before_there_is_one():
    found = found_by(places(distance))
    assert found.verdict == "not equivalent"
    assert found.reason.startswith("the gradient of outputs that meet their targets is not finite")
    assert "192 steps will see such a batch" in found.reason
    assert (found.culprit.module, found.culprit.mechanism) == ("<loss>", "cancellation")
    assert "test_late_failures.py" in found.culprit.source


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (lambda z, t: (z - t).norm(dim=-1).mean(), "bf16-true"),  # its slope at zero is zero
        (lambda z, t: ((z - t).square().sum(-1) + 1e-3).sqrt().mean(), "bf16-true"),
        (distance, "bf16-mixed"),  # targets keep digits that no output has
    ],
)
def test_other_distances_are_none(loss, name):
    found = found_by(places(loss)) if name == "bf16-true" else found_by(places(loss), name)
    assert found.verdict == "equivalent"
    assert not any("meet their targets" in note for note in found.notes)


def test_what_32_bits_do_not_survive_either_they_never_meet():
    def loss(z, t):  # 0 / 0 of what is met, in any format
        off = (z - t).square().sum(-1)
        return (off * off / off).mean()

    found = found_by(places(loss))
    assert found.reason.startswith("the gradient of outputs that meet their targets is not finite")


def test_numbers_that_the_loss_does_not_ask_for_are_none():
    def poisson(z, t):  # of logarithms: to meet a count of 20 would be to expect exp(20)
        return (z.exp() - t * z).mean()

    counts = places(poisson)
    data = [(x, (10 + 10 * (y - 1)).round()) for x, y in counts.train_data]
    slow = partial(torch.optim.SGD, lr=0.005)
    found = found_by(places(poisson, train_data=data, eval_data=data, optimizer=slow), "16-true")
    assert not any("meet their targets" in said for said in (found.reason, *found.notes))


def test_where_none_is_expected_it_is_a_note():
    found = found_by(places(distance, epochs=2), "16-true")
    assert found.verdict == "equivalent"
    assert any("outputs that meet their targets" in note for note in found.notes)
    assert any("none is expected" in note for note in found.notes)


def test_an_output_has_the_value_of_the_target_and_its_own_slope():
    z = torch.zeros(3, 2, requires_grad=True)
    wanted = torch.arange(6.0).view(3, 2) + 1
    assert Met(wanted).applied(z).tolist() == [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]]
    assert Met(wanted, whole=False).applied(z).tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    Met(wanted).applied(z).sum().backward()
    assert z.grad.tolist() == [[1.0, 1.0]] * 3
    assert Met(wanted[:2]).applied(z) is z
