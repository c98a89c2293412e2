"""One operation on float32 values: what it gives, what it writes, and that gradients pass."""

import pytest
import torch
import torch.nn.functional as F

from pytest_fp16.engine.emulation.operations import facts
from pytest_fp16.engine.tracing.compute import Call, compute
from pytest_fp16.engine.tracing.recorder import Recorder
from pytest_fp16.engine.tracing.shadow import Cell, Shadow

aten = torch.ops.aten
HALF, BRAIN, WIDE = torch.float16, torch.bfloat16, torch.float32


def recorder():
    return Recorder(2, torch.device("cpu"), where=lambda: "here", totals={}, adjoint=False)


def shadow(values, dtype=HALF, depends=True):
    return Shadow(torch.as_tensor(values), dtype, Cell(depends, False))


def run(func, *args, depends=True, told=None, **kwargs):
    told = told or recorder()
    with torch.enable_grad():
        return compute(Call(func, facts(func), args, kwargs, depends, True), told)


def test_values_are_not_rounded():
    x = torch.rand(2, 5)
    out, written = run(aten.exp.default, shadow(x))
    assert torch.equal(out, x.exp())
    assert not written


@pytest.mark.parametrize("dtype", [HALF, BRAIN, WIDE])
def test_a_cast_keeps_float32_values(dtype):
    x = torch.rand(2, 5)
    out, _ = run(aten._to_copy.default, shadow(x), dtype=dtype)
    assert out.dtype == WIDE
    assert torch.equal(out, x)
    assert out.data_ptr() != x.data_ptr()


def test_a_cast_to_another_kind_is_done():
    out, _ = run(aten._to_copy.default, shadow([1.9, -1.9]), dtype=torch.int64)
    assert out.tolist() == [1, -1]
    out, _ = run(aten._to_copy.default, shadow([1.5, 2.5]), dtype=torch.float64)
    assert out.dtype == torch.float64


def test_16_bit_keywords_become_float32():
    out, _ = run(aten.sum.default, shadow(torch.full((3,), 1 / 3)), dtype=HALF)
    assert out.dtype == WIDE


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.add_.Tensor, (torch.full((2,), 0.25),)),
        (aten.mul_.Tensor, (torch.full((2,), 0.25),)),
        (aten.relu_.default, ()),
    ],
)
def test_a_write_in_place_goes_to_a_fresh_copy_with_its_gradient(func, args):
    leaf = torch.tensor([1.5, 2.5], requires_grad=True)
    x = shadow(leaf * 1.0)
    before = x.inner
    out, ((target, values),) = run(func, x, *map(shadow, args))
    assert target is x
    assert values is out
    assert torch.equal(before, torch.tensor([1.5, 2.5]))  # what autograd saved is as it was
    out.sum().backward()
    assert leaf.grad.abs().sum() > 0


def test_a_write_that_views_look_on_reaches_the_memory():
    x = shadow(torch.ones(2))
    x.cell.aliases = 2
    memory = x.inner
    _, ((_, values),) = run(aten.add_.Tensor, x, shadow(torch.ones(2)))
    assert values.data_ptr() == memory.data_ptr()
    assert memory.tolist() == [2.0, 2.0]


def test_a_list_of_targets_is_written_one_by_one():
    x, y = shadow(torch.ones(2)), shadow(torch.ones(3))
    _, written = run(aten._foreach_add_.Scalar, [x, y], 1.0)
    assert [(id(s), v.tolist()) for s, v in written] == [(id(x), [2, 2]), (id(y), [2, 2, 2])]
    assert x.inner.tolist() == [1, 1]


def test_an_out_argument_is_written_with_its_gradient():
    leaf = torch.tensor([0.5, 1.0], requires_grad=True)
    out = shadow(torch.zeros(2))
    result, ((owner, values),) = run(aten.exp.out, shadow(leaf * 1.0), out=out)
    assert owner is out
    assert torch.equal(values.detach(), leaf.detach().exp())
    result.sum().backward()
    assert torch.equal(leaf.grad, leaf.detach().exp())


def test_several_out_arguments():
    values, indices = shadow(torch.zeros(2)), shadow(torch.zeros(2).long(), torch.int64)
    x = shadow([[1.0, 3.0], [5.0, 2.0]])
    _, written = run(aten.max.dim_max, x, 1, max=values, max_values=indices)
    assert [(id(s), v.tolist()) for s, v in written] == [
        (id(values), [3, 5]),
        (id(indices), [1, 0]),
    ]


def test_running_statistics_of_the_model_are_not_written():
    mean, var = torch.zeros(3), torch.ones(3)
    args = (torch.ones(3), torch.zeros(3), mean, var, True, 0.1, 1e-5)
    x = torch.randn(8, 3)
    wrapped = [shadow(a, WIDE, False) if isinstance(a, torch.Tensor) else a for a in args]
    out, _ = run(aten.native_batch_norm.default, shadow(x), *wrapped)
    torch.testing.assert_close(out[0], F.batch_norm(x, None, None, training=True))
    assert torch.equal(mean, torch.zeros(3))
    assert torch.equal(var, torch.ones(3))


@pytest.mark.parametrize(("dtype", "divisor"), [(HALF, 0.0), (BRAIN, 1e-9)])
def test_what_underflows_meets_a_quotient_on_the_formats_grid(dtype, divisor):
    told = recorder()
    out, _ = run(aten.reciprocal.default, shadow([1.0, 1e-9], dtype), told=told)
    assert float(out[1]) == pytest.approx(1 / divisor if divisor else float("inf"), rel=1e-6)
    assert told.bent == (dtype == HALF)
    constant, _ = run(aten.reciprocal.default, shadow([1.0, 1e-9], dtype, False), depends=False)
    assert float(constant[1]) == pytest.approx(1e9, rel=1e-6)
    plain, _ = run(aten.mul.Tensor, shadow([1e-9], dtype), 2.0)
    assert float(plain) == pytest.approx(2e-9, rel=1e-6)  # nothing singular


@pytest.mark.parametrize(
    ("func", "sign"), [(aten.rsub.Scalar, 1.0), (aten.sub.Tensor, 1.0), (aten.add.Tensor, -1.0)]
)
def test_what_rounds_to_one_leaves_nothing_of_it(func, sign):
    """So a logarithm behind it is infinite; its gradient passes all the same."""
    x = (sign * torch.tensor([1 - 2**-13, 1 - 2**-9, 0.5])).requires_grad_()
    told = recorder()
    out, _ = run(func, shadow(x), 1, told=told)
    assert out.detach().abs().tolist() == [0.0, 2**-9, 0.5]
    assert told.bent
    out.sum().backward()
    assert x.grad.abs().tolist() == [1.0, 1.0, 1.0]
    told = recorder()
    for other, number in ((x, 2), (-x, 1), (x * 2, 1)):  # another number, end, or none
        beside, _ = run(func, shadow(other.detach()), number, told=told)
        assert torch.equal(beside, func(other.detach(), number))
    assert not told.bent


@pytest.mark.parametrize("sign", [1, -1])
def test_what_rounds_to_one_is_at_the_end_of_its_angles(sign):
    """So the sine that a quotient behind it divides by is zero."""
    told = recorder()
    x = sign * torch.tensor([1 - 2**-13, 1 - 2**-9, 0.5])
    out, _ = run(aten.acos.default, shadow(x), told=told)
    assert torch.equal(out, torch.acos(torch.tensor([float(sign), *x[1:]])))
    assert told.bent


def test_fused_attention_rounds_its_probabilities():
    q = torch.randn(2, 1, 4, 8)
    told = recorder()
    func = aten._scaled_dot_product_flash_attention_for_cpu.default
    out, _ = run(func, shadow(q), shadow(q), shadow(q), told=told)
    torch.testing.assert_close(out[0], F.scaled_dot_product_attention(q, q, q))
    assert list(told.totals) == [("here", "attention probabilities")]


def test_a_kernel_without_a_gradient_runs_without_one():
    library = torch.library.Library("fp16trace", "FRAGMENT")
    library.define("plain(Tensor x) -> Tensor")
    library.impl("plain", lambda x: x + 1, "CPU")
    try:
        x = shadow(torch.ones(2, requires_grad=True) * 1.0)
        out, _ = run(torch.ops.fp16trace.plain.default, x)
        assert out.tolist() == [2.0, 2.0]
        assert not out.requires_grad
    finally:
        library._destroy()
