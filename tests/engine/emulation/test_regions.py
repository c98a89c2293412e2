"""CUDA's autocast as a program finds it where there is no CUDA, and nothing left behind."""

import warnings
from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import DefaultDeviceType

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.emulation.regions import (
    checkpoints_on_cuda,
    cuda_regions,
    custom_inputs,
    regions_off,
)

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


def test_a_torch_that_casts_inputs_otherwise_is_left_as_it_is(monkeypatch):
    monkeypatch.delattr(torch.amp.autocast_mode, "_cast")
    with custom_inputs():
        assert not hasattr(torch.amp.autocast_mode, "_cast")


FLAG = True

with warnings.catch_warnings():
    warnings.simplefilter("ignore")

    @torch.autocast("cuda", dtype=torch.float16)
    def on():
        return torch.is_autocast_enabled("cuda")

    @torch.autocast("cuda", torch.float16, True)
    def on_by_position():
        return torch.is_autocast_enabled("cuda")

    @torch.cuda.amp.autocast()
    def on_of_old():
        return torch.is_autocast_enabled("cuda")

    @torch.autocast("cuda", enabled=False)
    def off():
        return torch.is_autocast_enabled("cuda")

    @torch.cuda.amp.autocast(False)
    def off_of_old():
        return torch.is_autocast_enabled("cuda")

    @torch.autocast("cuda", enabled=FLAG)
    def unknown():
        return torch.is_autocast_enabled("cuda")

    kept = torch.autocast("cuda")
    written_nowhere = kept(eval("lambda: torch.is_autocast_enabled('cuda')"))


@no_cuda
@pytest.mark.parametrize("function", [on, on_by_position, on_of_old])
def test_a_decorator_made_at_import_is_on_where_it_is_written_so(function):
    assert not function()
    with cuda_regions():
        assert function()
        assert not torch.is_autocast_enabled("cuda")
    assert not function()


@no_cuda
@pytest.mark.parametrize("function", [off, off_of_old, unknown, written_nowhere])
def test_a_decorator_that_is_off_or_not_written_out_stays_off(function):
    with cuda_regions(), torch.autocast("cuda"):
        assert torch.is_autocast_enabled("cuda")
        assert not function()
        assert torch.is_autocast_enabled("cuda")
        with kept:
            assert not torch.is_autocast_enabled("cuda")


@no_cuda
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true"])
def test_a_decorated_forward_runs_in_16_bits(precision):
    """Where the model is cast to bfloat16, too: the region is float16's."""

    class Decorated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 64), nn.Linear(64, 5)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")

            @torch.autocast("cuda", dtype=torch.float16)
            def forward(self, x):
                return self.last(self.first(x) * 3000)

    torch.manual_seed(0)
    model, x = Decorated().eval(), torch.randn(40, 6) * 30
    report = check(Evaluation(model=model, data=[(x, model(x).argmax(-1))]), precision=precision)
    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert report.run.dtypes["float16"] > 0
    assert report.culprit.mechanism == "overflow"


def test_no_region_casts_where_none_is_to():
    x = torch.ones(2, 2)
    with regions_off() as seen:
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            assert not seen.any
        with torch.autocast("cpu", torch.bfloat16):
            assert (x @ x).dtype == torch.float32
            with torch.autocast("cpu", torch.float16):
                assert (x @ x).dtype == torch.float32
        assert seen.any
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")


class OwnAutocast(nn.Module):
    """Absorbs its input in bfloat16, whatever it is asked for."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)
        self.layer.weight.data -= self.layer.weight.data.mean(1, keepdim=True)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.layer(x + 100).float()


def test_the_reference_is_in_32_bits_though_the_model_enters_an_autocast():
    torch.manual_seed(0)
    model, x = OwnAutocast().eval(), torch.randn(400, 8)
    with torch.no_grad():
        labels = model.layer(x + 100).argmax(1)
    subject = Evaluation(model=model, data=[(x, labels)])

    report = check(subject, precision="bf16-true", target="cpu")
    assert report.metric.reference == 1.0
    assert not report.equivalent
    assert "the model enters an autocast of its own; 32-true ran without it" in report.warnings

    (said,) = (
        w for w in check(subject, precision="16-mixed", target="cpu").warnings if "all ran" in w
    )
    assert said == "no operation computed in float16: all ran in float32 and bfloat16"


def test_a_model_that_computes_nothing_is_said_to():
    x = torch.randn(40, 3)
    report = check(Evaluation(model=nn.Identity(), data=[(x, x.argmax(1))]), precision="16-mixed")
    assert "no operation computed in float16, nor in another format" in report.warnings
