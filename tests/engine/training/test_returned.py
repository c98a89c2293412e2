"""What a training step may return."""

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


def test_a_loss_per_input_is_none():
    with pytest.raises(ModelError, match=r"of shape \(3,\)"):
        scalar_of(torch.zeros(3), True)
