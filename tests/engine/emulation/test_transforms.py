"""Fourier transforms of 16-bit tensors while CUDA is meant: values, sizes, diagnosis, clean-up."""

import contextlib

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.emulation import transforms
from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.emulation.refusal import RefusedSizes
from pytest_fp16.engine.emulation.transforms import transforms_as_on

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

HALF, COMPLEX = torch.float16, torch.complex32
#: By name: the shape of what is transformed, whether it is complex, and the arguments.
CALLS = {
    "fft": [((3, 8), False, {}), ((3, 8), True, {"n": 4}), ((8, 3), False, {"dim": 0})],
    "ifft": [((3, 8), True, {}), ((3, 5), True, {"n": 16})],
    "rfft": [((3, 8), False, {}), ((3, 5), False, {"n": 8})],
    "irfft": [((3, 5), True, {}), ((3, 9), True, {"n": 16})],
    "fft2": [((2, 8, 4), False, {}), ((2, 8, 4), True, {"s": (4, 4)})],
    "ifft2": [((2, 8, 4), True, {})],
    "rfft2": [((2, 8, 4), False, {}), ((8, 4, 3), False, {"dim": (0, 1)})],
    "irfft2": [((2, 8, 5), True, {})],
    "fftn": [((2, 8, 4), False, {}), ((3, 8, 4), True, {"s": (8, 4)})],
    "ifftn": [((2, 8, 4), True, {"dim": (0, 2)})],
    "rfftn": [((2, 8, 4), False, {}), ((3, 8, 4), False, {"dim": (-2, -1), "s": (8, -1)})],
    "irfftn": [((2, 8, 5), True, {}), ((2, 8, 3), True, {"s": (8, 4), "dim": (1, 2)})],
}
EVERY = [(name, *call) for name, calls in CALLS.items() for call in calls]


def given(shape, is_complex):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(*shape, dtype=torch.complex64 if is_complex else None, generator=generator)
    return values.to(COMPLEX if is_complex else HALF)


def wide(values):
    return values.to(torch.complex64 if values.is_complex() else torch.float32)


@pytest.mark.parametrize("norm", [None, "backward", "ortho", "forward"])
@pytest.mark.parametrize(("name", "shape", "is_complex", "named"), EVERY)
def test_a_sum_is_rounded_and_then_scaled(name, shape, is_complex, named, norm):
    values = given(shape, is_complex)
    exact = getattr(torch.fft, name)(wide(values), norm=norm, **named)
    with Emulation("cuda"):
        low = getattr(torch.fft, name)(values, norm=norm, **named)
    assert low.dtype == (COMPLEX if exact.is_complex() else HALF)
    assert not torch.equal(wide(low), exact)
    away = (wide(low) - exact).abs().max()
    assert float(away / exact.abs().max()) < 2**-9  # two roundings of two parts


REFUSED = [
    ("fft", (3, 6), {}, [6]),
    ("rfft", (3, 12), {}, [12]),
    ("rfft2", (2, 8, 8), {"s": (8, 10)}, [8, 10]),
    ("fftn", (3, 8), {}, [3, 8]),
]


@pytest.mark.parametrize(("name", "shape", "named", "sizes"), REFUSED)
def test_sizes_that_are_no_powers_of_two_are_refused_as_on_cuda(name, shape, named, sizes):
    with Emulation("cuda"), pytest.raises(RefusedSizes) as refused:
        getattr(torch.fft, name)(given(shape, False), **named)
    assert refused.value.operation == f"fft_{name}"
    assert str(refused.value).endswith(f"in half precision, but got a signal size of {sizes}")


def test_the_real_size_of_an_inverse_is_the_one_that_counts():
    with Emulation("cuda"), pytest.raises(RefusedSizes, match=r"\[10\]"):
        torch.fft.irfft(given((3, 6), True))


@pytest.mark.parametrize(
    ("target", "dtype"), [("cuda", torch.bfloat16), ("cpu", torch.bfloat16), ("cpu", HALF)]
)
def test_the_rest_is_refused_as_ever(target, dtype, monkeypatch):
    monkeypatch.setattr(transforms, "since", lambda *release: target == "cpu")
    with Emulation(target), pytest.raises(RuntimeError, match="Unsupported dtype"):
        torch.fft.fft(torch.ones(3, 8, dtype=dtype))


def test_what_is_wide_already_is_left_alone_and_so_is_torch_afterwards():
    own, values = dict(vars(torch.fft)), torch.randn(3, 7)
    one = lambda name: contextlib.nullcontext()  # noqa: E731
    with transforms_as_on("cuda", one), transforms_as_on("cuda", one):
        assert torch.fft.rfft is not own["rfft"]
        assert torch.equal(torch.fft.rfft(values), own["rfft"](values))
        assert torch.equal(torch.fft.fft(values, out=torch.empty(0, dtype=torch.complex64)),
                           own["fft"](values))  # fmt: skip
    assert vars(torch.fft) == own


def test_gradients_pass():
    values = given((3, 8), False).requires_grad_()
    with Emulation("cuda"):
        loss = torch.fft.irfft(torch.fft.rfft(values) * 2).float().square().sum()
        loss.backward()
    assert torch.allclose(values.grad.float(), 8 * values.detach().float(), rtol=0.01, atol=0.01)


class Mixer(nn.Module):
    """Mixes the features of each row by their spectrum."""

    def __init__(self, size, scale, mix):
        super().__init__()
        self.first, self.last = nn.Linear(16, size), nn.Linear(size // 2 + 1, 5)
        self.scale, self.mix = scale, mix

    def forward(self, x):
        h = self.first(x) * self.scale
        spectrum = torch.fft.rfft(h)
        return self.last(self.mix(spectrum) / self.scale)


def mixed(precision, size=32, scale=1.0, mix=torch.abs):
    torch.manual_seed(0)
    model = Mixer(size, scale, mix).eval()
    return check(
        Evaluation(model, [torch.randn(300, 16)], task="regression"),
        precision=precision,
        target="cuda",
    )


@pytest.mark.parametrize("precision", ["16-true", "16-mixed"])
@pytest.mark.parametrize(
    "mix",
    [torch.abs, lambda s: s.real, lambda s: (s * s.conj()).real, lambda s: (s * 0.5 + s).imag],
    ids=["abs", "real", "power", "scaled"],
)
def test_theory_follows_complex_numbers_of_16_bits(precision, mix):
    report = mixed(precision, mix=mix)
    assert report.verdict == report.forecast.verdict == "equivalent"
    assert report.forecast.method == "adjoint"
    predicted = next(c.detail for c in report.checks if c.name == "as predicted")
    assert float(predicted.split()[5]) == pytest.approx(1.0, abs=0.3), predicted


@pytest.mark.parametrize("precision", ["16-true", "16-mixed"])
def test_a_sum_that_overflows_is_the_culprit_and_its_line_is_cured(precision):
    report = mixed(precision, scale=2e4)
    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert (report.culprit.operation, report.culprit.mechanism) == ("fft_rfft", "overflow")
    assert report.culprit.source.split(":")[0].endswith("test_transforms.py")
    assert report.cure.verified


@pytest.mark.parametrize(
    ("precision", "size", "said"),
    [
        ("16-true", 24, "powers of two"),
        ("bf16-true", 32, "BFloat16"),
        ("bf16-mixed", 32, "BFloat16"),
    ],
)
def test_what_cuda_has_no_transform_for_is_no_matter_of_values(precision, size, said, monkeypatch):
    monkeypatch.setattr(transforms, "since", lambda *release: False)
    report = mixed(precision, size=size)
    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert (report.culprit.operation, report.culprit.mechanism) == ("fft_rfft", "unsupported-op")
    assert said in report.culprit.evidence
    assert report.cure.verified
    assert report.cure.kind == "upcast"


@pytest.mark.parametrize("norm", [None, "ortho"])
@pytest.mark.parametrize("name", ["fft", "rfft"])
def test_sums_of_bfloat16_are_handed_over_in_32_bits(name, norm, monkeypatch):
    """From torch 2.14 on."""
    monkeypatch.setattr(transforms, "since", lambda *release: release == (2, 14))
    values = given((3, 8), False).bfloat16()
    with Emulation("cuda"):
        low = getattr(torch.fft, name)(values, norm=norm)
        plain = torch.view_as_real(getattr(torch.fft, name)(values))
        back = torch.fft.irfft(torch.fft.rfft(values))
    exact = getattr(torch.fft, name)(values.float(), norm=norm)
    assert low.dtype == torch.complex64
    assert 2**-14 < float((low - exact).abs().max() / exact.abs().max()) < 2**-7
    assert torch.equal(plain, plain.bfloat16().float())
    assert back.dtype == torch.float32
    with Emulation("cuda"), pytest.raises(RefusedSizes):
        torch.fft.rfft(torch.ones(3, 6).bfloat16())


def test_theory_follows_transforms_of_bfloat16(monkeypatch):
    monkeypatch.setattr(transforms, "since", lambda *release: True)
    report = mixed("bf16-mixed")
    assert report.verdict == report.forecast.verdict == "equivalent"
    predicted = next(c.detail for c in report.checks if c.name == "as predicted")
    assert float(predicted.split()[5]) == pytest.approx(1.0, abs=0.3), predicted


class Weighed(nn.Module):
    """Weighs frequencies by a matrix, as a Fourier neural operator does."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 5)
        self.weight = nn.Parameter(torch.randn(9, 9, 2) / 3)

    def forward(self, x):
        weight = torch.view_as_complex(self.weight)
        spectrum = torch.fft.rfft(self.first(x)) @ weight
        return self.last(torch.fft.irfft(spectrum))


def test_a_product_of_matrices_has_no_kernel_for_complex_numbers_of_16_bits():
    torch.manual_seed(0)
    subject = Evaluation(Weighed().eval(), [torch.randn(64, 16)], task="regression")
    report = check(subject, precision="16-true", target="cuda")
    assert (report.culprit.operation, report.culprit.mechanism) == ("mm", "unsupported-op")
    assert "no complex32 kernel on cuda" in report.culprit.evidence
