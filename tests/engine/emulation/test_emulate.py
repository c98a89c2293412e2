"""Emulation against float64 rounded once, and against native 16-bit kernels of the CPU."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_fp16.engine.emulation import composed
from pytest_fp16.engine.emulation.emulate import Emulation, widen
from pytest_fp16.engine.emulation.refusal import UnsupportedOperation
from pytest_fp16.engine.emulation.wording import is_missing_kernel

LOW = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])


def normal(*shape, dtype=torch.float16, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).add(shift).to(dtype)


def emulated(f, *args, target="cuda", **kwargs):
    with torch.no_grad(), Emulation(target):
        return f(*args, **kwargs)


def assert_rounded_once(actual, exact, dtype):
    """`actual` is `exact` (float64) rounded to nearest; float32 sums may move a tie or a neighbour.

    At least 99 % are exactly the rounded value, and none is further than one neighbour away.
    """
    assert actual.dtype == dtype
    expected = exact.to(torch.float32).to(dtype)
    wrong = actual != expected
    info = torch.finfo(dtype)
    ulp = exact.abs().clamp(min=info.tiny).log2().floor().exp2() * info.eps
    assert wrong.double().mean() <= 0.01
    assert ((actual.double() - exact).abs() <= 1.01 * ulp).all()


ELEMENTWISE = {
    "add": lambda x, y: x + y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "exp": lambda x, y: x.exp(),
    "log1p": lambda x, y: x.abs().log1p(),
    "sqrt": lambda x, y: x.abs().sqrt(),
    "tanh": lambda x, y: x.tanh(),
    "sigmoid": lambda x, y: x.sigmoid(),
    "gelu": lambda x, y: F.gelu(x),
    "silu": lambda x, y: F.silu(x),
    "softplus": lambda x, y: F.softplus(x),
    "pow": lambda x, y: x.pow(4),
    "erf": lambda x, y: x.erf(),
    "sin": lambda x, y: x.sin(),
    "atan2": lambda x, y: torch.atan2(x, y),
    "addcmul": lambda x, y: torch.addcmul(x, x, y, value=0.5),
    "lerp": lambda x, y: torch.lerp(x, y, 0.25),
}
SELECTING = {
    "relu": F.relu,
    "clamp": lambda x: x.clamp(-1, 1),
    "max": lambda x: x.max(-1).values,
    "sort": lambda x: x.sort(-1).values,
    "roll": lambda x: x.roll(3, 1),
    "cat": lambda x: torch.cat([x, x[:, :2]], 1),
    "flip": lambda x: x.flip(1),
    "pad": lambda x: F.pad(x, (1, 2), value=0.5),
    "where": lambda x: torch.where(x > 0, x, -x),
    "masked_fill": lambda x: x.masked_fill(x > 1, -7.0),
    "topk": lambda x: x.topk(3).values,
    "transpose": lambda x: x.t().contiguous(),
    "index": lambda x: x[[0, 2]],
    "tril": torch.tril,
    "neg_abs": lambda x: -x.abs(),
}


@LOW
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_results_are_rounded_once(name, dtype):
    x, y = normal(40, 50, dtype=dtype), normal(40, 50, dtype=dtype, seed=1)
    exact = ELEMENTWISE[name](x.double(), y.double())

    assert_rounded_once(emulated(ELEMENTWISE[name], x, y), exact, dtype)


@LOW
@pytest.mark.parametrize("name", SELECTING)
def test_operations_that_move_values_give_the_native_result_bit_for_bit(name, dtype):
    x = normal(9, 12, dtype=dtype)
    native, actual = SELECTING[name](x), emulated(SELECTING[name], x)

    assert actual.dtype == native.dtype
    assert torch.equal(actual, native)


@LOW
@pytest.mark.parametrize("name", ["sum", "mean", "amax", "norm", "logsumexp"])
def test_reductions_accumulate_in_float32(name, dtype):
    x = normal(300, 2000, dtype=dtype, shift=1.0)
    f = {
        "norm": lambda t: torch.linalg.vector_norm(t, dim=-1),
        "logsumexp": lambda t: t.logsumexp(-1),
    }
    reduce = f.get(name, lambda t: getattr(t, name)(-1))

    if name != "logsumexp":  # which is composed of operations that each round
        assert_rounded_once(emulated(reduce, x), reduce(x.double()), dtype)
    else:
        error = emulated(reduce, x).double() - reduce(x.double())
        assert error.abs().max() <= 16 * torch.finfo(dtype).eps


@LOW
@pytest.mark.parametrize(
    "build",
    [
        lambda: (lambda x, w: x @ w, (30, 64), (64, 20)),
        lambda: (lambda x, w: torch.bmm(x, w), (3, 10, 32), (3, 32, 8)),
        lambda: (lambda x, w: F.linear(x, w), (30, 64), (20, 64)),
        lambda: (lambda x, w: F.conv2d(x, w, padding=1), (2, 8, 9, 9), (6, 8, 3, 3)),
        lambda: (lambda x, w: F.conv1d(x, w, stride=2), (2, 8, 30), (6, 8, 3)),
        lambda: (lambda x, w: F.conv_transpose2d(x, w), (2, 8, 5, 5), (8, 6, 3, 3)),
        lambda: (lambda x, w: torch.einsum("bi,oi->bo", x, w), (30, 64), (20, 64)),
    ],
    ids=["mm", "bmm", "linear", "conv2d", "conv1d", "conv_transpose", "einsum"],
)
def test_products_accumulate_in_float32_and_round_once(build, dtype):
    f, a, b = build()
    x, w = normal(*a, dtype=dtype), normal(*b, dtype=dtype, seed=1)
    actual, exact = emulated(f, x, w), f(x.double(), w.double())
    info = torch.finfo(dtype)

    assert actual.dtype == dtype
    error = (actual.double() - exact).abs()
    # Half an ulp, and what a float32 sum of this length may lose beside it.
    limit = exact.abs() * info.eps / 2 * 1.001 + 1e-4 * exact.abs().amax() * 0.01
    assert (error <= limit).all()
    assert error.max() > 0


@LOW
@pytest.mark.parametrize(
    "f",
    [
        lambda x: F.softmax(x, -1),
        lambda x: F.log_softmax(x, -1),
        lambda x: F.layer_norm(x, x.shape[-1:]),
        lambda x: F.group_norm(x, 2),
        lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-5),  # the default is the dtype's on old torch
        lambda x: F.avg_pool1d(x, 3),
    ],
    ids=["softmax", "log_softmax", "layer_norm", "group_norm", "rms_norm", "avg_pool"],
)
def test_norms_and_softmax_round_at_their_output(f, dtype, monkeypatch):
    monkeypatch.setattr(composed, "moments_are_rounded", lambda: False)  # as from torch 2.13 on
    x = normal(4, 6, 30, dtype=dtype)
    actual, exact = emulated(f, x), f(x.double())
    info = torch.finfo(dtype)

    # rms_norm is composed of several operations on some versions, each of which rounds.
    assert actual.dtype == dtype
    error = (actual.double() - exact).abs() / exact.abs().clamp(min=1e-2)
    assert error.max() <= info.eps * 2
    assert error.mean() <= info.eps / 2


def test_the_same_program_gives_the_same_dtypes_as_native():
    x = normal(4, 6)
    programs = {
        "promotes with float32": lambda t: t + torch.ones(6),
        "scalar tensor does not promote": lambda t: t + torch.tensor(2.0),
        "dtype argument": lambda t: t.sum(-1, dtype=torch.float32),
        "softmax to float32": lambda t: F.softmax(t, -1, dtype=torch.float32),
        "float": lambda t: t.float().exp(),
        "double": lambda t: t.double() * t,
        "comparison": lambda t: t > 0,
        "integer": lambda t: (t * 3).long(),
        "argmax": lambda t: t.argmax(-1),
        "complex": lambda t: torch.view_as_complex(t.float().view(4, 3, 2)),
        "zeros": lambda t: torch.zeros_like(t) + 1,
        "new": lambda t: t.new_tensor([1.0]),
        "finfo": lambda t: torch.full((2,), torch.finfo(t.dtype).max, dtype=t.dtype),
    }
    for name, program in programs.items():
        native, actual = program(x), emulated(program, x)
        assert actual.dtype == native.dtype, name
        assert actual.shape == native.shape, name


@LOW
def test_in_place_out_and_foreach_write_rounded_values(dtype):
    x, y = normal(5, 7, dtype=dtype), normal(5, 7, dtype=dtype, seed=1)

    def program(x, y):
        a = x.clone()
        a.mul_(y).add_(0.1)
        a[:, 2:4] *= 3
        out = torch.empty_like(a)
        torch.exp(a, out=out)
        many = [a.clone(), out.clone()]
        torch._foreach_mul_(many, 0.3)
        more = torch._foreach_add(many, 1.0)
        return [a, out, *many, *more]

    for actual, native in zip(emulated(program, x, y), program(x, y), strict=True):
        assert actual.dtype == native.dtype == dtype
        torch.testing.assert_close(actual, native, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


@LOW
def test_writes_through_views_reach_the_whole_tensor(dtype):
    x = normal(4, 6, dtype=dtype)

    def program(x):
        a = x.clone()
        a.view(2, 12)[0] = 1.0
        a[:, 0].add_(0.5)
        a.t()[1].zero_()
        return a

    assert torch.equal(emulated(program, x), program(x))


@LOW
def test_index_put_and_scatter_accumulate_as_the_kernel_does(dtype):
    index = torch.tensor([0, 0, 0, 1] * 50)
    source = normal(200, 3, dtype=dtype)

    def program(source):
        a = torch.zeros(2, 3, dtype=dtype).index_add_(0, index, source)
        b = torch.zeros(2, 3, dtype=dtype).scatter_add_(0, index[:, None].expand(-1, 3), source)
        c = torch.zeros(2, 3, dtype=dtype)
        c[torch.tensor([1])] = 0.1
        return a, b, c

    with Emulation("cpu"):
        found = program(source)
    for actual, native in zip(found, program(source), strict=True):
        assert torch.equal(actual, native)


@LOW
def test_batch_norm_in_training_keeps_its_statistics(dtype):
    torch.manual_seed(0)
    layer, twin = nn.BatchNorm2d(4).to(dtype), nn.BatchNorm2d(4)
    x = normal(8, 4, 5, 5, dtype=dtype, shift=0.5)
    with Emulation():
        out = layer(x)
    expected = twin(x.float())

    assert out.dtype == dtype
    assert int(layer.num_batches_tracked) == 1
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=4 * torch.finfo(dtype).eps)
    for name in ("running_mean", "running_var"):
        value = getattr(layer, name)
        assert value.dtype == dtype
        torch.testing.assert_close(
            value.float(), getattr(twin, name), rtol=torch.finfo(dtype).eps, atol=1e-3
        )


def test_a_scalar_that_does_not_fit_raises_as_the_native_kernel_does():
    x = normal(3, 4)
    with pytest.raises(RuntimeError) as native:
        x.masked_fill(x > 0, -1e9)
    with pytest.raises(RuntimeError) as emulation:
        emulated(lambda t: t.masked_fill(t > 0, -1e9), x)

    assert str(emulation.value) == str(native.value)
    assert emulated(lambda t: t.masked_fill(t > 0, -1e4), x).dtype == torch.float16
    wide = emulated(lambda t: t.masked_fill(t > 0, -1e9), x.bfloat16())
    assert wide.min() < -9e8


def test_mixed_dtypes_are_refused_where_native_refuses_them():
    x, w = normal(3, 4), torch.randn(4, 5)
    for f in (
        lambda: x @ w,
        lambda: F.linear(x, w.t()),
        lambda: x.index_add(0, torch.tensor([0]), w[:1, :4]),
    ):
        with pytest.raises(RuntimeError):
            f()
        with pytest.raises(RuntimeError):
            emulated(f)


def test_overflow_becomes_infinite_as_in_the_format():
    x = torch.tensor([300.0, -300.0, 200.0], dtype=torch.float16)

    assert emulated(lambda t: t * t.abs() / 300, x)[:2].isinf().all()
    assert emulated(lambda t: t * 200, x).tolist() == [60000.0, -60000.0, 40000.0]
    assert emulated(lambda t: t.square().sum(), x).isinf()


@LOW
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_agree_with_native_kernels(kind, dtype):
    torch.manual_seed(0)
    layer = kind(6, 8, 2, batch_first=True).to(dtype)
    x = normal(5, 7, 6, dtype=dtype)
    actual = emulated(layer, x)[0]
    with torch.no_grad():
        reference = layer.float()(x.float())[0]

    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), reference, rtol=0, atol=8 * torch.finfo(dtype).eps)
    assert not torch.equal(actual.float(), reference)


@LOW
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "float", "gqa"])
def test_fused_attention_is_near_float64_and_masks_hold(mask, dtype):
    heads = 2 if mask == "gqa" else 4
    q, k, v = (normal(3, h, 9, 8, dtype=dtype, seed=s) for s, h in enumerate((4, heads, heads)))
    options = {}
    if mask == "causal":
        options["is_causal"] = True
    if mask == "gqa":
        options["enable_gqa"] = True
    if mask in ("bool", "float"):
        keep = torch.rand(9, 9, generator=torch.Generator().manual_seed(3)) > 0.3
        keep[:, 0] = True
        options["attn_mask"] = keep
    if mask == "float":
        options["attn_mask"] = torch.zeros(9, 9).masked_fill(~keep, -1e4).to(dtype)
    actual = emulated(F.scaled_dot_product_attention, q, k, v, **options)
    if mask == "float":
        options["attn_mask"] = options["attn_mask"].double()
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), **options)

    assert actual.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert (actual.double() - exact).abs().max() < 2 * eps * v.abs().max()


@LOW
def test_multihead_attention_agrees_with_native(dtype):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 4, batch_first=True).to(dtype)
    x = normal(3, 6, 16, dtype=dtype)
    for need in (True, False):
        actual = emulated(lambda n=need: layer(x, x, x, need_weights=n)[0])
        with torch.no_grad():
            native = layer(x, x, x, need_weights=need)[0]
        assert actual.dtype == dtype
        torch.testing.assert_close(actual, native, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_the_backward_pass_is_rounded_too():
    torch.manual_seed(0)
    layer = nn.Linear(20, 1).half()
    x = normal(64, 20)
    with Emulation():
        layer(x).square().mean().backward()
    twin = nn.Linear(20, 1)
    twin.load_state_dict({k: v.float() for k, v in layer.state_dict().items()})
    twin(x.float()).square().mean().backward()

    assert layer.weight.grad.dtype == torch.float16
    torch.testing.assert_close(layer.weight.grad.float(), twin.weight.grad, rtol=0.01, atol=1e-3)
    assert not torch.equal(layer.weight.grad.float(), twin.weight.grad)


def test_what_has_no_kernel_on_the_target_is_said():
    x = torch.eye(4, dtype=torch.float16)
    with pytest.raises(UnsupportedOperation, match="no float16 kernel on cuda") as found:
        emulated(torch.ops.aten.linalg_inv_ex.default, x)

    assert found.value.operation == "linalg_inv_ex"
    assert is_missing_kernel(NotImplementedError("\"cdist\" not implemented for 'Half'"))
    assert not is_missing_kernel(RuntimeError("size mismatch"))
    assert not is_missing_kernel(RuntimeError("reshape is not implemented for sparse tensors"))


def test_an_operation_without_a_cpu_kernel_is_emulated_for_cuda():
    x = normal(1, 2, 5, 5)

    def shrink(t):
        return F.interpolate(t, size=(3, 3), mode="bilinear", antialias=True)

    actual = emulated(shrink, x)
    assert actual.dtype == torch.float16
    torch.testing.assert_close(actual.float(), shrink(x.float()), rtol=1e-3, atol=1e-3)


@LOW
def test_a_meta_kernel_stricter_than_the_real_one_does_not_decide(dtype):
    name = "fp16test::strict"
    library = torch.library.Library("fp16test", "FRAGMENT")
    library.define("strict(Tensor x) -> Tensor")
    library.impl("strict", lambda x: x * 2, "CPU")

    def meta(x):
        raise RuntimeError(f"expected another dtype than {x.dtype}")

    library.impl("strict", meta, "Meta")
    x = normal(3, dtype=dtype)
    try:
        with torch.no_grad(), Emulation(opaque="rounded"):
            out = getattr(torch.ops.fp16test, name.split("::")[1])(x)
        assert torch.equal(out, x * 2)
    finally:
        library._destroy()


def test_a_kernel_from_outside_refuses_two_dtypes_itself():
    library = torch.library.Library("fp16test", "FRAGMENT")
    library.define("agree(Tensor x, Tensor y) -> Tensor")

    def agree(x, y):
        if x.dtype != y.dtype:
            raise RuntimeError("x and y should be alike")
        return x + y

    library.impl("agree", agree, "CPU")
    x, y = normal(3, dtype=torch.float16), torch.ones(3)
    try:
        for opaque in ("native", "rounded"):
            with torch.no_grad(), Emulation(opaque=opaque):
                assert torch.ops.fp16test.agree(x, x).dtype == torch.float16
                with pytest.raises(RuntimeError, match="agree refuses tensors of different dtypes"):
                    torch.ops.fp16test.agree(x, y)
        with torch.no_grad(), Emulation(opaque="rounded", mixed=True):
            assert torch.ops.fp16test.agree(x, y).isfinite().all()  # autocast may cast before it
    finally:
        library._destroy()


def test_float32_programs_pass_untouched():
    x = torch.randn(5, 6)

    assert torch.equal(
        emulated(lambda t: F.layer_norm(t @ t.t(), (5,)).exp(), x),
        F.layer_norm(x @ x.t(), (5,)).exp(),
    )


def test_widen_touches_16_bit_values_alone():
    x = torch.ones(2, dtype=torch.float16)
    tensors = widen([x, torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.long), 3])

    assert [getattr(t, "dtype", t) for t in tensors] == [
        torch.float32,
        torch.float64,
        torch.long,
        3,
    ]
    assert widen(torch.bfloat16) == torch.float32
    assert widen(torch.float64) == torch.float64
    assert math.isclose(widen(0.5), 0.5)


def test_jagged_tensors_are_emulated():
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)).half()
    offsets = torch.tensor([0, 2, 3, 7, 8, 12])

    def program():
        nested = torch.nested.nested_tensor_from_jagged(x, offsets)
        return (nested * 3).sin().to_padded_tensor(0.0)

    with torch.no_grad(), Emulation("cuda"):
        emulated = program()

    assert emulated.dtype == torch.float16
    rounded = (x.float() * 3).half().float().sin().half()
    assert torch.equal(emulated[0, :2], rounded[:2])


def test_the_next_number_is_that_of_the_format():
    one, two = torch.ones(3, dtype=torch.bfloat16), torch.full((3,), 2.0, dtype=torch.bfloat16)
    with Emulation("cuda"):
        after = torch.nextafter(one, two)
    assert torch.equal(after, torch.nextafter(one, two))
    assert bool((after > one).all())
