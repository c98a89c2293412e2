import contextlib

import pytest
import torch
from torch.nn import functional as F

from pytest_fp16.engine.emulation import kernels
from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.emulation.kernels import missing_kernel, require_same_dtype

HALF = torch.ones(2, 3, dtype=torch.float16)
WIDE = torch.ones(2, 3)


def test_mixed_dtypes_are_refused_by_name():
    with pytest.raises(RuntimeError, match=r"mm: .* same dtype, but are float16 and float32"):
        require_same_dtype("mm", (HALF, WIDE.t()), "cuda")
    require_same_dtype("mm", (HALF, HALF.t()), "cuda")
    require_same_dtype("add", (HALF, WIDE), "cuda")
    classes = torch.zeros(len(HALF), dtype=torch.long)
    args = (HALF, classes, torch.ones(HALF.shape[1]), 1, -100)
    with pytest.raises(RuntimeError, match="same dtype"):
        require_same_dtype("nll_loss_forward", args, "cuda")


def test_mixed_dtypes_are_refused_before_a_kernel_is_missed():
    with Emulation("cuda"), pytest.raises(RuntimeError, match="same dtype"):
        torch.linalg.solve(torch.eye(3), torch.ones(3, 2, dtype=torch.float16))
    with Emulation("cuda"), pytest.raises(RuntimeError, match="no float16 kernel"):
        torch.linalg.solve(torch.eye(3).half(), torch.ones(3, 2, dtype=torch.float16))


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_a_triangular_system_is_solved_in_the_type_of_its_matrix(target):
    """A gated delta rule under autocast: the decays make the matrix float32, not the values."""
    system, values = torch.eye(3) + torch.ones(3, 3).tril(-1), torch.tensor([[1.0], [2.0], [7.0]])
    with Emulation(target):
        solved = torch.linalg.solve_triangular(system, values.half(), upper=False)
    native = torch.linalg.solve_triangular(system, values.half(), upper=False)
    assert solved.dtype == native.dtype == torch.float32
    assert torch.equal(solved, native)
    for other in (values, values.half()):
        with Emulation(target), pytest.raises(RuntimeError, match="no float16 kernel"):
            torch.linalg.solve_triangular(system.half(), other, upper=False)


@pytest.mark.parametrize("target", ["cuda", "cpu"])
@pytest.mark.parametrize(
    ("call", "wide_input", "wide_weights"),
    [
        (lambda x, w: F.layer_norm(x, [3], w, w), True, {"cuda": True, "cpu": False}),
        (lambda x, w: F.group_norm(x, 1, w, w), True, {"cuda": True, "cpu": False}),
        (lambda x, w: F.batch_norm(x, None, None, w, w, True), True, {}),
    ],
    ids=["layer", "group", "batch"],
)
def test_normalisations_refuse_weights_of_another_dtype_as_the_target_does(
    call, wide_input, wide_weights, target
):
    half, wide = torch.ones(3).half(), torch.ones(3)

    def refused(x, w):
        try:
            with Emulation(target):
                call(x, w)
        except RuntimeError as error:
            return "same dtype" in str(error)
        return False

    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert not refused(x.half(), half)
    assert not refused(x, wide)
    assert refused(x, half) is wide_input
    assert refused(x.half(), wide) is wide_weights.get(target, False)


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: torch.linalg.cross(a, b),
        lambda a, b: torch.allclose(a, b),
        lambda a, b: a.index_reduce(0, torch.arange(2), b, "amax"),
        lambda a, b: F.binary_cross_entropy(a.sigmoid(), b),
        lambda a, b: F.embedding_bag(torch.zeros(2, 3).long(), a, per_sample_weights=b, mode="sum"),
    ],
)
def test_what_natively_refuses_mixed_dtypes_does_so_emulated(call):
    for pair in ((HALF, WIDE), (WIDE, HALF)):
        with pytest.raises(RuntimeError):
            call(*pair)
        with Emulation("cuda"), pytest.raises(RuntimeError, match="same dtype"):
            call(*pair)


@pytest.mark.parametrize(
    ("rows", "p", "mode", "missing"),
    [
        (8, 2.0, None, True),
        (40, 2.0, None, False),
        (40, 2.0, 2, True),
        (8, 2.0, 1, False),
        (40, 1.0, None, True),
    ],
)
def test_cdist_is_a_matrix_product_on_cuda_where_there_are_many_rows(rows, p, mode, missing):
    x = torch.zeros(rows, 3)
    assert missing_kernel("_cdist_forward", (x, x, p, mode), "cuda") is missing


@pytest.mark.parametrize(
    ("name", "sparse", "missing"),
    [
        ("_sparse_addmm", 1, True),
        ("mm", 0, True),
        ("mm", 1, True),
        ("bmm", 0, True),
        ("_sparse_softmax", 0, True),
        ("mul", 0, False),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.strided])
def test_products_with_coo_matrices_need_32_bits_on_cuda(name, sparse, missing, layout):
    args = [HALF.new_ones(4, 4) for _ in range(3)]
    args[sparse] = args[sparse].to_sparse(layout=layout) if layout != torch.strided else args[0]
    assert missing_kernel(name, args, "cuda") is (missing and layout is torch.sparse_coo)
    assert not missing_kernel(name, args, "cpu")


def test_a_product_of_two_coo_matrices_has_a_kernel_in_16_bits():
    both = [HALF.new_ones(4, 4).to_sparse()] * 2
    assert not missing_kernel("mm", both, "cuda")


@pytest.mark.parametrize("name", ["nms", "roi_align"])
def test_torchvisions_boxes_have_no_bfloat16_on_cuda(name):
    assert missing_kernel(name, (WIDE.bfloat16(), WIDE, 0.5), "cuda")
    assert not missing_kernel(name, (HALF, HALF, 0.5), "cuda")
    assert not missing_kernel(name, (WIDE.bfloat16(), WIDE, 0.5), "cpu")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.linalg.pinv(x),
        lambda x: torch.special.log_ndtr(x),
        lambda x: torch.special.bessel_j0(x),
        lambda x: torch.igamma(x.abs(), x.abs()),
    ],
)
def test_what_no_gpu_computes_in_16_bits_is_refused(function):
    with Emulation("cuda"), pytest.raises(RuntimeError, match="has no float16 kernel on cuda"):
        function(HALF)
    with Emulation("cuda"):
        assert function(WIDE).isfinite().all()


@pytest.mark.parametrize(
    ("name", "call", "dtypes"),
    [
        ("angle", torch.angle, {torch.float16, torch.bfloat16}),
        ("polar", lambda x: torch.polar(x, x), {torch.float16}),
    ],
)
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_cuda_has_since_torch_2_14(name, call, dtypes, there, dtype, monkeypatch):
    monkeypatch.setattr(kernels, "since", lambda *release: there and release == (2, 14))
    values = HALF.to(dtype)
    assert missing_kernel(name, (values, values), "cuda") is (not there or dtype not in dtypes)
    if name == "angle":
        refused = pytest.raises(RuntimeError, match=f"{name} has no")
        with Emulation("cuda"), contextlib.nullcontext() if there else refused:
            assert call(values).dtype == dtype


def shrunk(a, mode):
    return F.interpolate(a[None, None], scale_factor=0.5, mode=mode, antialias=True)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("_linalg_solve_ex", lambda a: torch.linalg.solve(a, a.clone())),
        ("linalg_qr", torch.linalg.qr),
        ("_linalg_det", torch.linalg.det),
        ("_pdist_forward", torch.pdist),
        ("polar", lambda a: torch.polar(a, a)),
        ("angle", torch.angle),
        ("histc", torch.histc),
        ("avg_pool3d", lambda a: F.avg_pool3d(a.view(1, 1, 4, 2, 2), 1)),
        ("_upsample_bilinear2d_aa", lambda a: shrunk(a, "bilinear")),
        ("_upsample_bicubic2d_aa", lambda a: shrunk(a, "bicubic")),
        ("multi_margin_loss", lambda a: F.multi_margin_loss(a, torch.arange(4))),
    ],
)
def test_what_a_cpu_has_no_kernel_for_is_what_it_refuses(name, call, dtype):
    a = (torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) + torch.eye(4)).to(dtype)
    try:
        call(a)
        refused = False
    except RuntimeError:
        refused = True
    assert missing_kernel(name, (a,), "cpu") is refused


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_a_matrix_exponential_that_is_none_counts_as_missing(target):
    small = torch.eye(4).half() * 1e-2
    assert not bool(torch.isclose(torch.matrix_exp(small), small.float().exp().half()).all())
    with Emulation(target), pytest.raises(RuntimeError, match="linalg_matrix_exp"):
        torch.matrix_exp(small)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cuda_takes_no_float32_mask_beside_16_bit_queries(dtype):
    """pytorch#191612: "invalid dtype for bias - should match query's dtype"; a CPU takes it."""
    q = torch.randn(2, 2, 4, 8).to(dtype)
    masks = {d: torch.zeros(4, 4).to(d) for d in (torch.float32, dtype, torch.bool)}
    for mask in masks.values():
        with Emulation("cpu"):
            F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    with Emulation("cuda"), pytest.raises(RuntimeError, match=r"same dtype, but are .*float32"):
        F.scaled_dot_product_attention(q, q, q, attn_mask=masks[torch.float32])
    for same in (dtype, torch.bool):
        with Emulation("cuda"):
            F.scaled_dot_product_attention(q, q, q, attn_mask=masks[same])
