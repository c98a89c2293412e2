"""A few inputs in the device's own kernels: what they refuse, and how far emulation is off."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.canary import INPUTS, LARGE_DIFFERENCE, refused, run_canary
from pytest_fp16.engine.candidate import Candidate, DtypeObserver, fresh_model
from pytest_fp16.engine.emulation.refusal import UnsupportedOperation
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.precision import precision

CPU = torch.device("cpu")
SPOKEN = "; the other outputs are those of cpu's own kernels, the verdict speaks for cuda"


def sung(model, x, name="16-true", target="cpu", n=None):
    model = model.eval()
    ours = Candidate(
        fresh_model(model), precision(name), Evaluation(model=model, data=[]), CPU, target
    )
    observer = DtypeObserver(ours.where)
    with preserved_state():
        return run_canary(ours, x, n or len(x), 0, observer, count=INPUTS), observer


@pytest.fixture
def x():
    return torch.randn(9, 6, generator=torch.Generator().manual_seed(0))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.sizes = nn.Linear(6, 3), []

    def forward(self, x):
        Counting.sizes.append(len(x))
        return self.net(x)


@pytest.mark.parametrize("name", ["16-true", "bf16-true", "16-mixed", "bf16-mixed"])
def test_sound_kernels_agree_with_emulation(x, name):
    found, observer = sung(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)), x, name)
    roundoff = 2.0**-11 if name.startswith("16") else 2.0**-8
    assert found.error is None
    assert found.difference <= 8 * roundoff
    assert "natively on cpu" in found.text
    assert f"{found.difference:.1e}" in found.text
    assert observer.dtypes  # of the emulated run


class Counted(nn.Module):
    """A count that CUDA's float16 cannot take beyond 2048, and a CPU's can."""

    def forward(self, x):
        return torch.ones_like(x[:1]).expand(3000, -1).cumsum(0)[-1] * x


def test_what_the_target_computes_otherwise_is_no_fault_of_emulation(x):
    found, _ = sung(Counted(), x, target="cuda")
    assert found.difference < LARGE_DIFFERENCE
    assert "emulation differs by 4.6e-01 of the largest output, of this device's" in found.text
    assert found.text.endswith(SPOKEN)
    found, _ = sung(Counted(), x, target="cpu")
    assert found.difference < LARGE_DIFFERENCE
    assert "of this device's" not in found.text
    assert SPOKEN not in found.text


class Looking(Counted):
    """What is left of that count, as an index of a small table."""

    def forward(self, x):
        left = 3000 - torch.ones_like(x[:, :1]).expand(-1, 3000).cumsum(1)[:, -1]
        return x * torch.tensor([1.0, 2.0], dtype=x.dtype)[left.long()].unsqueeze(1)


def test_what_the_targets_values_stop_is_no_fault_of_emulation(x):
    found, _ = sung(Looking(), x, target="cuda")
    assert found.on_target
    assert "out of bounds" in str(found.emulation_error)
    assert found.text == "the canary ran natively on cpu, whose kernels give other values"
    found, _ = sung(Looking(), x, target="cpu")
    assert not found.on_target
    assert found.emulation_error is None


def test_a_program_that_the_targets_values_stop_fails(x):
    subject = Evaluation(model=Looking().eval(), data=[(x, torch.zeros(9).long())])
    report = check(subject, precision="16-true")

    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert "out of bounds" in report.error
    assert (report.culprit.operation, report.culprit.mechanism) == ("cumsum", "absorption")


def test_a_few_inputs_are_enough_and_a_small_batch_is_taken_whole(x):
    for n, size in ((9, INPUTS), (3, 3)):
        Counting.sizes = []
        sung(Counting(), x[:n])
        assert Counting.sizes == [size, size]


class Refused(nn.Module):
    """linalg has no 16-bit kernels on a CPU."""

    def forward(self, x):
        return torch.linalg.qr(x.reshape(-1, 2, 3)).R.flatten(1)


def test_a_missing_kernel_is_told_as_such(x):
    found, _ = sung(Refused(), x, target="cpu")
    assert found.unsupported
    assert not found.mixed_dtypes
    assert "no 16-bit kernel" in found.text
    assert found.difference is None


def test_dtypes_that_no_device_promotes(x):
    class Mixed(nn.Module):
        def forward(self, x):
            return x @ torch.ones(6, 3)

    found, _ = sung(Mixed(), x)
    assert found.mixed_dtypes
    assert not found.unsupported
    assert found.emulation_error is None or "dtype" in str(found.emulation_error)


def test_any_other_error_is_told_by_its_first_line():
    found = refused(ValueError("a long\nstory"), None, "cpu")
    assert found.text == "the canary on cpu raised: a long"
    assert not found.unsupported
    assert not found.mixed_dtypes
    assert refused(UnsupportedOperation("qr", "float16", "cuda"), None, "cpu").unsupported


def test_emulation_that_alone_fails_is_no_kernels_fault(x):
    class Picky(nn.Module):
        calls = 0

        def forward(self, x):
            Picky.calls += 1
            if Picky.calls == 1:
                raise ZeroDivisionError
            return x

    found, _ = sung(Picky(), x)
    assert found.error is None
    assert isinstance(found.emulation_error, ZeroDivisionError)
    assert "emulation did not" in found.text


@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [
        ((1.0, 2.0), (1.0, 2.5), 0.2),
        ((torch.inf, 2.0), (torch.inf, 2.0), 0.0),
        ((torch.inf, torch.nan), (torch.nan, torch.inf), 0.0),  # nothing finite in either
        ((torch.nan, torch.nan), (1.0, 2.0), torch.inf),
        ((0.0, 0.0), (0.0, 0.0), 0.0),
    ],
)
def test_the_difference_is_relative_to_the_largest_output(first, second, difference):
    """The model gives one answer natively and another in emulation, which runs first."""

    class Two(nn.Module):
        calls = 0

        def forward(self, x):
            Two.calls += 1
            return torch.tensor([second if Two.calls == 1 else first]).expand(len(x), 2)

    found, _ = sung(Two(), torch.ones(4, 2))
    assert found.difference == pytest.approx(difference)


class Distances(nn.Module):
    """cdist has a kernel of 16 bits for more than 25 rows."""

    def forward(self, x):
        return torch.cdist(x, torch.eye(6, dtype=x.dtype))


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("n", [30, 20])
def test_what_a_few_inputs_alone_are_refused_is_tried_with_all_of_them(n, target):
    found, _ = sung(Distances(), torch.randn(n, 6), target=target)
    assert (found.error is None) == (n == 30)
    if n == 30:
        assert found.text.startswith("the canary ran natively on cpu")
        assert "4 inputs alone raised: \"cdist\" not implemented for 'Half'" in found.text
    else:
        assert found.unsupported
