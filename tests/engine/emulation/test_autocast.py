"""CUDA's autocast policy on a CPU, against the lists that PyTorch documents."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.emulation.autocast import (
    _COMPOSED,
    _CPU_ONLY,
    _TO_FLOAT32,
    _TO_LOW,
    held_policy,
    own_regions,
    target_autocast,
)
from pytest_fp16.engine.emulation.emulate import Emulation

X = torch.rand(3, 4) + 0.1
IMAGE = torch.rand(2, 3, 6, 6)
# https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-can-autocast-to-float16
LOW = {
    "matmul": lambda: X @ X.t(),
    "addmm": lambda: torch.addmm(torch.ones(3), X, X.t()),
    "addmv": lambda: torch.addmv(torch.ones(3), X, torch.ones(4)),
    "addr": lambda: torch.addr(torch.ones(3, 4), torch.ones(3), torch.ones(4)),
    "bmm": lambda: torch.bmm(X[None], X.t()[None]),
    "baddbmm": lambda: torch.baddbmm(torch.ones(1, 3, 3), X[None], X.t()[None]),
    "addbmm": lambda: torch.addbmm(torch.ones(3, 3), X[None], X.t()[None]),
    "chain_matmul": lambda: torch.linalg.multi_dot([X, X.t(), X]),
    "mv": lambda: torch.mv(X, torch.ones(4)),
    "linear": lambda: F.linear(X, X),
    "conv1d": lambda: F.conv1d(IMAGE[0], torch.ones(2, 6, 3)),
    "conv2d": lambda: F.conv2d(IMAGE, torch.ones(2, 3, 3, 3)),
    "conv_transpose2d": lambda: F.conv_transpose2d(IMAGE, torch.ones(3, 2, 3, 3)),
    "prelu": lambda: F.prelu(IMAGE - 0.5, torch.ones(1)),
    "einsum": lambda: torch.einsum("ij,kj->ik", X, X),
    "attention": lambda: F.scaled_dot_product_attention(
        X[None, None], X[None, None], X[None, None]
    ),
    "lstm": lambda: nn.LSTM(4, 5)(X[None])[0],
    "gru": lambda: nn.GRU(4, 5)(X[None])[0],
    "lstm_cell": lambda: nn.LSTMCell(4, 5)(X)[0],
}
# https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-can-autocast-to-float32
WIDE = {
    "pow": lambda h: h.pow(2),
    "rpow": lambda h: 2.0**h,
    "exp": lambda h: h.exp(),
    "expm1": lambda h: h.expm1(),
    "log": lambda h: h.log(),
    "log10": lambda h: h.log10(),
    "log1p": lambda h: h.log1p(),
    "log2": lambda h: h.log2(),
    "acos": lambda h: (h / 2).acos(),
    "asin": lambda h: (h / 2).asin(),
    "cosh": lambda h: h.cosh(),
    "sinh": lambda h: h.sinh(),
    "tan": lambda h: h.tan(),
    "erfinv": lambda h: (h / 2).erfinv(),
    "reciprocal": lambda h: h.reciprocal(),
    "rsqrt": lambda h: h.rsqrt(),
    "softmax": lambda h: h.softmax(-1),
    "log_softmax": lambda h: h.log_softmax(-1),
    "softplus": F.softplus,
    "layer_norm": lambda h: F.layer_norm(h, (4,)),
    "group_norm": lambda h: F.group_norm(h[None].transpose(1, 2), 2),
    "norm": lambda h: h.norm(),
    "norm_dim": lambda h: h.norm(dim=-1),
    "normalize": lambda h: F.normalize(h).norm(),
    "sum": lambda h: h.sum(),
    "sum_dim": lambda h: h.sum(-1),
    "prod": lambda h: h.prod(-1),
    "cumsum": lambda h: h.cumsum(-1),
    "cumprod": lambda h: h.cumprod(-1),
    "dist": lambda h: torch.dist(h, h + 1),
    "cdist": lambda h: torch.cdist(h, h),
    "pdist": lambda h: F.pdist(h),
    "renorm": lambda h: h.renorm(2, 0, 1.0),
    "logsumexp": lambda h: h.logsumexp(-1),
    "cosine_similarity": lambda h: F.cosine_similarity(h, h),
    "mse_loss": lambda h: F.mse_loss(h, h * 2),
    "l1_loss": lambda h: F.l1_loss(h, h * 2),
    "smooth_l1": lambda h: F.smooth_l1_loss(h, h * 2),
    "huber": lambda h: F.huber_loss(h, h * 2),
    "cross_entropy": lambda h: F.cross_entropy(h, torch.tensor([0, 1, 2])),
    "nll_loss": lambda h: F.nll_loss(h, torch.tensor([0, 1, 2])),
    "bce_logits": lambda h: F.binary_cross_entropy_with_logits(h, h),
    "kl_div": lambda h: F.kl_div(h, h, reduction="batchmean"),
    "interpolate": lambda h: F.interpolate(h[None, None], scale_factor=2, mode="bilinear"),
}
# Neither list: these run in the type of their inputs.
KEEPS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "mul": lambda h: h * h,
    "mean": lambda h: h.mean(-1),
    "var": lambda h: h.var(-1),
    "amax": lambda h: h.amax(-1),
    "sqrt": lambda h: h.sqrt(),
    "sin": lambda h: h.sin(),
    "avg_pool": lambda h: F.avg_pool1d(h, 2),
    "adaptive_avg_pool": lambda h: F.adaptive_avg_pool1d(h, 2),
    "batch_norm": lambda h: F.batch_norm(h, None, None, training=True),
    "dropout": lambda h: F.dropout(h, 0.5, training=True),
    "tril": torch.tril,
    "div": lambda h: h / h,
}
FORMATS = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])


def run(f, *args, dtype=torch.float16, target="cuda"):
    with torch.no_grad(), target_autocast("cpu", dtype, target), Emulation(target):
        return f(*args)


@FORMATS
@pytest.mark.parametrize("name", LOW)
def test_products_run_in_16_bits(name, dtype):
    assert run(LOW[name], dtype=dtype).dtype == dtype


@FORMATS
@pytest.mark.parametrize("name", WIDE)
def test_sensitive_operations_run_in_float32(name, dtype):
    assert run(WIDE[name], X.to(dtype), dtype=dtype).dtype == torch.float32


@FORMATS
@pytest.mark.parametrize("name", KEEPS)
def test_others_keep_the_type_of_their_inputs(name, dtype):
    assert run(KEEPS[name], X.to(dtype), dtype=dtype).dtype == dtype
    assert run(KEEPS[name], X, dtype=dtype).dtype == torch.float32


@pytest.mark.parametrize(
    "f",
    [
        lambda a, b: torch.addcmul(a, a, b),
        lambda a, b: torch.addcdiv(a, a, b),
        lambda a, b: torch.atan2(a, b),
        lambda a, b: torch.cross(a[:, :3], b[:, :3], dim=-1),
        lambda a, b: torch.dot(a[0], b[0]),
        lambda a, b: a.scatter_add(0, torch.zeros(1, 4, dtype=torch.long), b),
        lambda a, b: a.index_put((torch.tensor([0]),), b[:1]),
        lambda a, b: a + b,
        lambda a, b: torch.cat([a, b]),
        lambda a, b: torch.stack([a, b]),
    ],
)
def test_mixed_arguments_are_widened(f):
    assert run(f, X.half(), X).dtype == torch.float32
    assert run(f, X.half(), X.half()).dtype == torch.float16


def test_values_in_float32_are_not_rounded():
    h = X.half()

    assert torch.equal(run(lambda: h.exp()), h.float().exp())
    assert torch.equal(run(lambda: F.layer_norm(h, (4,))), F.layer_norm(h.float(), (4,)))


def test_the_cpu_target_keeps_its_own_policy():
    h = X.bfloat16()

    for f in (torch.exp, lambda t: t.sum(-1), lambda t: t.pow(2)):
        assert run(f, h, dtype=torch.bfloat16, target="cpu").dtype == torch.bfloat16
        assert run(f, h, dtype=torch.bfloat16, target="cuda").dtype == torch.float32
    assert run(lambda: X @ X.t(), target="cpu").dtype == torch.float16


def test_what_the_cpu_alone_casts_is_left_alone():
    """index_copy takes one dtype: the CPU's autocast promotes what it is given, CUDA's does not."""
    keys, new = torch.zeros(4, 3), torch.randn(2, 3).half()

    def written():
        return keys.index_copy(0, torch.arange(2), new)

    assert run(written, target="cpu").dtype == torch.float32
    with pytest.raises(RuntimeError, match="expected to have the same dtype"):
        run(written)


def test_nothing_that_the_cpu_alone_casts_is_forgotten():
    """By what torch registers; the composites are cast part by part, to the same effect."""
    apart = {"conv1d.padding", "conv2d.padding", "conv3d.padding", "cross_entropy_loss"}
    of_the_cpu = {"_addmm_activation", "_native_multi_head_attention", "mkldnn_rnn_layer"}

    def cast(key):
        names = torch._C._dispatch_get_all_op_names()
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        return {n[6:] for n in names if n.startswith("aten::") and has(n, key)}

    known = {n for names in (_CPU_ONLY, _COMPOSED, _TO_FLOAT32, _TO_LOW) for n in names.split()}
    assert cast("AutocastCPU") - cast("AutocastCUDA") - known <= apart | of_the_cpu


def test_an_island_without_autocast_is_respected():
    def island(device):
        with torch.autocast(device, enabled=False):
            return X @ X.t()

    assert run(island, "cuda").dtype == torch.float32
    assert run(island, "cpu").dtype == torch.float32


def test_binary_cross_entropy_is_refused_as_on_cuda():
    with pytest.raises(RuntimeError, match="unsafe to autocast"):
        run(lambda: F.binary_cross_entropy(X.half() / 2, X / 2))
    assert run(lambda: F.binary_cross_entropy(X / 2, X / 2), target="cpu").dtype == torch.float32


def test_model_code_sees_that_autocast_is_on():
    found = run(lambda: (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")))

    assert found == (True, torch.float16)


def test_everything_is_as_before_afterwards():
    before = (torch.is_autocast_enabled("cuda"), torch.is_autocast_enabled("cpu"))
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)

    assert (torch.is_autocast_enabled("cuda"), torch.is_autocast_enabled("cpu")) == before
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert X.bfloat16().exp().dtype == torch.bfloat16
        assert (X @ X.t()).dtype == torch.bfloat16


def test_gradients_flow_through_the_casts():
    layer = nn.Linear(4, 2)
    with target_autocast("cpu", torch.float16, "cuda"), Emulation():
        loss = layer(X).softmax(-1)[:, 0].sum()
    loss.backward()

    assert loss.dtype == torch.float32
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.abs().sum() > 0


def test_a_model_may_enter_cuda_autocast_itself_where_there_is_no_cuda():
    layer, seen = nn.Linear(4, 4), []
    with held_policy("cpu", "cuda"), target_autocast("cpu", torch.bfloat16, "cuda"):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            seen.append(layer(X).dtype)
        with torch.autocast(device_type="cuda", enabled=False):
            seen.append(layer(X).dtype)
            with torch.autocast("cuda"):
                seen.append(torch.is_autocast_enabled("cuda"))
        seen.append(layer(X).dtype)
    assert seen == [torch.bfloat16, torch.float32, True, torch.bfloat16]
    if not torch.cuda.is_available():
        with pytest.warns(UserWarning, match="CUDA is not available"):
            assert not torch.autocast("cuda")._enabled


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("island", [False, True])
def test_checkpointed_values_are_computed_again_under_the_same_policy(reentrant, island):
    layer, seen = nn.Linear(4, 4), []

    def block(x):
        with torch.autocast("cuda", enabled=not island):
            y = layer(x)
        seen.append(y.dtype)
        return y.relu()

    x = X.clone().requires_grad_()
    with held_policy("cpu", "cuda"):
        with target_autocast("cpu", torch.bfloat16, "cuda"):
            y = checkpoint(block, x, use_reentrant=reentrant).float().sum()
        y.backward()
    assert seen == [torch.float32 if island else torch.bfloat16] * 2


class _Again(torch.autograd.Function):
    """Computes again on the way back, under the autocast that it found on the way there."""

    @staticmethod
    def forward(ctx, x, layer):
        enabled = torch.is_autocast_enabled("cuda")
        dtype = torch.get_autocast_dtype("cuda")
        ctx.x, ctx.layer = x.detach(), layer
        ctx.region = torch.autocast("cuda", dtype=dtype, enabled=enabled)
        return layer(x)

    @staticmethod
    def backward(ctx, slope):
        x = ctx.x.requires_grad_()
        with torch.enable_grad(), ctx.region:
            y = ctx.layer(x)
        _Again.seen.append(y.dtype)
        y.backward(slope)
        return x.grad, None


@pytest.mark.parametrize("entered", [False, True])
def test_a_backward_pass_that_enters_its_autocast_again_finds_it(entered):
    layer, x, _Again.seen = nn.Linear(4, 4), X.clone().requires_grad_(), []
    with held_policy("cpu", "cuda"):
        if entered:
            with target_autocast("cpu", torch.bfloat16, "cuda"):
                y = _Again.apply(x, layer).float().sum()
        else:
            y = _Again.apply(x, layer).sum()
        y.backward()
        assert not torch.is_autocast_enabled("cpu")
    assert _Again.seen == [torch.bfloat16 if entered else torch.float32]


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_a_product_inside_a_kernel_is_cast_in_an_emulated_run_too(target):
    theta = torch.eye(2, 3).expand(2, 2, 3) / 3

    def grid():
        return F.affine_grid(theta, (2, 3, 6, 6), align_corners=False)

    with torch.autocast("cpu", dtype=torch.float16):
        native = grid()
    with target_autocast("cpu", torch.float16, target), Emulation(target):
        emulated = grid()
    assert native.dtype == emulated.dtype == torch.float16
    assert torch.allclose(native.float(), emulated.float(), rtol=2**-10, atol=0)
    assert grid().dtype == torch.float32


class _WideExp(torch.autograd.Function):
    """As custom operations are written: float32 inside, whatever autocast made of the input."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx, x):
        return torch.exp(x) / 10


@pytest.mark.parametrize("emulated", [False, True])
def test_a_custom_function_has_its_inputs_cast_as_on_cuda(emulated):
    own = torch.amp.autocast_mode._cast
    half = torch.full((2,), 12.0, dtype=torch.float16)  # e¹² = 162755, a tenth of it is in range
    emulation = Emulation("cuda") if emulated else nullcontext()
    with target_autocast("cpu", torch.float16, "cuda"), emulation:
        assert _WideExp.apply(half).dtype == torch.float32
        assert _WideExp.apply(half).isfinite().all()
        assert _WideExp.apply(half.double()).dtype == torch.float64
    assert torch.amp.autocast_mode._cast is own
    assert _WideExp.apply(half).dtype == torch.float16  # nothing is cast where autocast is off


class _OwnAutocast(nn.Module):
    """A norm that needs float32 inside, which CUDA's autocast gives it."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave, self.seen = nn.Linear(8, 8), nn.Linear(8, 3), []

    def forward(self, x):
        with torch.autocast("cuda", dtype=torch.float16):
            y = 400 * self.enter(x)
            square = y.pow(2).mean(-1, keepdim=True)
            self.seen.append((y.dtype, square.dtype))
            y = y * torch.rsqrt(square + 1e-6)
        return self.leave(y.to(self.leave.weight.dtype))


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA has regions of its own")
def test_a_cast_model_that_enters_cuda_autocast_itself_finds_it():
    enter, model = torch.autocast.__enter__, _OwnAutocast().half()
    x = torch.randn(4, 8).half()
    with own_regions("cpu", "cuda"), Emulation("cuda"):
        assert model(x).isfinite().all()
        assert not torch.is_autocast_enabled("cuda")
        assert (x.exp() @ x.t()).dtype == torch.float16
        with torch.autocast("cuda", dtype=torch.float16), torch.autocast("cuda", enabled=False):
            assert x.exp().dtype == torch.float16
    assert model.seen == [(torch.float16, torch.float32)]
    assert torch.autocast.__enter__ is enter
    with own_regions("cpu", "cpu"), pytest.warns(UserWarning, match="CUDA is not available"):
        model(x)
    assert model.seen[1] == (torch.float16, torch.float16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA has regions of its own")
@pytest.mark.filterwarnings("ignore:.*CUDA is not available.*")
def test_the_verdict_of_such_a_model_is_that_of_cuda():
    torch.manual_seed(0)
    subject = Evaluation(model=_OwnAutocast().eval(), data=[torch.randn(100, 8)], labelled=False)
    report = check(subject, precision="16-true", budget=0.02)
    assert report.verdict == report.forecast.verdict == "equivalent", str(report)
