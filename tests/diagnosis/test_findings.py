"""What is measured of one operation, on operands whose figures are known."""

import pytest
import torch

from pytest_fp16.diagnosis.findings import Pair, examined

aten = torch.ops.aten
HALF = torch.float16


def pair(exact, dtype=HALF, **more):
    exact = torch.as_tensor(exact)
    return Pair(exact.to(dtype) if exact.is_floating_point() else exact, exact, dtype, **more)


def test_operands_results_and_the_operation_alone_are_told_apart():
    x = pair([0.1, 0.3])
    low = x.low.float() * 3
    result = Pair((x.low * 3), x.exact * 3, HALF)
    found = examined(aten.mul.Tensor, "mul", (x, 3.0), {}, [result], low)
    assert found.scalars == [3.0]
    (operand,), (given,), (own,) = found.operands, found.results, found.own
    assert operand.error == pytest.approx(float((x.low.float() - x.exact).square().mean().sqrt()))
    assert given.error == pytest.approx(
        float((result.low.float() - x.exact * 3).square().mean().sqrt())
    )
    assert own.error == pytest.approx(float((result.low.float() - low).square().mean().sqrt()))
    assert found.addition is None
    assert found.addends is None


def test_the_fate_of_an_operand_goes_along():
    found = examined(aten.exp.default, "exp", (pair([1.0], fixed=True, made=False),), {}, [], None)
    assert found.operands[0].fixed
    assert not found.operands[0].made
    assert found.own == []


@pytest.mark.parametrize(
    ("func", "args", "kwargs", "expected"),
    [
        (aten.clamp.default, (0, -1.5, 2.5), {}, [-1.5, 2.5]),
        (aten.add.Tensor, (0, 7.0), {"alpha": 3}, [7.0]),  # a factor, and no operand
        (aten.sum.dim_IntList, (0, [1], True), {}, []),  # a flag is no number
        (aten.pow.Tensor_Scalar, (0, 2), {}, [2.0]),
        (aten.leaky_relu.default, (0,), {"negative_slope": 0.1}, [0.1]),
    ],
)
def test_scalars_are_those_that_enter_the_arithmetic(func, args, kwargs, expected):
    args = (pair([1.0]), *args[1:])
    name = func._schema.name.partition("::")[2]
    assert examined(func, name, args, kwargs, [], None).scalars == expected


def test_decisions_are_the_share_that_differs():
    given = Pair(torch.tensor([True, False, True, True]), torch.tensor([True] * 4), torch.bool)
    assert examined(aten.gt.Scalar, "gt", (pair([1.0]), 0.0), {}, [given], None).decided == 0.25


def added(func, name, args, total, kwargs=None):
    return examined(func, name, args, kwargs or {}, [pair(total)], None).addends


def test_the_smaller_addend_in_steps_at_the_larger():
    steps, small, large = added(
        aten.add.Tensor, "add", (pair([2048.0, 2048.0]), pair([1.0, -1.0])), [2049.0, 2047.0]
    )
    assert (small, large) == (1.0, 2048.0)
    assert steps == 0.5  # float16 has steps of two there
    assert added(aten.sub.Tensor, "sub", (pair([1.0]), pair([2048.0])), [-2047.0])[0] == 0.5


def test_sizes_are_told_of_where_most_is_lost():
    """Hydrogen outnumbers carbon; what its energy loses is nothing beside what carbon's does."""
    alone = [13.625, 13.625, 13.625, 1030.0, 1030.0]
    total = [13.825, 13.825, 13.825, 1030.25, 1030.25]
    _, small, large = added(
        aten.add.Tensor, "add", (pair([0.2, 0.2, 0.2, 0.25, 0.25]), pair(alone)), total
    )
    assert (small, large) == (0.25, 1030.0)


def test_a_factor_of_the_second_addend_counts():
    found = added(aten.add.Tensor, "add", (pair([2048.0]), pair([1.0])), [2052.0], {"alpha": 4})
    assert found[1] == 4.0


def test_a_scalar_may_be_an_addend():
    assert added(aten.add.Tensor, "add", (pair([2048.0]), 1.0), [2049.0])[1] == 1.0


def test_nothing_is_added_where_an_addend_is_zero():
    assert added(aten.add.Tensor, "add", (pair([1.0]), pair([0.0])), [1.0]) is None
    assert added(aten.add.Tensor, "add", (pair([1.0]), pair([torch.inf])), [torch.inf]) is None


@pytest.mark.parametrize(
    ("func", "name", "others", "kwargs"),
    [
        (aten.addcmul.default, "addcmul", (pair([0.25]), pair([2.0])), {"value": 2}),
        (aten.addcdiv.default, "addcdiv", (pair([2.0]), pair([2.0])), {}),
        (aten.lerp.Scalar, "lerp", (pair([2052.0]), 0.25), {}),
    ],
)
def test_what_is_added_may_be_made_of_two(func, name, others, kwargs):
    steps, small, large = added(func, name, (pair([2048.0]), *others), [2049.0], kwargs)
    assert (steps, small, large) == (0.5, 1.0, 2048.0)


def test_many_terms_beside_their_one_sum():
    index = Pair(torch.zeros(3).long(), torch.zeros(3).long(), torch.int64)
    args = (pair([0.0]), 0, index, pair([1.0, 0.5, 0.25]))
    steps, small, large = added(aten.index_add_.default, "index_add", args, [2048.0])
    assert (small, large) == (1.0, 2048.0)
    assert steps == 0.5


def test_a_running_sum_beside_each_of_its_terms():
    _, small, large = added(
        aten.cumsum.default, "cumsum", (pair([1.0, 1.0, 1.0]), 0), [1.0, 2.0, 3.0]
    )
    assert (small, large) == (1.0, 2.0)


def test_a_sum_in_float32_loses_no_addend():
    wide = Pair(torch.tensor([2049.0]), torch.tensor([2049.0]), torch.float32)
    found = examined(aten.add.Tensor, "add", (pair([2048.0]), 1.0), {}, [wide], None)
    assert found.addends is None
