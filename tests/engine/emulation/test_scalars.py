"""Numbers beside 16-bit tensors, against the kernels that take them."""

import pytest
import torch

from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.emulation.scalars import as_the_kernel_takes
from pytest_fp16.engine.tracing.recorder import Recorder
from pytest_fp16.engine.tracing.shadow import wrap_inputs
from pytest_fp16.engine.tracing.trace import Trace

X = torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0, 0.3])
PROGRAMS = {
    "add": lambda t: t + 3001.0,
    "add in place": lambda t: t.clone().add_(3001),
    "sub": lambda t: t - 3001,
    "rsub": lambda t: 3001.0 - t,
    "mul": lambda t: t * 0.1001,
    "div": lambda t: t / 0.3337,
    "rpow": lambda t: 1.3337**t,
    "fmod": lambda t: torch.fmod(t, 0.3337),
    "remainder": lambda t: t % 0.3337,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_as_the_cpu_takes_them(name):
    x = X.half()

    with Emulation("cpu"):
        emulated = PROGRAMS[name](x)

    assert torch.equal(emulated, PROGRAMS[name](x))


@pytest.mark.parametrize("name", ["add", "rsub", "rpow"])
@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_trace_takes_them_as_the_emulation_does(name, target):
    recorder = Recorder(len(X), torch.device("cpu"), where=str, totals={})
    (shadow,) = wrap_inputs((X,), torch.float16)

    with torch.no_grad(), Trace(recorder, target, {}):
        traced = PROGRAMS[name](shadow)
    with Emulation(target):
        emulated = PROGRAMS[name](X.half())

    assert torch.equal(traced.native(), emulated)


def test_cuda_rounds_exponents_and_no_addend():
    x = X.half()

    assert as_the_kernel_takes("pow", (x, 0.3337), "cuda")[1] == float(torch.tensor(0.3337).half())
    assert as_the_kernel_takes("add", (x, 3001), "cuda") == (x, 3001)
    assert as_the_kernel_takes("pow", (x.float(), 0.3337), "cuda")[1] == 0.3337
    assert as_the_kernel_takes("add", (x, 3001), "cpu")[1] == 3000
