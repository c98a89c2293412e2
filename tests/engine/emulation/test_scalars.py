"""Numbers beside 16-bit tensors, against the kernels that take them."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
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
    "remainder of a day": lambda t: t % 86_400,  # infinite in float16
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


CLAMPS = {
    "both": lambda t: t.clamp(-1e8, 1e8),
    "below": lambda t: t.clamp(min=-1e8),
    "above, in place": lambda t: t.clone().clamp_(max=100_000),
    "with slopes": lambda t: torch.autograd.grad(t.requires_grad_().clamp(-1e8, 1e8).sum(), t)[0],
}


@pytest.mark.parametrize("name", CLAMPS)
def test_cuda_bears_a_bound_beyond_the_range(name):
    with Emulation("cuda"):
        emulated = CLAMPS[name](X.half())

    assert torch.equal(emulated, CLAMPS[name](X).half())
    with Emulation("cpu"), pytest.raises(RuntimeError, match="cannot be converted"):
        CLAMPS[name](X.half())


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_evaluation_is_told_of_such_a_bound_where_it_is_refused(target):
    class Bound(nn.Module):
        def forward(self, x):
            return x.clamp(-1e8, 1e8)

    given = Evaluation(model=Bound(), data=[torch.randn(8, 3)], labelled=False)
    report = check(given, precision="16-true", target=target)
    assert (report.verdict == "equivalent") == (target == "cuda")
    assert (report.forecast.verdict == "equivalent") == (target == "cuda")


def test_cuda_rounds_exponents_and_no_addend():
    x = X.half()

    assert as_the_kernel_takes("pow", (x, 0.3337), "cuda")[1] == float(torch.tensor(0.3337).half())
    assert as_the_kernel_takes("add", (x, 3001), "cuda") == (x, 3001)
    assert as_the_kernel_takes("pow", (x.float(), 0.3337), "cuda")[1] == 0.3337
    assert as_the_kernel_takes("add", (x, 3001), "cpu")[1] == 3000


class Tempered(nn.Module):
    """Divides by a temperature that is a parameter, which autocast leaves in float32."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.temperature = nn.Linear(16, 10), nn.Parameter(torch.tensor(0.1374))

    def forward(self, x):
        return self.head(x) * self.temperature


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_a_tensor_without_dimensions_is_rounded_as_the_target_does(target):
    x, scale = torch.ones(3, dtype=torch.bfloat16), torch.tensor(0.1374)
    near = float(scale.bfloat16())
    with Emulation(target):
        assert (x * 7 * scale).tolist() == [
            float(torch.tensor(7 * (near if target == "cuda" else float(scale))).bfloat16())
        ] * 3
        assert (x.float() * scale).tolist() == [float(scale)] * 3
        assert (scale.bfloat16() * scale).dtype == torch.float32  # none has dimensions


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_and_so_it_is_predicted(target):
    x = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    subject = Evaluation(Tempered(), [x], labelled=False, task="regression")
    report = check(subject, precision="bf16-mixed", target=target, emulate="always")
    assert 0.8 < report.standardised.spread < 1.25


WHOLE = torch.arange(1021, 1027) * 3  # more digits than either format has
BESIDE = {
    "mul": lambda t: WHOLE * t,
    "mul in place": lambda t: t.clone().mul_(WHOLE),
    "add": lambda t: t + WHOLE,
    "sub": lambda t: t * 3000 - WHOLE,
    "div": lambda t: t / WHOLE,
    "atan2": lambda t: torch.atan2(WHOLE, t * 2999),
    "remainder": lambda t: torch.remainder(WHOLE, t * 37),
    "addcmul": lambda t: torch.addcmul(t, WHOLE, t),
    "one": lambda t: WHOLE[0] * t,
    "one behind": lambda t: t * WHOLE[0],
    "of one": lambda t: WHOLE * t[0],
    "maximum": lambda t: torch.maximum(WHOLE, t),
    "small": lambda t: (WHOLE // 100).to(torch.int8) * t,
    "mask": lambda t: t * (WHOLE > 3070),
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_whole_numbers_are_rounded_before_they_meet_16_bits(name, dtype):
    x = torch.linspace(0.9, 1.1, 6).to(dtype)

    with Emulation("cpu"):
        emulated = BESIDE[name](x)

    assert torch.equal(emulated, BESIDE[name](x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_and_so_they_are_traced(dtype):
    x = torch.linspace(0.9, 1.1, 6).to(dtype)
    recorder = Recorder(6, torch.device("cpu"), where=str, totals={})
    (shadow,) = wrap_inputs((x.float(),), dtype)

    with torch.no_grad(), Trace(recorder, "cuda", {}):
        traced = WHOLE * shadow
    with Emulation("cuda"):
        emulated = WHOLE * x

    assert torch.equal(traced.native(), emulated)


def test_a_cpu_takes_the_second_factor_in_full_and_rounds_the_first():
    x, scale = torch.linspace(0.9, 1.1, 64).bfloat16(), torch.tensor(0.1374)

    with Emulation("cpu"):
        emulated = [x * scale, scale * x, x / scale, scale / x]

    assert all(map(torch.equal, emulated, [x * scale, scale * x, x / scale, scale / x]))
