"""Layers that round where the native kernel's parts do."""

import pytest
import torch
from torch import nn

from pytest_fp16.engine.emulation import composed
from pytest_fp16.engine.emulation.emulate import Emulation


@pytest.mark.parametrize("target", ["cuda", "cpu"])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 9e3), (torch.bfloat16, 1.0)])
def test_a_bilinear_layer_rounds_its_first_product(dtype, size, target):
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(40, 24, generator=random) for _ in range(2))
    x, y = (x * size).to(dtype), (y / size).to(dtype)
    weight = torch.randn(5, 24, 24, generator=random).to(dtype)
    bias = torch.randn(5, generator=random).to(dtype)
    native = nn.functional.bilinear(x, y, weight, bias)
    with Emulation(target):
        emulated = nn.functional.bilinear(x, y, weight, bias)
    exact = nn.functional.bilinear(x.double(), y.double(), weight.double(), bias.double())
    errors = [(out.double() - exact).abs() for out in (native, emulated)]
    lost = [~e.isfinite() for e in errors]
    assert torch.equal(*lost)  # products that leave the range before the other input comes in
    assert bool(lost[0].any()) == (dtype == torch.float16)
    own, found = (float(e[~lost[0]].square().mean().sqrt()) for e in errors)
    assert 0.7 * own < found < 1.4 * own
    assert found > 1.5 * float((exact.to(dtype).double() - exact)[~lost[0]].square().mean().sqrt())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("taps", "pad"), [(3, 1), (5, 0), (2, 2), (1, 0)])
def test_a_convolution_with_time_first_adds_tap_after_tap(dtype, taps, pad):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(9, 4, 6, generator=random).to(dtype)
    weight = torch.randn(taps, 6, 5, generator=random).to(dtype)
    bias = (1000 * torch.randn(5, generator=random)).to(dtype)
    with Emulation("cuda"):
        found = torch.conv_tbc(x, weight, bias, pad)
    native = torch.conv_tbc(x, weight, bias, pad)
    exact = torch.conv_tbc(x.float(), weight.float(), bias.float(), pad)
    own, other = ((out.float() - exact).abs() for out in (native, found))
    assert float(other.max()) <= 1.5 * float(own.max()) + 1e-6
    assert float(other.mean()) == pytest.approx(float(own.mean()), rel=0.25)
    once = (exact.to(dtype).float() - exact).abs().mean()
    assert taps == 1 or float(other.mean()) > 1.1 * float(once)


def test_what_leaves_the_range_between_taps_is_lost():
    x = torch.full((6, 1, 1), 300.0, dtype=torch.float16)
    weight = torch.tensor([240.0, -240.0], dtype=torch.float16).view(2, 1, 1)
    bias = torch.zeros(1, dtype=torch.float16)
    with Emulation("cuda"):
        found = torch.conv_tbc(x, weight, bias, 0)
    assert not bool(found.isfinite().any())
    assert not bool(torch.conv_tbc(x, weight, bias, 0).isfinite().any())


@pytest.mark.parametrize("version", ["2.12.1+cu130", "2.13.0"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_group_norm_of_cuda_rounds_its_moments_before_torch_2_13(
    monkeypatch, dtype, affine, version
):
    asked = composed.moments_are_rounded
    monkeypatch.setattr(composed, "moments_are_rounded", lambda: asked(version))
    torch.manual_seed(0)
    norm = nn.GroupNorm(3, 6, affine=affine).to(dtype)
    if affine:
        nn.init.normal_(norm.weight)
    x = (100 + torch.randn(4, 6, 5, 7)).to(dtype)
    with torch.no_grad(), Emulation("cuda"):
        found = norm(x).float()
    groups = x.double().view(4, 3, -1)
    mean, inverse = groups.mean(-1), (groups.var(-1, correction=0) + norm.eps).rsqrt()
    if asked(version):
        mean, inverse = (value.to(dtype).double() for value in (mean, inverse))
    wanted = ((groups - mean.unsqueeze(-1)) * inverse.unsqueeze(-1)).view(x.shape)
    if affine:
        by_channel = [p.detach().double().view(1, 6, 1, 1) for p in (norm.weight, norm.bias)]
        wanted = wanted * by_channel[0] + by_channel[1]
    steps = {"rtol": torch.finfo(dtype).eps, "atol": 1e-3}
    torch.testing.assert_close(found.double(), wanted, **steps)
    with Emulation("cpu"), torch.no_grad():
        on_cpu = norm(x).float()
    assert (torch.equal(found, on_cpu)) != asked(version)
