"""Rules for lost digits, on tensors whose figures are known."""

import pytest
import torch

from pytest_fp16.diagnosis.digits import (
    absorbed,
    cancelled,
    cancelled_in_places,
    counting,
    imprecise,
)
from pytest_fp16.diagnosis.findings import Addition, Finding, Pair
from pytest_fp16.diagnosis.measure import Measure
from pytest_fp16.diagnosis.twin_run import Operation
from pytest_fp16.theory.rounding import FORMATS

HALF = FORMATS[torch.float16]


def measure(exact, low=None, dtype=torch.float16):
    exact = torch.tensor(exact)
    return Measure(exact.to(dtype) if low is None else torch.tensor(low).to(dtype), exact, dtype)


def adding(small, large, dtype=torch.float16):
    first, second = torch.tensor([large]), torch.tensor([small])
    pair = Pair((first + second).to(dtype), first + second, dtype)
    return Finding(own=[pair.measure()], addition=Addition(first, second, pair, False))


@pytest.mark.parametrize(("small", "told"), [(0.3, True), (100.3, False)])
def test_an_addend_of_few_spacings_is_absorbed(small, told):
    why = absorbed(Operation(0, "add", "m"), adding(small, 4096.0), HALF)
    assert (why is not None) == told
    assert not told or why.mechanism == "absorption"


@pytest.mark.parametrize(("large", "said"), [(3000.0, "steps of 2"), (2047.0, "steps of 1")])
def test_the_steps_named_are_those_of_the_format(large, said):
    assert absorbed(Operation(0, "add", "m"), adding(0.3, large), HALF).evidence.endswith(said)
    found = Finding(results=[measure([large + 0.3])])
    assert f"{said} there" in imprecise(Operation(0, "sin", "m"), found, HALF).evidence


def test_an_exact_sum_absorbs_nothing():
    assert absorbed(Operation(0, "add", "m"), adding(4.0, 4096.0), HALF) is None


@pytest.mark.parametrize(("last", "told"), [(2049.0, True), (2047.0, False)])
def test_counts_beyond_what_the_format_tells_apart(last, told):
    finding = Finding(results=[measure([1.0, last])])
    assert (counting(Operation(0, "cumsum", "m"), finding, HALF) is not None) == told


@pytest.mark.parametrize(
    ("values", "told"), [((256.0, 257.0), True), ((999.0,), True), ((1013.0, 290.0), False)]
)
def test_whole_numbers_of_a_buffer_that_stay_apart_are_not_counted(values, told):
    exact = torch.tensor(values)
    stored = Measure(exact.bfloat16(), exact, torch.bfloat16, fixed=True)
    seen = Finding(results=[stored])
    assert (counting(Operation(0, "neg", "m"), seen, FORMATS[torch.bfloat16]) is not None) == told


def test_a_small_difference_of_large_operands_cancels():
    left = Finding(
        operands=[measure([100.01, 100.02]), measure([100.0, 100.0])],
        results=[measure([0.01, 0.02], [0.0, 0.0625])],
    )
    why = cancelled(Operation(0, "sub", "m"), [Operation(0, "sub", "m", finding=left)])
    assert why.mechanism == "cancellation"
    assert cancelled(Operation(0, "mul", "m"), [Operation(0, "mul", "m", finding=left)]) is None


def test_a_difference_of_other_values_is_not_the_end_of_a_chain():
    """The variance is lost; values less their mean, behind it, have errors of their own."""
    variance = Finding(
        operands=[measure([144.01, 144.02]), measure([144.0, 144.0])],
        results=[measure([0.01, 0.02], [0.125, -0.125])],
    )
    centred = Finding(
        operands=[measure([12.1, 11.9]), measure([12.0, 12.0])],
        results=[measure([0.1, -0.1], [0.11, -0.09])],
    )
    program = [
        Operation(0, "sub", "m", finding=variance),
        Operation(1, "sub", "m", finding=centred),
    ]
    assert cancelled(program[0], program).operation is program[0]


def sides(entered, left, name="sub"):
    """A difference: (value, error) of both its operands, and of what is left."""
    (a, da), (b, db) = entered, left
    finding = Finding(
        operands=[measure([a + da, a - da], [a, a])], results=[measure([b + db, b - db], [b, b])]
    )
    return Operation(0, name, "m", finding=finding)


def test_a_chain_is_of_what_one_difference_hands_to_the_next():
    """A sum over a box as two differences of a running sum, each of which loses a half."""
    chain = [sides((800, 0.4), (400, 0.4)), sides((420, 0.4), (160, 0.6))]
    assert cancelled(chain[0], chain).operation is chain[1]


def test_what_a_loop_adds_to_an_error_is_no_cancellation():
    """Places brought to a half either way, again and again; the errors grow on the way."""
    loop = [sides((0.58, 0.001), (0.29, 0.001)), sides((0.58, 0.002), (0.29, 0.0025))]
    assert cancelled(loop[0], loop) is None


def test_where_one_operand_rounds_to_the_other_nothing_is_said_to_be_left():
    p = torch.tensor([0.2, 0.4, 0.6, 0.9, 1 - 2.0**-13])
    low = p.half()
    finding = Finding(
        operands=[Measure(low, p, torch.float16)],
        results=[Measure(1 - low, 1 - p, torch.float16)],
        own=[Measure(1 - low, 1 - low.float(), torch.float16)],
    )
    found = Operation(0, "rsub", "m", finding=finding)
    assert cancelled_in_places(found, [found]).evidence == (
        "20.0% of the differences are 0 and should be up to 0.00012: there, both numbers are one "
        "once they are rounded to float16, as p is 1 in 1 - p"
    )


@pytest.mark.parametrize(("wrong", "told"), [(0, "none"), (1, "0.5%")])
def test_where_operands_are_only_nearly_equal_their_rounding_errors_are_said_to_be_left(
    wrong, told
):
    p = torch.full((200,), 0.5)
    p[:40] = 1 - 1.4 * 2.0**-11
    low = p.half()
    off = low.clone()
    off[199 : 199 + wrong] = 0.9
    finding = Finding(
        operands=[Measure(off, p, torch.float16)],
        results=[Measure(1 - low, 1 - p, torch.float16)],
        own=[Measure(1 - low, 1 - low.float(), torch.float16)],
    )
    found = Operation(0, "rsub", "m", finding=finding)
    evidence = cancelled_in_places(found, [found]).evidence
    assert evidence.startswith("20.0% of the differences are off by a quarter of their value or ")
    assert f"more, though {told} of the numbers subtracted are: " in evidence
    assert evidence.endswith("what is left is for the most part their rounding errors")


def test_too_few_digits_is_what_remains():
    born = Operation(0, "sin", "m")
    assert imprecise(born, Finding(results=[measure([0.1])]), HALF).mechanism == "precision-loss"
    assert "25.0%" in imprecise(born, Finding(decided=0.25), HALF).evidence


def stored(low_wrong, fixed=False, made=False):
    """A product with a number of the format's own, of an operand that is off by so much."""
    exact = torch.tensor([1000.0, 2000.0])
    low = (exact + low_wrong).half()
    entered = Measure(low, exact, torch.float16, fixed, made)
    own = Measure(low * 0.5, low.float() * 0.5, torch.float16)
    return Finding(
        operands=[entered], own=[own], results=[Measure(low * 0.5, exact * 0.5, own.dtype)]
    )


def test_what_the_inputs_bring_is_said_to_be_theirs():
    born = Operation(0, "mul", "m")
    why = imprecise(born, stored(0.4 + 1), HALF)
    assert why.variant == "stored inputs"
    assert "which the model's inputs bring, as they are cast" in why.evidence
    for finding in (stored(1.0, made=True), stored(0.0)):
        assert imprecise(born, finding, HALF).variant is None


def test_what_weights_and_buffers_bring_is_said_to_be_theirs():
    why = imprecise(Operation(0, "mul", "m"), stored(0.4 + 1, fixed=True), HALF)
    assert why.variant == "stored digits"
    assert "which a weight or a buffer brings, as it is cast" in why.evidence


def test_no_steps_are_named_of_a_format_that_an_operation_did_not_work_in():
    wide = Measure(torch.tensor([1.01]), torch.tensor([1.0]), torch.float32)
    evidence = imprecise(Operation(0, "mul", "m"), Finding(results=[wide]), HALF).evidence
    assert evidence.endswith("with an error of 0.01")
