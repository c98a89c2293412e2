"""What a training step may return."""

from types import SimpleNamespace

import pytest
import torch

from pytest_fp16.engine.training.returned import scalar_of
from pytest_fp16.errors import ModelError


def test_a_loss_alone_or_in_a_dictionary():
    loss = torch.tensor([2.0])
    assert scalar_of(loss, False).shape == ()
    assert scalar_of({"loss": loss, "more": 3}, False) == 2


@pytest.mark.parametrize("value", [None, {"loss": None}])
def test_a_step_may_leave_a_batch_out_and_a_loss_may_not(value):
    assert scalar_of(value, True) is None
    with pytest.raises(ModelError, match=r"must be a scalar tensor \(got None"):
        scalar_of(value, False)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            (torch.ones(()), torch.ones(3)),
            r"\(got a tuple of 2\); return the loss alone, or a dict",
        ),
        ({"nll": torch.ones(())}, r"\(got a dictionary with 'nll'\); return the loss alone"),
        (0.5, r"\(got 0\.5\); .*before \.item\(\), and leave backward\(\) and the"),
        (object(), r"\(got object\); return the loss alone"),
        (SimpleNamespace(loss=torch.ones(())), r"\(got SimpleNamespace\); return its \.loss$"),
    ],
)
def test_what_is_no_loss_is_told_without_its_numbers(value, said):
    with pytest.raises(ModelError, match=said):
        scalar_of(value, True)


def test_a_loss_function_has_no_backward_to_leave():
    with pytest.raises(ModelError, match=r"\(got 0\.5\); .*before \.item\(\)$"):
        scalar_of(0.5, False)


def test_a_loss_per_input_is_none():
    with pytest.raises(ModelError, match=r"of shape \(3,\)"):
        scalar_of(torch.zeros(3), True)
