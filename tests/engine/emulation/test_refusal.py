"""Numbers and operations that a target refuses, told on a machine without it."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.emulation.refusal import RefusedNumber, require_in_range

HALF, BRAIN = torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("number", "dtype"),
    [(65505.0, HALF), (-1e9, HALF), (2**30, HALF), (3.4e38, BRAIN), (-torch.inf, torch.int32)],
)
def test_a_finite_number_beyond_the_range_is_refused(number, dtype):
    if dtype is torch.int32:
        require_in_range(number, dtype)
        return
    with pytest.raises(RefusedNumber, match="cannot be converted"):
        require_in_range(number, dtype)


@pytest.mark.parametrize("number", [65504.0, -torch.inf, torch.nan, True, torch.tensor(1e9)])
def test_what_fits_or_is_infinite_already_is_not(number):
    require_in_range(number, HALF)


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
