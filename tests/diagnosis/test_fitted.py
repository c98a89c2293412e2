"""Constants that do not fit, brought into the range of what they meet."""

import pytest
import torch

from pytest_fp16.diagnosis.fitted import Fitted
from pytest_fp16.engine.emulation.refusal import RefusedNumber
from pytest_fp16.engine.emulation.target_mode import assignments_as_on

LEAST = torch.finfo(torch.float16).min
HIDDEN = torch.tensor([True, False])


@pytest.mark.parametrize(
    "mask",
    [
        lambda x: x.masked_fill(HIDDEN, -9e15),
        lambda x: x.clone().masked_fill_(HIDDEN, value=-9e15),
        lambda x: torch.where(HIDDEN, -9e15, x),
        lambda x: x.masked_fill(HIDDEN, torch.tensor(-9e15)),
        lambda x: x + HIDDEN.to(x.dtype) * -9e15,
        lambda x: torch.where(HIDDEN, torch.full((), -9e15, dtype=x.dtype), x),
        lambda x: torch.where(HIDDEN, torch.tensor(-9e15, dtype=x.dtype), x),
        lambda x: torch.where(HIDDEN, x.new_full((2,), -9e15), x),
    ],
)
def test_a_mask_holds_the_least_number_of_the_format(mask):
    x = torch.tensor([0.0, 2.0])
    with Fitted():
        assert mask(x.half()).tolist() == [LEAST, 2.0]
    assert mask(x)[0] == torch.tensor(-9e15)


def test_what_fits_is_left_and_so_is_what_is_meant_to_be_infinite():
    x = torch.ones(2)
    with Fitted():
        assert x.masked_fill(HIDDEN, -9e15).tolist()[0] < LEAST  # float32 holds it
        assert x.bfloat16().masked_fill(HIDDEN, -9e15).tolist()[0] < LEAST
        assert x.half().masked_fill(HIDDEN, float("-inf")).isinf().tolist() == [True, False]
        assert (x.half() * 3).tolist() == [3.0, 3.0]
        assert not bool((x.half() * True).isinf().any())


def test_what_a_target_refuses_to_assign_is_fitted_first():
    x = torch.ones(2).half()
    own = torch.Tensor.__setitem__
    with assignments_as_on("cuda"):
        with pytest.raises(RefusedNumber):
            x[HIDDEN] = -1e9
        with Fitted():
            x[HIDDEN] = -1e9
    assert x.tolist() == [LEAST, 1.0]
    assert torch.Tensor.__setitem__ is own


def test_sizes_are_no_constants():
    x = torch.ones(70_000, 2).half()
    with Fitted():
        assert x.view(140_000).shape == x.reshape(140_000).shape == (140_000,)
        assert x.new_zeros(70_000).shape == (70_000,)
        assert x[:1, 0].expand(70_000).shape == (70_000,)
        assert torch.full((70_000,), 1.0, dtype=x.dtype).shape == (70_000,)
