"""Sums into a tensor: rounded after every addition for CUDA, as the kernel has it for a CPU."""

import pytest
import torch
from torch.nn import functional as F

from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.tracing.recorder import Recorder
from pytest_fp16.engine.tracing.trace import Trace

LOW = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def by_hand(base, dim, index, source, alpha=1):
    """One addition after the other in the format, by the definition of the operation."""
    total = base.clone()
    for place in torch.cartesian_prod(*map(torch.arange, index.shape)).view(-1, index.dim()):
        at = list(place)
        at[dim] = index[tuple(place)]
        total[tuple(at)] = total[tuple(at)] + source[tuple(place)] * alpha
    return total


@LOW
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_scatter_add_rounds_after_every_addition(dtype, dim):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3, 4, generator=generator).to(dtype)
    source = torch.randn(40, 50, generator=generator).to(dtype)
    shape = (40, 4) if dim == 0 else (3, 50)
    index = torch.randint(0, base.shape[dim], shape, generator=generator)
    expected = by_hand(base, dim % 2, index, source)
    with Emulation("cuda"):
        actual = base.scatter_add(dim, index, source)
        in_place = base.clone().scatter_add_(dim, index, source)
    assert torch.equal(actual, expected)
    assert torch.equal(in_place, expected)
    assert not torch.equal(expected, base.float().scatter_add(dim, index, source.float()).to(dtype))


@LOW
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("alpha", [1, -0.3])
def test_index_add_rounds_after_every_addition(dtype, dim, alpha):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3, 4, generator=generator).to(dtype)
    source = torch.randn((60, 4) if dim == 0 else (3, 60), generator=generator).to(dtype)
    index = torch.randint(0, base.shape[dim], (60,), generator=generator)
    wide = index.view((-1, 1) if dim == 0 else (1, -1)).expand_as(source)
    with Emulation("cuda"):
        actual = base.index_add(dim, index, source, alpha=alpha)
    assert torch.equal(actual, by_hand(base, dim, wide, source, alpha))


@LOW
def test_a_count_stands_still_where_one_more_is_half_an_ulp(dtype):
    many = 6000
    index, ones = torch.zeros(1, many, dtype=torch.long), torch.ones(1, many, dtype=dtype)
    with Emulation("cuda"):
        count = torch.zeros(1, 2, dtype=dtype).scatter_add_(1, index, ones)
    assert count.tolist() == [[2048.0 if dtype == torch.float16 else 256.0, 0.0]]


@LOW
def test_a_cpu_target_has_the_kernel_of_the_cpu(dtype):
    index, ones = torch.zeros(500, 3, dtype=torch.long), torch.ones(500, 3, dtype=dtype)
    native = torch.zeros(2, 3, dtype=dtype).scatter_add_(0, index, ones)
    with Emulation("cpu"):
        assert torch.equal(torch.zeros(2, 3, dtype=dtype).scatter_add_(0, index, ones), native)


def test_gradients_pass_through():
    source = torch.ones(2, 3, dtype=torch.float16, requires_grad=True)
    with Emulation("cuda"):
        total = torch.zeros(2, 3, dtype=torch.float16).index_add(0, torch.tensor([1, 1]), source)
        (total * torch.tensor([[1.0], [5.0]], dtype=torch.float16)).sum().backward()
    assert source.grad.tolist() == [[5.0] * 3] * 2


def test_what_the_kernel_refuses_is_refused():
    with Emulation("cuda"), pytest.raises((RuntimeError, IndexError)):
        torch.zeros(2, 3, dtype=torch.float16).index_add(
            0, torch.tensor([7]), torch.ones(1, 3).half()
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "run",
    [
        lambda x: (1 + x / 100).prod(-1),
        lambda x: F.fold(F.unfold(x.view(5, 1, 6, 6), 3, padding=1), (6, 6), 3, padding=1),
        lambda x: torch.logit(torch.sigmoid(9 * x), eps=1e-5),
    ],
)
def test_a_cpus_own_accumulators_and_bounds_are_in_the_format(run, dtype):
    x = torch.randn(5, 36, generator=torch.Generator().manual_seed(0)).to(dtype)
    with Emulation("cpu"):
        emulated = run(x)
    with Emulation("cuda"):
        elsewhere = run(x)
    assert torch.equal(emulated, run(x))
    assert not torch.equal(elsewhere, emulated)


@LOW
@pytest.mark.parametrize("steps", [1, 7, 24, 300])
@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_linspace_goes_by_a_step_in_the_format(dtype, steps, target):
    start, end, place = torch.tensor(-1, dtype=dtype), torch.tensor(1, dtype=dtype), range(steps)
    step = (end - start) / torch.tensor(max(steps - 1, 1), dtype=dtype)
    up = [start + step * torch.tensor(i, dtype=dtype) for i in place]
    down = [end - step * torch.tensor(steps - 1 - i, dtype=dtype) for i in place]
    expected = torch.stack([*up[: max(steps // 2, 1)], *down[max(steps // 2, 1) :]])

    with Emulation(target):
        actual = torch.linspace(-1, 1, steps, dtype=dtype)
    with torch.no_grad(), Trace(Recorder(1, torch.device("cpu"), str, {}), target, {}):
        traced = torch.linspace(-1, 1, steps, dtype=dtype)

    assert torch.equal(actual, expected)
    assert torch.equal(traced.native(), expected)
    assert steps < 7 or not torch.equal(expected, torch.linspace(-1, 1, steps).to(dtype))
