"""Autocast as the target applies it, whatever device the emulated run is on.

CUDA's autocast keeps pow, exp, log, sum, norm, softmax and layer norm in float32, the CPU's runs
them in 16 bits. For a CUDA target on a CPU, the CPU's autocast kernels are replaced, while the
context lasts, by kernels that follow CUDA's lists. Source of the lists: ATen/autocast_mode.h and
https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-autocast-to-float16.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.emulation.cast_cache import cast_in, kept_cast, own_cache
from pytest_fp16.engine.emulation.composed import grid_cast_inside
from pytest_fp16.engine.emulation.patching import replaced
from pytest_fp16.engine.emulation.recurrent import within_a_layer
from pytest_fp16.engine.emulation.regions import (
    checkpoints_on_cuda,
    cuda_regions,
    custom_inputs,
    is_on,
    regions_that_cast,
)

_TO_LOW = """
    _convolution _convolution.deprecated conv1d conv2d conv3d conv_tbc conv_transpose1d
    conv_transpose2d.input conv_transpose3d.input convolution prelu addmm addmv addr matmul einsum
    mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot
    _thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    scaled_dot_product_attention lstm.input gru.input rnn_tanh.input rnn_relu.input
"""  # the recurrent layers stand for cuDNN's, which casts its inputs, states and weights

#: A matrix product inside their kernels is what autocast sees; here they are one operation.
_COMPOSED = "affine_grid_generator _sparse_addmm"

_TO_FLOAT32 = """
    acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan
    pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm rms_norm
    group_norm frobenius_norm.dim nuclear_norm nuclear_norm.dim cosine_similarity
    poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss
    smooth_l1_loss huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss
    triplet_margin_loss multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm
    logsumexp upsample_nearest1d _upsample_nearest_exact1d upsample_nearest2d
    _upsample_nearest_exact2d upsample_nearest3d _upsample_nearest_exact3d upsample_linear1d
    upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d
    _upsample_bicubic2d_aa prod prod.dim_int softmax.int log_softmax.int cumprod cumsum
    linalg_vector_norm linalg_matrix_norm linalg_matrix_norm.str_ord sum sum.dim_IntList
    norm.Scalar norm.ScalarOpt_dim
"""

_PROMOTE = """
    addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add
"""

#: What the CPU's autocast lists and CUDA's does not: these must pass untouched.
_CPU_ONLY = """
    avg_pool3d binary_cross_entropy grid_sampler polar quantile quantile.scalar nanquantile
    nanquantile.scalar stft stft.center cdist grid_sampler_2d _grid_sampler_2d_cpu_fallback
    grid_sampler_3d trace view_as_complex cholesky cholesky_inverse cholesky_solve inverse
    lu_solve orgqr ormqr pinverse max_pool3d max_unpool2d max_unpool3d adaptive_avg_pool3d
    reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d replication_pad3d
    mse_loss ctc_loss.IntList ctc_loss.Tensor multilabel_margin_loss fft_fft fft_ifft fft_fft2
    fft_ifft2 fft_fftn fft_ifftn fft_rfft fft_irfft fft_rfft2 fft_irfft2 fft_rfftn fft_irfftn
    fft_hfft fft_ihfft linalg_cond linalg_cond.p_str linalg_matrix_rank linalg_solve
    linalg_cholesky linalg_svdvals linalg_eigvals linalg_eigvalsh linalg_inv
    linalg_householder_product linalg_tensorinv linalg_tensorsolve fake_quantize_per_tensor_affine
    geqrf _lu_with_info qr svd triangular_solve fractional_max_pool2d fractional_max_pool3d
    adaptive_max_pool3d multilabel_margin_loss_forward linalg_qr linalg_cholesky_ex linalg_svd
    linalg_eig linalg_eigh linalg_lstsq linalg_inv_ex cat stack tril triu index_copy
    index_copy.dimname linalg_matrix_rank.atol_rtol_float linalg_matrix_rank.atol_rtol_tensor
    linalg_matrix_rank.tol_tensor
"""


@contextmanager
def target_autocast(device: str, dtype: torch.dtype, target: str) -> Iterator[None]:
    """Autocast to `dtype` on `device`, with the policy of `target`.

    Args:
        device: device type the model runs on: ``"cpu"``, ``"cuda"``, ``"mps"``.
        dtype: torch.float16 or torch.bfloat16.
        target: ``"cuda"`` or ``"cpu"``; it matters on a CPU only, an accelerator has its own.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*autocast.*", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*CUDA is not available.*", category=UserWarning)
        if device != "cpu":
            with torch.autocast(device, dtype=dtype):
                yield
            return
        if target == "cpu":
            with _cpu_policy(), torch.autocast("cpu", dtype=dtype):
                yield
            return
        with _cuda_policy(), torch.autocast("cpu", dtype=dtype), _cuda_flag(dtype):
            yield


@contextmanager
def _cuda_flag(dtype: torch.dtype) -> Iterator[None]:
    """Model code that switches off "cuda" autocast for an island must find it on."""
    was, was_dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", was)
        torch.set_autocast_dtype("cuda", was_dtype)


@contextmanager
def own_regions(device: str, target: str) -> Iterator[None]:
    """Where a whole model is cast: what it does under a CUDA autocast that it enters itself.

    Args:
        device, target: see `target_autocast`.
    """
    if device != "cpu" or target != "cuda" or torch.cuda.is_available():
        yield
        return
    leave = torch.autocast.__exit__

    def entered(self: Any) -> Any:
        region = ExitStack()
        if self.device == "cuda" and is_on(self) and not _installed:
            region.enter_context(target_autocast("cpu", self.fast_dtype, "cuda"))
        vars(self).setdefault("_fp16_regions", []).append(region)
        return enter(self)  # type: ignore[no-untyped-call]

    def left(self: Any, *exception: Any) -> Any:
        try:
            return leave(self, *exception)
        finally:
            vars(self)["_fp16_regions"].pop().close()

    with cuda_regions():
        enter = torch.autocast.__enter__
        with replaced(torch.autocast, __enter__=entered, __exit__=left):
            yield


@contextmanager
def held_policy(device: str, target: str) -> Iterator[None]:
    """Keep the target's policy installed over many uses of `target_autocast`.

    Installing it costs milliseconds, which a training would pay at every step and an evaluation
    several times a batch. Autocast itself stays off until `target_autocast` is entered.
    """
    if device != "cpu" or target == "cpu":
        yield
        return
    with _cuda_policy():
        yield


_installed = 0
_composed = 0


@contextmanager
def _cpu_policy() -> Iterator[None]:
    """Let the CPU's own autocast see what an emulated run computes as one operation."""
    global _composed
    if _composed or _installed:
        yield
        return
    library = torch.library.Library("aten", "IMPL", "AutocastCPU")
    _composed += 1
    try:
        for name in _COMPOSED.split():
            _register(library, name, _kernel(name, _to_low_on_cpu, "cpu"))
        yield
    finally:
        _composed -= 1
        library._destroy()


@contextmanager
def _cuda_policy() -> Iterator[None]:
    """Replace the CPU's autocast kernels by ones that follow CUDA's lists, once however nested."""
    global _installed
    if _installed:
        yield
        return
    library = torch.library.Library("aten", "IMPL", "AutocastCPU")
    _installed += 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "overriding a previously registered kernel" is meant
            _register(library, "binary_cross_entropy", _banned)
            listed = {"binary_cross_entropy"}  # older torch refuses a second registration
            for names, cast in (
                (_TO_LOW + _COMPOSED, _to_low),
                (_TO_FLOAT32, _to_float32),
                (_PROMOTE, _promote),
            ):
                for name in names.split():
                    if name not in listed and _overload(name) is not None:
                        listed.add(name)
                        _register(library, name, _kernel(name, cast))
            for name in _CPU_ONLY.split():
                if name not in listed and _overload(name) is not None:
                    _register(library, name, _kernel(name, _untouched))
        regions = cuda_regions(), regions_that_cast()
        with own_cache(), regions[0], regions[1], checkpoints_on_cuda(), custom_inputs():
            yield
    finally:
        _installed -= 1
        library._destroy()


_MAY_OVERRIDE = "allow_override" in inspect.signature(torch.library.Library.impl).parameters


def _register(library: torch.library.Library, name: str, kernel: Callable[..., Any]) -> None:
    if _MAY_OVERRIDE:
        library.impl(name, kernel, allow_override=True)
    else:
        library.impl(name, kernel)


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)


_AUTOCAST_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


def _kernel(name: str, cast: Callable[[Any], Any], device: str = "cuda") -> Callable[..., Any]:
    op = _overload(name)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        enabled = torch.is_autocast_enabled(device)  # asked of the key that is excluded next
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
            if enabled and name == "affine_grid_generator":
                return grid_cast_inside(cast, *args)
            if enabled:
                if cast is _promote:
                    widest = _widest((*args, *kwargs.values()))
                    args = tuple(cast_in(a, widest) for a in args)
                    kwargs = {k: cast_in(v, widest) for k, v in kwargs.items()}
                else:
                    args = tuple(cast(a) for a in args)
                    kwargs = {k: cast(v) for k, v in kwargs.items()}
            return op(*args, **kwargs)

    return kernel


def _banned(*args: Any, **kwargs: Any) -> Any:
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
        if torch.is_autocast_enabled("cuda"):
            raise RuntimeError(
                "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to "
                "autocast. Use binary_cross_entropy_with_logits, which is safe."
            )
        return torch.ops.aten.binary_cross_entropy.default(*args, **kwargs)


def _to_low(value: Any) -> Any:
    to = Tensor.to if within_a_layer() else kept_cast  # cuDNN's weights are cast at each call
    return cast_in(value, torch.get_autocast_dtype("cuda"), to)


def _to_low_on_cpu(value: Any) -> Any:
    return cast_in(value, torch.get_autocast_dtype("cpu"), kept_cast)


def _to_float32(value: Any) -> Any:
    return cast_in(value, torch.float32)


def _promote(value: Any) -> Any:
    raise AssertionError("unreachable: promotion looks at all arguments at once")


def _untouched(value: Any) -> Any:
    return value


def _widest(values: tuple[Any, ...]) -> torch.dtype:
    found = [v.dtype for v in values if isinstance(v, Tensor)]
    return torch.float32 if torch.float32 in found else torch.get_autocast_dtype("cuda")
