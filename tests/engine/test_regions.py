"""CUDA's autocast as a program finds it where there is no CUDA, and nothing left behind."""

import warnings
from contextlib import suppress

import pytest
import torch
from torch.utils.checkpoint import DefaultDeviceType

from pytest_fp16.engine.regions import checkpoints_on_cuda, cuda_regions, custom_inputs

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="torch's own do it on CUDA")


@no_cuda
def test_a_region_can_be_entered_without_a_warning_and_is_on():
    with warnings.catch_warnings(), cuda_regions():
        warnings.simplefilter("error")
        with torch.autocast("cuda", torch.bfloat16):
            assert torch.is_autocast_enabled("cuda")
            assert torch.get_autocast_dtype("cuda") == torch.bfloat16
            with torch.autocast("cuda", enabled=False):
                assert not torch.is_autocast_enabled("cuda")
            assert torch.is_autocast_enabled("cuda")
        assert not torch.is_autocast_enabled("cuda")


@no_cuda
def test_regions_of_other_devices_are_left_to_torch():
    with cuda_regions(), torch.autocast("cpu", torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_enabled("cuda")
        x = torch.ones(2, 2)
        assert (x @ x).dtype == torch.bfloat16


@no_cuda
def test_a_region_may_be_entered_by_keywords_and_as_a_decorator():
    with cuda_regions():
        region = torch.autocast(device_type="cuda", dtype=torch.float16, enabled=True)

    @region
    def inside():
        return torch.is_autocast_enabled("cuda")

    assert inside()


@no_cuda
def test_checkpoints_keep_cudas_state():
    before = DefaultDeviceType.get_device_type()
    with suppress(ZeroDivisionError), checkpoints_on_cuda():
        assert DefaultDeviceType.get_device_type() == "cuda"
        raise ZeroDivisionError
    assert DefaultDeviceType.get_device_type() == before


def test_torch_is_as_before_even_where_the_program_raised():
    init, cast = torch.autocast.__init__, torch.amp.autocast_mode._cast
    with suppress(ZeroDivisionError), cuda_regions(), custom_inputs():
        assert torch.amp.autocast_mode._cast is not cast
        raise ZeroDivisionError
    assert torch.autocast.__init__ is init
    assert torch.amp.autocast_mode._cast is cast


def test_inputs_for_cuda_are_cast_where_they_are():
    x = torch.ones(2)
    whole = torch.arange(2)
    with custom_inputs():
        cast = torch.amp.autocast_mode._cast
        found = cast({"x": [x, whole, "text"]}, "cuda", torch.float16)["x"]
        assert [v.dtype for v in found[:2]] == [torch.float16, torch.int64]
        assert found[2] == "text"
        assert cast(x, "cpu", torch.bfloat16).dtype == torch.bfloat16
    assert torch.amp.autocast_mode._cast(x, "cuda", torch.float16).dtype == torch.float32
