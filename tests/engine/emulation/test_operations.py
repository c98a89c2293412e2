import pytest
import torch
from torch.nn import functional as F

from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.emulation.operations import (
    differentiable,
    each,
    facts,
    flat,
    functional,
    rebuild,
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


def test_who_has_a_gradient(monkeypatch):
    library = torch.library.Library("fp16ops", "FRAGMENT")
    library.define("plain(Tensor x) -> Tensor")
    library.impl("plain", lambda x: x + 1, "CPU")
    try:
        assert not differentiable(torch.ops.fp16ops.plain.default)
        assert differentiable(aten.mul.Tensor)
        # Where torch does not tell of kernels, any may have one.
        monkeypatch.delattr(torch._C, "_dispatch_has_kernel_for_dispatch_key")
        assert differentiable.__wrapped__(torch.ops.fp16ops.plain.default)
    finally:
        library._destroy()


def test_every_tensor_among_arguments_is_found():
    assert [t.dtype for t in tensors(([HALF], 1), {"x": WIDE})] == [torch.float16, torch.float32]


def test_results_are_flattened_and_rebuilt():
    out = (1, [2, (3,)], None)

    assert flat(out) == [1, 2, 3, None]
    assert rebuild(out, iter("abcd")) == ("a", ["b", ("c",)], "d")


def test_every_tensor_of_an_argument_is_changed_or_whatever_is_asked_for():
    assert each((HALF, [WIDE, "text"]), id) == [id(HALF), [id(WIDE), "text"]]
    assert each([HALF, 3, (4, "text")], str, int) == [HALF, "3", ["4", "text"]]
