"""Windows and frequencies as ATen composes them, in the dtype that is asked for."""

import pytest
import torch

from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.tracing.recorder import Recorder
from pytest_fp16.engine.tracing.trace import Trace

MADE = {
    "hann": lambda **kw: torch.hann_window(1000, **kw),
    "hann, not periodic": lambda **kw: torch.hann_window(37, False, **kw),
    "of one": lambda **kw: torch.hann_window(1, **kw),
    "hamming": lambda **kw: torch.hamming_window(300, **kw),
    "hamming of one's own": lambda **kw: torch.hamming_window(300, True, 0.6, 0.4, **kw),
    "blackman": lambda **kw: torch.blackman_window(512, **kw),
    "bartlett": lambda **kw: torch.bartlett_window(301, **kw),
    "kaiser": lambda **kw: torch.kaiser_window(400, True, 9.0, **kw),
    "frequencies": lambda **kw: torch.fft.fftfreq(75, 0.3, **kw),
    "half of them": lambda **kw: torch.fft.rfftfreq(1000, 0.01, **kw),
}
LOW = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def emulated(make, dtype, target):
    with Emulation(target):
        out = make(dtype=dtype)
    with torch.no_grad(), Trace(Recorder(1, torch.device("cpu"), str, {}), target, {}):
        traced = make(dtype=dtype)
    exact = {"rtol": 1e-6, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(traced.native().to(dtype), out, **exact)
    return out


@pytest.mark.parametrize("name", MADE)
def test_in_float32_they_are_the_same(name):
    make = MADE[name]
    torch.testing.assert_close(emulated(make, torch.float32, "cuda"), make(), rtol=1e-5, atol=1e-5)


@LOW
@pytest.mark.parametrize("name", MADE)
def test_on_a_cpu_they_are_its_own(name, dtype):
    make = MADE[name]
    assert torch.equal(emulated(make, dtype, "cpu"), make(dtype=dtype))


@LOW
@pytest.mark.parametrize("name", MADE)
def test_on_cuda_they_are_as_far_off(name, dtype):
    """A CPU rounds a factor beside; so errors are compared, and with those of one rounding."""
    make = MADE[name]
    exact = make(dtype=torch.float64)

    def error(out):
        return float((out.double() - exact).abs().max())

    own, found, once = (
        error(out) for out in (make(dtype=dtype), emulated(make, dtype, "cuda"), exact.to(dtype))
    )
    assert 0.4 * own <= found <= 1.5 * own + 1e-9
    if dtype == torch.bfloat16 and "freq" not in name and name not in ("of one", "half of them"):
        assert found > 1.5 * once


def test_a_cosine_window_is_taken_step_by_step():
    places = torch.arange(1001, dtype=torch.bfloat16)
    cosine = (places * (2 * torch.pi / 1000)).cos()
    wanted = (cosine * -0.5 + 0.5)[:1000]
    found = emulated(MADE["hann"], torch.bfloat16, "cuda")
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)
