"""The dtypes that results would have in the 16-bit program."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.emulation.nominal import dtype_of, nominal_at, nominal_dtypes, promoted_low

aten = torch.ops.aten
HALF = torch.ones(2, 3, dtype=torch.float16)
WIDE = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("op", "args", "kwargs", "expected"),
    [
        (aten.add.Tensor, (HALF, WIDE), {}, (torch.float32,)),
        (aten.add.Tensor, (HALF, torch.tensor(1.0)), {}, (torch.float16,)),
        (aten.mul.Tensor, (HALF, HALF.bfloat16()), {}, (torch.float32,)),
        (aten.sum.default, (HALF,), {"dtype": torch.float32}, (torch.float32,)),
        (aten._softmax.default, (HALF, 1, False), {}, (torch.float16,)),
        (aten.max.dim, (HALF, 1), {}, (torch.float16, torch.int64)),
        (aten.gt.Scalar, (HALF, 0), {}, (torch.bool,)),
        (aten._foreach_add.Scalar, ([HALF, HALF], 1.0), {}, (torch.float16, torch.float16)),
        (aten.zeros.default, ([2],), {"dtype": torch.bfloat16}, (torch.bfloat16,)),
        (aten.bincount.default, (torch.arange(6), HALF.flatten()), {}, (torch.float64,)),
        (  # which has no meta kernel
            aten.fake_quantize_per_channel_affine_cachemask.default,
            (HALF, torch.ones(3), torch.zeros(3, dtype=torch.int32), 1, 0, 15),
            {},
            (torch.float16, torch.bool),
        ),
    ],
)
def test_nominal_dtypes_are_those_of_the_program(op, args, kwargs, expected):
    assert nominal_dtypes(op, args, kwargs) == expected


def test_nominal_dtypes_do_not_depend_on_shapes_or_write_anything():
    x = HALF.clone()

    assert nominal_dtypes(aten.add_.Tensor, (x, torch.ones(3, dtype=torch.float16)), {}) == (
        torch.float16,
    )
    assert torch.equal(x, HALF)


def test_promotion_where_no_meta_kernel_says_it():
    assert promoted_low((HALF, HALF), {}) == torch.float16
    assert promoted_low((HALF, WIDE), {}) is None
    assert promoted_low((HALF, torch.tensor(1.0)), {}) == torch.float16
    assert promoted_low((torch.ones(2, dtype=torch.long),), {}) is None


def test_a_split_into_more_parts_than_before_keeps_its_dtype():
    with Emulation("cuda"):
        for parts in (2, 5, 3):
            made = torch.ops.aten.unsafe_split.Tensor(torch.ones(2, 4 * parts).half(), 4, 1)
            assert [p.dtype for p in made] == [torch.float16] * parts


def test_a_result_beyond_those_asked_about_has_the_last_ones_dtype():
    assert nominal_at((torch.float16, torch.int64), 0) == torch.float16
    assert nominal_at((torch.float16, torch.int64), 5) == torch.int64


def test_what_depends_on_a_flag_is_asked_anew():
    assert nominal_dtypes(aten._softmax.default, (WIDE, 1, False), {}) == (torch.float32,)
    assert nominal_dtypes(aten.sum.default, (HALF,), {}) == (torch.float16,)
    assert nominal_dtypes(aten.sum.default, (HALF,), {"dtype": torch.float64}) == (torch.float64,)


def test_shapes_that_depend_on_data_have_no_meta_kernel_to_ask():
    assert nominal_dtypes(aten.nonzero.default, (HALF,), {}) in (None, (torch.int64,))
    assert nominal_dtypes(aten.masked_select.default, (HALF, HALF > 0), {}) in (
        None,
        (torch.float16,),
    )


def test_what_the_program_refuses_is_raised():
    with pytest.raises(RuntimeError, match="same dtype"):
        nominal_dtypes(aten.dot.default, (HALF[0], WIDE[0]), {})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_counts_weighed_in_16_bits_are_float64(dtype):
    kinds, weights = torch.arange(6) % 2, HALF.flatten().to(dtype)

    with Emulation("cuda"):
        counts = torch.bincount(kinds, weights=weights)

    assert counts.dtype == torch.bincount(kinds, weights=weights).dtype == torch.float64


class Counted(nn.Module):
    """Events of three kinds, counted by their weights."""

    def __init__(self, cast: bool) -> None:
        super().__init__()
        self.cast, self.gate, self.head = cast, nn.Linear(5, 1), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.gate(x).sigmoid().flatten()
        kinds = torch.arange(len(weights), device=x.device) % 12
        counts = torch.bincount(kinds, weights=weights, minlength=12).view(-1, 3)
        return self.head(counts.to(self.head.weight.dtype) if self.cast else counts)


@pytest.mark.parametrize("precision", ["bf16-true", "16-mixed"])
def test_counts_in_float64_meet_a_layer_of_16_bits(precision):
    torch.manual_seed(0)
    x = torch.randn(4, 5)
    made = [
        check(Evaluation(Counted(cast).eval(), [(x, torch.zeros(4).long())]), precision=precision)
        for cast in (False, True)
    ]

    assert [r.verdict for r in made] == ["not equivalent", "equivalent"]
    assert [r.forecast.verdict for r in made] == ["not equivalent", "equivalent"]
    assert (made[0].culprit.module, made[0].culprit.operation) == ("head", "addmm")
    assert made[0].culprit.mechanism == "unsupported-op"


@pytest.mark.parametrize(
    ("item", "nominal", "fallback", "expected"),
    [
        (torch.ones(2), (torch.float16,), None, torch.float16),
        (torch.ones(2), None, torch.float16, torch.float16),
        (torch.ones(2), (torch.float32,), torch.float16, torch.float32),
        (torch.ones(2), None, None, torch.float32),
        # computed in more than float32
        (torch.ones(2).double(), (torch.float16,), None, torch.float64),
        (torch.ones(2).long(), (torch.float16,), torch.float16, torch.int64),
    ],
)
def test_the_dtype_of_a_result(item, nominal, fallback, expected):
    assert dtype_of(item, 0, nominal, fallback) == expected
