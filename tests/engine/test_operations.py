import pytest
import torch
from torch.nn import functional as F

from pytest_fp16.engine.emulate import Emulation
from pytest_fp16.engine.operations import (
    differentiable,
    facts,
    flat,
    functional,
    missing_kernel,
    rebuild,
    require_same_dtype,
    tensors,
)

aten = torch.ops.aten
HALF = torch.ones(2, 3, dtype=torch.float16)
WIDE = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (aten.view.default, {"view": True}),
        (aten.relu_.default, {"name": "relu", "exact": True, "mutated": (0,), "view": False}),
        (aten.add_.Tensor, {"name": "add", "exact": False, "mutated": (0,)}),
        (aten.mul.out, {"name": "mul", "mutated_names": ("out",), "mutated": ()}),
        (aten.index_add_.default, {"stepwise": True, "mutated": (0,)}),
        (aten.native_batch_norm.default, {"statistics": (3, 4)}),
        (aten.mm.default, {"exact": False, "opaque": False, "stepwise": False}),
        (aten.transpose_.default, {"reshapes": True}),
        (aten._foreach_mul_.Scalar, {"mutated": (0,)}),
        (aten.randn_like.default, {"random": True}),
    ],
    ids=lambda v: str(v) if isinstance(v, torch._ops.OpOverload) else "",
)
def test_facts_are_read_off_the_schema(op, expected):
    known = facts(op)

    assert {name: getattr(known, name) for name in expected} == expected


def test_every_operation_called_exact_gives_values_it_was_given():
    """An operation of the list that computed something would hide a rounding error."""
    x = torch.randn(4, 6).half()
    samples = {
        "relu": (x,), "abs": (x,), "neg": (x,), "flip": (x, [0]), "roll": (x, [1]), "tril": (x,),
        "amax": (x, [1]), "sort": (x,), "topk": (x, 2), "clamp": (x, -0.5, 0.5), "t": (x,),
        "cat": ([x, x],), "stack": ([x, x],), "repeat": (x, [2, 1]), "hardtanh": (x,),
        "index_select": (x, 0, torch.tensor([1])), "gather": (x, 0, torch.tensor([[1]])),
        "masked_select": (x, x > 0), "floor": (x,), "sign": (x,), "maximum": (x, -x),
        "constant_pad_nd": (x, [1, 1]), "nan_to_num": (x,), "kthvalue": (x, 2), "mode": (x,),
    }  # fmt: skip

    def widened(arg):
        if isinstance(arg, list):
            return [widened(item) for item in arg]
        floating = isinstance(arg, torch.Tensor) and arg.is_floating_point()
        return arg.float() if floating else arg

    for name, args in samples.items():
        packet = getattr(aten, name)
        out = packet(*args)
        values = next(o for o in flat(out) if o.is_floating_point())
        exact = next(o for o in flat(packet(*map(widened, args))) if o.is_floating_point())
        assert torch.equal(values.float(), exact), name


def test_mixed_dtypes_are_refused_by_name():
    with pytest.raises(RuntimeError, match=r"mm: .* same dtype, but are float16 and float32"):
        require_same_dtype("mm", (HALF, WIDE.t()), "cuda")
    require_same_dtype("mm", (HALF, HALF.t()), "cuda")
    require_same_dtype("add", (HALF, WIDE), "cuda")
    classes = torch.zeros(len(HALF), dtype=torch.long)
    args = (HALF, classes, torch.ones(HALF.shape[1]), 1, -100)
    with pytest.raises(RuntimeError, match="same dtype"):
        require_same_dtype("nll_loss_forward", args, "cuda")


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


@pytest.mark.parametrize("loss", [F.huber_loss, F.soft_margin_loss])
def test_some_losses_are_as_narrow_as_the_outputs(loss):
    native = loss(HALF, WIDE)
    with Emulation("cuda"):
        emulated = loss(HALF, WIDE)
    assert native.dtype == emulated.dtype == torch.float16


def test_out_operations_have_a_functional_twin():
    assert functional(aten.mul.out) == aten.mul.Tensor
    assert functional(aten.max.dim_max) == aten.max.dim
    assert functional(aten.exp.out) == aten.exp.default
    assert functional(aten.sum.IntList_out) == aten.sum.dim_IntList


def test_who_has_a_gradient():
    library = torch.library.Library("fp16ops", "FRAGMENT")
    library.define("plain(Tensor x) -> Tensor")
    library.impl("plain", lambda x: x + 1, "CPU")
    try:
        assert not differentiable(torch.ops.fp16ops.plain.default)
        assert differentiable(aten.mul.Tensor)
    finally:
        library._destroy()


def test_every_tensor_among_arguments_is_found():
    assert [t.dtype for t in tensors(([HALF], 1), {"x": WIDE})] == [torch.float16, torch.float32]


def test_results_are_flattened_and_rebuilt():
    out = (1, [2, (3,)], None)

    assert flat(out) == [1, 2, 3, None]
    assert rebuild(out, iter("abcd")) == ("a", ["b", ("c",)], "d")


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
        lambda x: torch.angle(x),
        lambda x: torch.igamma(x.abs(), x.abs()),
    ],
)
def test_what_no_gpu_computes_in_16_bits_is_refused(function):
    with Emulation("cuda"), pytest.raises(RuntimeError, match="has no float16 kernel on cuda"):
        function(HALF)
    with Emulation("cuda"):
        assert function(WIDE).isfinite().all()
