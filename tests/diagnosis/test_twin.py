"""A twin shows the program its 16-bit tensor and carries the exact one beside it."""

import pytest
import torch

from pytest_fp16.diagnosis.twin import Fate, Twin, exact, low, twins

HALF = torch.float16


def twin(values=(1.0, 2.0), dtype=HALF, made=True):
    wide = torch.tensor(values) + 2.0**-13
    return Twin(wide.to(dtype), wide, Fate(made, False), dtype)


def test_the_program_sees_its_own_tensor():
    x = twin()
    assert (x.dtype, x.shape) == (HALF, (2,))
    assert x.shown() is x.low
    assert torch.equal(x.native(), x.low)
    assert x.exact.dtype == torch.float32
    assert not torch.equal(x.exact, x.low.float())


def test_a_read_on_the_host_is_told():
    x, told = twin(), []
    assert x.tolist() == [1.0, 2.0]  # nobody to tell
    x.on_read = lambda: told.append
    assert x.numpy().tolist() == x.tolist() == [1.0, 2.0]
    assert [id(t) for t in told] == [id(x), id(x)]


def test_both_worlds_of_a_list_of_arguments():
    x, y = twin(), twin((3.0,))
    args = [x, [y, 5], HALF, None, torch.float64]
    assert low(args)[0] is x.low
    assert low(args)[1][0] is y.low
    assert low(args)[1:] == [[y.low, 5], HALF, None, torch.float64]
    assert exact(args)[0] is x.exact
    assert exact(args)[1][1] == 5
    assert exact(args)[2:] == [torch.float32, None, torch.float64]


def test_every_twin_is_found():
    x, y = twin(), twin()
    assert [id(t) for t in twins(([x, torch.ones(2)], 3), {"out": y})] == [id(x), id(y)]


def test_operations_need_a_twin_run():
    with pytest.raises(RuntimeError, match="after its run had ended"):
        torch.exp(twin())
