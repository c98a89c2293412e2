"""What a program meets on a target: assignments that it refuses, and errors with their text."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.emulation.interception import Interception
from pytest_fp16.engine.emulation.refusal import RefusedNumber
from pytest_fp16.engine.emulation.target_mode import assignments_as_on

HALF = torch.float16


def test_an_assignment_is_refused_as_on_cuda_and_everything_is_as_before_afterwards():
    x = torch.zeros(3, dtype=HALF)
    own = torch.Tensor.__setitem__
    with Emulation("cuda"), assignments_as_on("cuda"):
        x[0] = 2.0
        x[x > 1] = -torch.inf
        with pytest.raises(RefusedNumber):
            x[x < 1] = -1e9
        x.float()[0] = 1e9
    assert torch.Tensor.__setitem__ is own
    assert x.tolist() == [-torch.inf, 0, 0]


class Names(TorchFunctionMode):
    """Remembers what was called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("following", [Emulation, Interception])
def test_an_assignment_keeps_its_name(following):
    """A mode of torch functions would else take it for one that writes nothing."""
    with following("cuda"):
        assert torch.Tensor.__setitem__.__name__ == "__setitem__"
    with Emulation("cuda"), Names() as seen:
        torch.zeros(3)[0] = 2.0
    assert "__setitem__" in seen.names


def one_assigned():
    """What becomes of a number beyond the range: infinity, where torch 2.6 still refuses it."""
    x = torch.zeros(3, dtype=HALF)
    try:
        x[0] = 1e9
    except RuntimeError as error:
        return type(error)
    return x.tolist()


def test_for_a_cpu_an_assignment_is_what_it_is_on_a_cpu():
    with Emulation("cpu"):
        emulated = one_assigned()
    assert emulated == one_assigned()
    with Emulation("cuda"):
        assert one_assigned() is RefusedNumber


class Masked(nn.Module):
    """Attention whose later positions are masked by an assignment."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.enter, self.leave, self.number = nn.Linear(4, 12), nn.Linear(4, 3), number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.enter(x).chunk(3, -1)
        scores = q @ k.transpose(1, 2)
        scores[:, torch.ones(6, 6).triu(1).bool()] = self.number
        return self.leave(scores.softmax(-1) @ v).mean(1)


@pytest.mark.parametrize("precision", ["16-true", "16-mixed", "bf16-true"])
@pytest.mark.parametrize("number", [-1e9, -torch.inf])
def test_a_mask_that_is_assigned(number, precision):
    torch.manual_seed(0)
    subject = Evaluation(model=Masked(number).eval(), data=[torch.randn(60, 6, 4)], labelled=False)
    report = check(subject, precision=precision, budget=0.02)
    refused = number > -torch.inf and precision.startswith("16")
    expected = "not equivalent" if refused else "equivalent"
    assert report.verdict == report.forecast.verdict == expected, str(report)
    if refused:
        assert (report.culprit.operation, report.culprit.mechanism) == ("setitem", "mask-inf")
        assert "test_target_mode.py" in report.culprit.source
        assert report.cure.verified


class Filled(nn.Linear):
    def __init__(self, fill) -> None:
        super().__init__(4, 3)
        self.fill = fill

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.exp(-self.fill(x[:, :1]))


@pytest.mark.parametrize(
    "fill",
    [
        lambda x: torch.full_like(x, 1e10),
        lambda x: torch.full(x.shape, 1e10, dtype=x.dtype),
        lambda x: x.new_full(x.shape, 1e10),
        lambda x: x.index_fill(0, torch.tensor([0]), 1e10),
    ],
)
def test_a_number_that_fills_one_column_is_refused_in_the_forecast_too(fill):
    torch.manual_seed(0)
    subject = Evaluation(model=Filled(fill).eval(), data=[torch.randn(60, 4)], labelled=False)
    report = check(subject, precision="16-true")
    assert report.verdict == report.forecast.verdict == "not equivalent", str(report)
    assert report.culprit.mechanism == "mask-inf"


class Framed(nn.Module):
    """A script whose basis stays in float32, which no convolution takes beside 16 bits."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv1d(1, 4, 3, bias=False), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.cat([torch.zeros(x.size(0), 1), x.float()], 1).unsqueeze(1)
        return self.head(self.body(h).mean(-1))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_script_leaves_out_what_was_raised_and_it_is_told_all_the_same():
    torch.manual_seed(0)
    model, x = torch.jit.script(Framed().eval()), torch.randn(20, 9)
    report = check(Evaluation(model, [x]), precision="16-true")
    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert "convolution: the tensors must have the same dtype" in report.forecast.reason
    assert "should be the same" in report.checks[0].detail
    assert "TorchScript interpreter" not in report.checks[0].detail
    assert report.culprit.operation == "convolution"
