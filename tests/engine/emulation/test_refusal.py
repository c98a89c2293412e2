"""Numbers and operations that a target refuses, told on a machine without it."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.emulation.refusal import RefusedNumber, require_in_range

HALF, BRAIN = torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("number", "dtype"),
    [(65505.0, HALF), (-1e9, HALF), (2**30, HALF), (3.4e38, BRAIN), (-torch.inf, torch.int32)],
)
def test_a_finite_number_beyond_the_range_is_refused(number, dtype):
    if dtype is torch.int32:
        require_in_range(number, dtype, "fill")
        return
    with pytest.raises(RefusedNumber, match="cannot be converted"):
        require_in_range(number, dtype, "fill")


@pytest.mark.parametrize("number", [65504.0, -torch.inf, torch.nan, True, torch.tensor(1e9)])
def test_what_fits_or_is_infinite_already_is_not(number):
    require_in_range(number, HALF, "fill")


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_a_fourier_transform_without_a_kernel_is_named_itself(target):
    """``stft`` reaches the kernel where ``fft`` asks for the dtype: emulated, it went on wide."""

    class Spectrum(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("window", torch.hann_window(12))
            self.head = nn.Linear(7 * 10, 4)

        def forward(self, x):
            options = {"window": self.window, "return_complex": True, "center": False}
            return self.head(torch.stft(x, 12, 4, **options).abs().flatten(1))

    torch.manual_seed(0)
    made = Evaluation(model=Spectrum().eval(), data=[torch.randn(8, 48)], labelled=False)
    report = check(made, precision="16-true", target=target)
    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert report.culprit.operation == "_fft_r2c"
    assert report.culprit.mechanism == "unsupported-op"
    assert report.run.unsupported


FILLED = {
    "full": lambda x, n: torch.full((), n, dtype=x.dtype),
    "full_like": lambda x, n: torch.full_like(x[0], n),
    "new_full": lambda x, n: x.new_full((1,), n),
    "fill": lambda x, n: x[:1].clone().fill_(n),
    "scalar_tensor": lambda x, n: torch.scalar_tensor(n, dtype=x.dtype),
    "where, first": lambda x, n: torch.where(x > 0, n, x),
    "where, last": lambda x, n: torch.where(x > 0, x, n),
}


@pytest.mark.parametrize("fill", FILLED.values(), ids=FILLED)
def test_cuda_fills_a_single_element_with_no_number_beyond_the_range(fill):
    x = torch.ones(3, dtype=HALF)
    with Emulation("cuda"):
        with pytest.raises(RefusedNumber, match=r"without overflow: -1e\+09"):
            fill(x, -1e9)
        assert float(fill(x, -torch.inf).flatten()[0]) in (-torch.inf, 1.0)
        assert float(fill(x.float(), -1e9).flatten()[0]) in (-1e9, 1.0)
        fill(x.bfloat16(), -1e9)
        with pytest.raises(RefusedNumber):
            fill(x.bfloat16(), torch.finfo(torch.float32).min)


class Chosen(nn.Module):
    """Scores of what is empty make way for a number of the program's."""

    def __init__(self):
        super().__init__()
        self.scores = nn.Linear(8, 8)

    def forward(self, x):
        return torch.where(x > 0, self.scores(x), -1e9).softmax(-1) @ x.mT


def refused_here():
    """Whether a CPU refuses it, too, as torch 2.6 does."""
    try:
        torch.where(torch.ones(2).bool(), -1e9, torch.ones(2, dtype=HALF))
    except RuntimeError:
        return True
    return False


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_what_cuda_refuses_to_choose_is_foreseen_and_cured(target):
    refuses = target == "cuda" or refused_here()
    verdict = "not equivalent" if refuses else "equivalent"
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    subject = Evaluation(model=Chosen(), data=[x], labelled=False)
    report = check(subject, precision="16-true", target=target)
    assert report.verdict == verdict
    assert report.forecast.verdict == verdict
    if target == "cuda":
        assert (report.culprit.mechanism, report.cure.kind) == ("mask-inf", "mask constant")
        assert report.cure.verified
