"""What a trace asks of an operation's arguments."""

import pytest
import torch

from pytest_fp16.engine.emulation.operations import facts
from pytest_fp16.engine.tracing.arguments import (
    as_native,
    flushes,
    grid_of,
    narrows,
    refuse_constants,
    reshaped,
    shadows_in,
    steps,
    written_targets,
)
from pytest_fp16.engine.tracing.recorder import Recorder
from pytest_fp16.engine.tracing.shadow import Cell, Shadow, wrap_inputs
from pytest_fp16.engine.tracing.trace import Trace
from pytest_fp16.theory.rounding import BFLOAT16, FLOAT16

aten = torch.ops.aten
HALF, WIDE = torch.float16, torch.float32


def shadow(*shape, dtype=HALF, depends=True):
    return Shadow(torch.rand(*shape) + 0.1, dtype, Cell(depends, False))


def test_a_change_of_shape_reaches_values_and_wrapper():
    x = shadow(2, 3)
    before = x.inner.clone()
    assert reshaped(aten.transpose_.default, (x, 0, 1), {}) is x
    assert x.shape == x.inner.shape == (3, 2)
    assert torch.equal(x.inner, before.t())


@pytest.mark.parametrize(
    ("func", "args", "shape"),
    [
        (aten.t_.default, (), (3, 2)),
        (aten.transpose_.default, (0, 1), (3, 2)),
        (aten.unsqueeze_.default, (0,), (1, 2, 3)),
        (aten.squeeze_.default, (), (2, 3)),
        (aten.as_strided_.default, ((3,), (1,), 1), (3,)),
    ],
)
def test_what_autograd_saved_stays_as_it_was(func, args, shape):
    leaf = torch.rand(2, 3, requires_grad=True)
    x = Shadow(leaf.exp(), HALF, Cell(True, False))
    reshaped(func, (x, *args), {})
    assert x.shape == x.inner.shape == shape
    x.inner.sum().backward()
    assert leaf.grad.count_nonzero() == x.numel()


def test_native_tensors_are_16_bit_and_nothing_else_is_touched():
    x = shadow(2)
    native = as_native([x, [x, 3], "text"])
    assert native[0].dtype == native[1][0].dtype == HALF
    assert torch.equal(native[0], x.inner.half())
    assert native[1][1:] == [3]
    assert native[2] == "text"


def test_traced_tensors_are_found_in_lists_and_keywords():
    x, y, z = shadow(2), shadow(2), shadow(2)
    found = shadows_in(([x, torch.ones(2)], 1, y), {"out": z})
    assert [id(s) for s in found] == [id(x), id(y), id(z)]


def test_what_is_written_can_be_replaced():
    x, y = shadow(2), shadow(2)
    inner = [x.inner, [y.inner, x.inner], 3]
    fresh = torch.zeros(2)
    ((target, put),) = written_targets((x, [y, x], 3), inner, 0)
    put(fresh)
    assert target is x
    assert inner[0] is fresh
    targets = written_targets((x, [y, x], 3), inner, 1)
    assert [id(t) for t, _ in targets] == [id(y), id(x)]
    targets[0][1](fresh)
    assert inner[1][0] is fresh
    assert inner[1][1] is x.inner
    assert written_targets((x, [y, x], 3), inner, 2) == []
    assert written_targets((x,), inner, 5) == []


def test_casts_and_copies_into_fewer_bits_narrow():
    cast, copy = facts(aten._to_copy.default), facts(aten.copy_.default)
    x, wide = shadow(2), shadow(2, dtype=WIDE)
    assert narrows(cast, (wide,), {"dtype": HALF})
    assert narrows(cast, (shadow(2, dtype=torch.bfloat16),), {"dtype": HALF})
    assert not narrows(cast, (x,), {"dtype": HALF})
    assert not narrows(cast, (x,), {"dtype": WIDE})
    assert narrows(copy, (x, wide), {})
    assert not narrows(copy, (wide, x), {})
    assert not narrows(copy, (x, x), {})
    assert not narrows(facts(aten.clone.default), (x,), {})


def test_an_accumulator_rounds_once_for_each_addend():
    y = torch.zeros(4)
    source = shadow(20)
    assert steps(facts(aten.index_add_.default), (shadow(4), 0, torch.zeros(20), source), y) == 5
    assert steps(facts(aten.index_add_.default), (shadow(4), 0, torch.zeros(2), shadow(2)), y) == 1
    assert steps(facts(aten.add.Tensor), (shadow(4), source), y) == 1


def test_only_16_bit_values_that_depend_on_the_input_flush():
    assert flushes(shadow(2)) == HALF
    assert not flushes(shadow(2, dtype=WIDE))
    assert not flushes(shadow(2, depends=False))  # a constant was rounded for good
    assert not flushes(torch.ones(2).half())
    assert not flushes(3.0)


def cast_up(depends=True):
    return Shadow(torch.rand(2), WIDE, Cell(depends, True, HALF))


@pytest.mark.parametrize(
    "after",
    [lambda i: i + 1, lambda i: i - 1, lambda i: 1 - i, lambda i: i**2, lambda i: i // 2],
    ids=["plus one", "less one", "one less", "squared", "halved"],
)
def test_places_stay_whole_numbers(after):
    """Of the largest of 16-bit values, of which neighbours are read: they are on no grid."""
    recorder = Recorder(12, torch.device("cpu"), where=str, totals={})
    (x,) = wrap_inputs((torch.rand(12, 5),), HALF)

    with torch.no_grad(), Trace(recorder, "cuda", {}):
        place = after(x.argmax(-1))
        read = x.gather(1, (place % 5).unsqueeze(-1))

    assert place.dtype == place.inner.dtype == torch.int64
    assert read.shape == (12, 1)


def test_what_was_cast_up_flushes_as_the_format_held_it():
    assert grid_of(facts(aten._to_copy.default), (shadow(2),), {"dtype": WIDE}) == HALF
    assert flushes(cast_up()) == HALF
    assert not flushes(cast_up(depends=False))


@pytest.mark.parametrize(
    ("func", "args", "grid"),
    [
        (aten.relu.default, (cast_up(),), HALF),
        (aten.cat.default, ([cast_up(), cast_up()], 1), HALF),
        (aten.cat.default, ([cast_up(), shadow(2, dtype=WIDE)], 1), None),
        (aten.clamp.default, (cast_up(), 1e-8), None),  # a floor that float32 holds
        (aten.clamp.default, (cast_up(), 1), HALF),
        (aten.mul.Tensor, (cast_up(), cast_up()), None),
    ],
)
def test_values_that_are_only_moved_stay_on_the_grid(func, args, grid):
    assert grid_of(facts(func), args, {}) == grid


@pytest.mark.parametrize(
    ("fmt", "value", "raises"),
    [
        (FLOAT16, -1e9, True),
        (FLOAT16, float("-inf"), False),
        (FLOAT16, 65504.0, False),
        (FLOAT16, 7, False),
        (BFLOAT16, -1e9, False),
    ],
)
def test_a_constant_is_refused_as_the_kernel_does(fmt, value, raises):
    x = shadow(4, 3, dtype=fmt.dtype)
    mask = Shadow(torch.ones(4, 3, dtype=torch.bool), torch.bool, Cell(True, False))
    args = (x, mask, value)
    if not raises:
        refuse_constants(aten.masked_fill.Scalar, args, {}, fmt)
        return
    with pytest.raises(RuntimeError, match="cannot be converted"):
        refuse_constants(aten.masked_fill.Scalar, args, {}, fmt)
