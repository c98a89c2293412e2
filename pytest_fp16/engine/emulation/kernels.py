"""What kernels refuse: 16-bit types that a device has none for, and tensors of two dtypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.emulation.operations import ATTENTION, LOW, tensors
from pytest_fp16.engine.emulation.refusal import RefusedDtypes
from pytest_fp16.engine.emulation.release import since
from pytest_fp16.engine.emulation.transforms import refuses_sizes

#: Arguments that must share one floating dtype; ATen promotes nothing here, it raises.
_SAME_DTYPE: dict[str, tuple[int, ...]] = {
    "mm": (0, 1),
    "bmm": (0, 1),
    "mv": (0, 1),
    "dot": (0, 1),
    "vdot": (0, 1),
    "addmm": (0, 1, 2),
    "addmv": (0, 1, 2),
    "addbmm": (0, 1, 2),
    "baddbmm": (0, 1, 2),
    "convolution": (0, 1, 2),
    "_convolution": (0, 1, 2),
    "index_put": (0, 2),
    "index_add": (0, 3),
    "index_copy": (0, 3),
    "scatter_add": (0, 3),
    "masked_scatter": (0, 2),
    "_prelu_kernel": (0, 1),
    "grid_sampler_2d": (0, 1),
    "grid_sampler_3d": (0, 1),
    "_trilinear": (0, 1, 2),
    "nll_loss_forward": (0, 2),
    "nll_loss2d_forward": (0, 2),
    "mkldnn_rnn_layer": (0, 1, 2, 3, 4, 5, 6),
    "_thnn_fused_lstm_cell": (0, 1, 2),
    "_thnn_fused_gru_cell": (0, 1, 2),
    "linalg_cross": (0, 1),
    "index_reduce": (0, 3),
    "allclose": (0, 1),
    "complex": (0, 1),
    "binary_cross_entropy": (0, 1),
    "multi_margin_loss": (0, 4),
    "_embedding_bag": (0, 6),
    "_embedding_bag_forward_only": (0, 6),
    "_sparse_addmm": (0, 1, 2),
    "_linalg_solve_ex": (0, 1),
    "linalg_lstsq": (0, 1),
    "linalg_lu_solve": (0, 2),
    "cholesky_solve": (0, 1),
}
_SAME_DTYPE_ATTENTION = (0, 1, 2)
#: Input, weight and bias of normalisations, which take no weights narrower than their input.
_NORMALISES: dict[str, tuple[int, ...]] = {
    "native_layer_norm": (0, 2, 3),
    "native_group_norm": (0, 1, 2),
    "native_batch_norm": (0, 1, 2),
    "cudnn_batch_norm": (0, 1, 2),
    "_native_batch_norm_legit": (0, 1, 2),
    "_native_batch_norm_legit_no_training": (0, 1, 2),
    "_batch_norm_with_update": (0, 1, 2),
}
#: On CUDA these take no wider ones either: "expected scalar type Half but found Float".
_EXACTLY_ON_CUDA = frozenset({"native_layer_norm", "native_group_norm"})

#: No float16 or bfloat16 kernel on a CPU nor on CUDA: LAPACK and its kin have none. What
#: linalg_matrix_exp has reads float64 coefficients as if they were 16-bit: it gives no exponential.
_NO_KERNEL = frozenset(
    """
    _linalg_svd _linalg_eigh linalg_eig linalg_cholesky_ex linalg_inv_ex linalg_lu_factor_ex
    linalg_qr linalg_lstsq linalg_solve_triangular triangular_solve _linalg_solve_ex _linalg_det
    _linalg_slogdet cholesky_inverse cholesky_solve geqrf _cdist_forward _pdist_forward _ctc_loss
    polar linalg_matrix_exp
    """.split()
)

#: No float16 or bfloat16 kernel on CUDA: the libraries behind them offer none, or nobody has asked.
#: `benchmarks.kernels` holds this table against torch's own of what each device supports.
NO_CUDA_KERNEL = _NO_KERNEL.union(
    """
    linalg_eigvalsh linalg_lu linalg_lu_solve linalg_ldl_factor_ex cholesky ormqr
    linalg_householder_product histc
    linalg_pinv linalg_ldl_solve lu_unpack sparse_sampled_addmm angle igamma igammac
    special_zeta special_ndtri special_log_ndtr special_erfcx special_airy_ai
    special_spherical_bessel_j0 special_bessel_j0 special_bessel_j1 special_bessel_y0
    special_bessel_y1 special_modified_bessel_i0 special_modified_bessel_i1
    special_modified_bessel_k0 special_modified_bessel_k1 special_scaled_modified_bessel_k0
    special_scaled_modified_bessel_k1 special_chebyshev_polynomial_t special_chebyshev_polynomial_u
    special_chebyshev_polynomial_v special_chebyshev_polynomial_w special_hermite_polynomial_h
    special_hermite_polynomial_he special_laguerre_polynomial_l special_legendre_polynomial_p
    special_shifted_chebyshev_polynomial_t special_shifted_chebyshev_polynomial_u
    special_shifted_chebyshev_polynomial_v special_shifted_chebyshev_polynomial_w
    """.split()
)

#: Those that CUDA has from torch 2.14 on: pytorch#191301, and its table of sparse products; `polar`
#: a CPU, too, in float16 alone (pytorch#192311).
_SINCE_2_14 = {"angle": LOW, "sparse_sampled_addmm": LOW, "polar": frozenset({torch.float16})}

#: No float16 or bfloat16 kernel on a CPU, by torch's table (of what CUDA has one for).
_NO_CPU_KERNEL = _NO_KERNEL.union(
    "avg_pool3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa multi_margin_loss "
    "multilabel_margin_loss_forward".split()
)

#: Those that write into a copy in the type of the first tensor, which alone chooses the kernel: the
#: others may have any type (ATen's ``linalg_solve_triangular_out``).
_FIRST_CHOOSES = frozenset({"linalg_solve_triangular"})

#: CUDA has them in float16 for sizes that are powers of two; a CPU for none.
_TRANSFORMS = frozenset({"_fft_r2c", "_fft_c2r", "_fft_c2c"})

#: With one sparse COO matrix, CUDA has them from 32 bits up, with compressed rows (CSR) from 16:
#: "addmm_sparse_cuda" and "bmm_sparse_cuda" are "not implemented for 'Half'".
_SPARSE = frozenset(
    "mm mv bmm addmm addmv baddbmm _sparse_addmm hspmm _sparse_softmax _sparse_log_softmax".split()
)

#: CUDA has them in float16, not in bfloat16: there are no such complex numbers, and torchvision's
#: "nms_kernel" and "roi_align_forward_kernel" are "not implemented for 'BFloat16'".
_NO_BFLOAT16 = frozenset({"complex", "nms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"})

#: Not for complex numbers of 16 bits: "baddbmm_cuda" is "not implemented for 'ComplexHalf'".
_NO_COMPLEX = frozenset(
    "mm mv dot vdot bmm addmm addmv addbmm baddbmm cumsum cumprod mean linalg_vector_norm".split()
)

#: Rows from which cdist for p = 2 becomes a matrix product, which has 16-bit kernels.
_CDIST_BY_PRODUCT = 25


def missing_kernel(name: str, args: Sequence[Any], target: str) -> bool:
    """Whether a target is known to have no 16-bit kernel for an operation on these arguments."""
    if name in _TRANSFORMS:
        refused = target != "cuda" or args[0].dtype is torch.bfloat16
        refused = refused or refuses_sizes(_signal(name, args))
        return refused and bool(args[0].device.type == "cpu")
    if name == "_cdist_forward" and len(args) > 2 and args[2] == 2.0:
        mode = args[3] if len(args) > 3 and args[3] is not None else 0
        many = max(args[0].shape[-2], args[1].shape[-2]) > _CDIST_BY_PRODUCT
        return not (mode == 1 or (mode == 0 and many))
    if name in _FIRST_CHOOSES and args[0].dtype not in LOW:
        return False
    if name in _SINCE_2_14 and since(2, 14):
        given = {t.dtype for t in tensors(args, {})}
        return bool((given & LOW) - _SINCE_2_14[name])
    if target != "cuda":
        return name in _NO_CPU_KERNEL
    if name in _NO_COMPLEX and any(t.dtype is torch.complex32 for t in tensors(args, {})):
        return True
    if name in _SPARSE:
        return sum(map(_is_coo, args)) == 1
    if name in _NO_BFLOAT16:
        return any(t.dtype is torch.bfloat16 for t in tensors(args, {}))
    return name in NO_CUDA_KERNEL


def _signal(name: str, args: Sequence[Any]) -> list[int]:
    """How many values each dimension has that is transformed."""
    sizes = [args[0].shape[d] for d in args[1]]
    return [*sizes[:-1], args[3]] if name == "_fft_c2r" else sizes


def _is_coo(value: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    followed = vars(value).get("inner", value)  # what carries a trace's values looks strided
    return bool(followed.layout is torch.sparse_coo)


def require_same_dtype(
    name: str, args: Sequence[Any], target: str, kwargs: Mapping[str, Any] | None = None
) -> None:
    """Raise what the 16-bit program would raise where an operation refuses mixed dtypes.

    Args:
        name, args, kwargs: the operation and its arguments.
        target: the device whose kernels are meant.

    Raises:
        RefusedDtypes: two floating arguments that must agree do not.
    """
    normalises = _NORMALISES.get(name, ())
    positions = normalises or _SAME_DTYPE.get(name, ())
    positions = _SAME_DTYPE_ATTENTION if name in ATTENTION else positions
    given = [args[i] for i in positions if i < len(args)]
    if name in ATTENTION and target == "cuda":  # a CPU's kernel alone takes a mask of float32
        given.append((kwargs or {}).get("attn_mask"))
    found = {t.dtype for t in given if isinstance(t, Tensor) and t.is_floating_point()}
    exactly = target == "cuda" and name in _EXACTLY_ON_CUDA
    if len(found) < 2 or (normalises and args[0].dtype in LOW and not exactly):
        return
    names = " and ".join(sorted(str(d).removeprefix("torch.") for d in found))
    raise RefusedDtypes(name, names)
