"""Rules for what leaves the range, on tensors whose figures are known."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.diagnosis.bounds import (
    came_small,
    fell_as_stored,
    out_of_range,
    vanished,
    vanishing_constant,
)
from pytest_fp16.diagnosis.findings import Finding
from pytest_fp16.diagnosis.measure import Measure
from pytest_fp16.diagnosis.mechanism import because, explain, worth_watching
from pytest_fp16.diagnosis.origin import find_origin
from pytest_fp16.diagnosis.twin_run import Operation
from pytest_fp16.theory.rounding import FORMATS


def finding(values, dtype, **more):
    exact = torch.tensor(values)
    return Finding(own=[Measure(exact.to(dtype), exact, dtype)], **more)


@pytest.mark.parametrize(("dtype", "told"), [(torch.float16, True), (torch.bfloat16, False)])
def test_what_overflows_float16_fits_bfloat16(dtype, told):
    why = out_of_range(Operation(0, "pow", "m"), finding([1.0, 9e4], dtype), FORMATS[dtype])
    assert (why is not None) == told
    assert not told or (why.mechanism == "overflow" and "50.0%" in why.evidence)


@pytest.mark.parametrize(
    ("fate", "variant"),
    [
        ((False, False), "infinite inputs"),
        ((True, False), "infinite values"),
        ((False, True), None),
    ],
)
def test_what_is_infinite_as_it_is_cast_is_told_as_that(fate, variant):
    exact = torch.tensor([[1.0, 9e4]])
    entered = Measure(exact.half(), exact, torch.float16, *fate)
    joined = Finding(operands=[entered], results=[entered])
    why = out_of_range(Operation(0, "cat", "m"), joined, FORMATS[torch.float16])
    assert (why.variant if why is not None else None) == variant
    assert (why is None) == fate[1], "what an operation made infinite is that operation's"


@pytest.mark.parametrize(("beyond", "told"), [(1, "infinite values"), (3, None)])
def test_of_what_entered_infinite_and_what_became_so_the_larger_part_is_told(beyond, told):
    """Spreads of 1e5 and 5e4, times numbers of up to two: the second is too large now and then."""
    spreads, numbers = torch.tensor([1e5, 5e4]), torch.ones(4, 2)
    numbers[:beyond, 1] = 2
    entered = Measure(spreads.half(), spreads, torch.float16, fixed=True, made=False)
    own = Measure((numbers * 5e4).half()[:, 1], (numbers * 5e4)[:, 1], torch.float16)
    seen = Finding(operands=[entered], own=[own], results=[own])
    why = out_of_range(Operation(0, "mul", "m"), seen, FORMATS[torch.float16])
    assert (why.mechanism, why.variant) == ("overflow", told)
    assert ("the largest value that enters it is 1e+05" in why.evidence) == (told is not None)


@pytest.mark.parametrize(("dtype", "told"), [(torch.float16, True), (torch.bfloat16, False)])
def test_what_vanishes_in_float16_does_not_in_bfloat16(dtype, told):
    why = vanished(Operation(0, "mul", "m"), finding([1e-9, 2e-9], dtype), FORMATS[dtype])
    assert (why is not None) == told
    assert not told or why.mechanism == "underflow"


@pytest.mark.parametrize(
    ("operation", "scalars", "told"),
    [
        (torch.rsqrt, [], True),
        (lambda v: v + 1e-9, [1e-9], True),  # the smaller of two that are lost
        (lambda v: v + 1e-5, [1e-5], False),  # it guards, and the result shows no zero
        (lambda v: v.sum(0, keepdim=True), [], False),
    ],
)
def test_a_few_values_that_fall_to_zero_as_they_are_cast(operation, scalars, told):
    """Two variances of ten, of which the reciprocal is then infinite."""
    variances = torch.tensor([1e-8, 2e-8, *[1.0] * 8])
    low = variances.half()
    entered = Measure(low, variances, torch.float16, fixed=True, made=False)
    result = Measure(operation(low), operation(variances), torch.float16)
    seen = Finding(operands=[entered], results=[result], scalars=scalars)
    why = fell_as_stored(Operation(0, "any", "m"), seen, FORMATS[torch.float16])
    assert (why is not None) == told
    if told:
        assert (why.mechanism, why.variant) == ("underflow", "stored values")
        assert why.evidence.startswith("20.0% of the values of a weight or buffer fall to zero")


@pytest.mark.parametrize(("values", "told"), [([3e-8, 5e-8], True), ([3e-4, 5e-4], False)])
def test_an_exact_sum_of_what_is_next_to_nothing_is_told_as_such(values, told):
    """A state below the normal range is off by its terms: subnormal numbers are added exactly."""
    exact, state = torch.tensor(values), torch.tensor(values).half() * 2
    result = Measure(state, exact, torch.float16)
    seen = Finding(own=[Measure(state, state.float(), torch.float16)], results=[result])
    born = Operation(0, "add", "m", finding=seen)
    assert (came_small(born, seen, FORMATS[torch.float16]) is not None) == told
    culprit = because(born, [born])
    assert culprit.mechanism == ("underflow" if told else "precision-loss")
    assert culprit.evidence.startswith("100.0% of the values lie below the smallest") == told


@pytest.mark.parametrize(("constant", "told"), [(1e-9, "zero"), (1 - 1e-5, "1"), (0.5, None)])
def test_a_constant_that_rounds_away(constant, told):
    seen = Finding(scalars=[constant], decided=0.1)
    why = vanishing_constant(Operation(0, "lt", "m"), seen, FORMATS[torch.float16])
    assert (why is not None) == (told is not None)
    assert told is None or f"rounds to {told}" in why.evidence


def test_an_epsilon_that_a_kernel_hands_on_as_a_tensor():
    """cosine_similarity makes one of its own in float32, and clamps 16-bit lengths by it."""
    epsilon = Measure(torch.tensor(1e-8), torch.tensor(1e-8), torch.float32, fixed=True)
    lengths = finding([1e-8, 2.0], torch.float16)
    seen = Finding(own=lengths.own, operands=[epsilon], results=lengths.own)
    why = vanishing_constant(Operation(0, "clamp_min", "m"), seen, FORMATS[torch.float16])
    assert why.mechanism == "eps-underflow"
    assert "the constant 1e-08 rounds to zero" in why.evidence


@pytest.mark.parametrize(
    ("added", "told"),
    [
        ([0.0, -65504.0], "mask-inf"),
        ([3e4, -65504.0], "mask-inf"),
        ([6e4, -65504.0], "overflow"),  # large values that were clamped
        ([65504.0, -65504.0], "overflow"),
        ([0.0, -65472.0], "overflow"),
    ],
)
def test_a_mask_of_the_smallest_number_leaves_no_room(added, told):
    scores, mask = torch.tensor([1.0, -50.0]), torch.tensor(added)
    operands = [Measure(t.half(), t, torch.float16) for t in (scores, mask)]
    total = Measure(scores.half() + mask.half() - 20, scores + mask, torch.float16)
    seen = Finding(own=[total], operands=operands, results=[total])
    why = out_of_range(Operation(0, "add", "m"), seen, FORMATS[torch.float16])
    assert why.mechanism == told
    assert told == "overflow" or "-6.55e+04, and what it is added to takes 1 of 2" in why.evidence


@pytest.mark.parametrize(
    ("factor", "told"),
    [([1.0, 0.0], "mask-inf"), ([-1.0, 0.0], "mask-inf"), ([-1.0, 1.0], "overflow")],
)
def test_a_mask_less_one_is_a_mask(factor, told):
    """(1 - mask) * -1e5 and (mask - 1) * 1e5 are one; what has signs masks nothing."""
    exact = torch.tensor(factor)
    operand = Measure(exact.half(), exact, torch.float16)
    result = Measure((exact * 1e5).half(), exact * 1e5, torch.float16)
    seen = Finding(own=[result], operands=[operand], results=[result], scalars=[1e5])
    why = out_of_range(Operation(0, "mul", "m"), seen, FORMATS[torch.float16])
    assert why.mechanism == told


def test_the_end_of_a_row_of_numbers_is_no_mask():
    seen = finding([1.0, 2.0, 131072.0], torch.float16, scalars=[1.0, 131073.0])
    why = out_of_range(Operation(0, "arange", "m"), seen, FORMATS[torch.float16])
    assert why.mechanism == "overflow"


@pytest.mark.parametrize(("largest", "told"), [(1.0, True), (0.9, False), (30.0, False)])
def test_a_factor_next_to_one_bounds_what_comes_up_to_one(largest, told):
    """tanh(x) (1 - 1e-5), so that its inverse is finite; the decay of an average bounds nothing."""
    values = torch.tensor([0.5, largest])
    operand = Measure(values, values, torch.float16)
    own, result = (Measure(values, values * (1 - 1e-5) ** n, torch.float16) for n in (1, 50))
    seen = Finding(own=[own], operands=[operand], results=[result], scalars=[1 - 1e-5])
    why = vanishing_constant(Operation(0, "mul", "m"), seen, FORMATS[torch.float16])
    assert (why is not None) == told
    assert not told or "the constant 0.99999 rounds to 1" in why.evidence


def test_a_gain_that_is_zero_guards_nothing():
    """A weight of many numbers, all alike, times what a tangent gives."""
    values, gain = torch.tensor([0.5, 1.0]), torch.full((2,), 1e-8)
    operands = [
        Measure(values, values, torch.float16),
        Measure(gain.half(), gain, torch.float16, fixed=True, made=False),
    ]
    low = values.half() * gain.half()
    own, result = (Measure(low, exact, torch.float16) for exact in (low.float(), values * gain))
    seen = Finding(own=[own], operands=operands, results=[result])
    born = Operation(0, "mul", "m", finding=seen)
    assert vanishing_constant(born, seen, FORMATS[torch.float16]) is None
    culprit = because(born, [born])
    assert (culprit.mechanism, culprit.variant) == ("underflow", "stored values")


@pytest.mark.parametrize(("factor", "told"), [(1 - 1e-6, True), (0.9, False), (2.0, False)])
def test_a_factor_next_to_one_that_keeps_below_a_step(factor, told):
    """Of i / n nothing rounds but the factor: every number that is a boundary falls on it."""
    values = torch.arange(1.0, 16.0) / 16
    operand = Measure(values, values, torch.float16)
    result = Measure((values * factor).half(), values * factor, torch.float16)
    seen = Finding(own=[result], operands=[operand], results=[result], scalars=[factor])
    why = vanishing_constant(Operation(0, "mul", "m"), seen, FORMATS[torch.float16])
    assert (why is not None) == told
    assert not told or (why.mechanism, why.variant) == ("eps-underflow", "near one")


def assigned(x, value, at):
    x = x.clone()
    x[at(x)] = value
    return x


FLOORS = {
    "new_tensor": lambda x: torch.maximum(x, x.new_tensor(1e-8)),
    "a list": lambda x: torch.maximum(x, x.new_tensor([1e-8])),
    "tensor": lambda x: torch.maximum(x, torch.tensor(1e-8, dtype=x.dtype)),
    "full_like": lambda x: torch.maximum(x, torch.full_like(x, 1e-8)),
    "ones": lambda x: torch.maximum(x, 1e-8 * torch.ones_like(x)),
    "masked": lambda x: assigned(x, 1e-8, lambda x: x == 0),
    "a column": lambda x: assigned(x, 1e-8, lambda x: (slice(None), 0)),
}


@pytest.mark.parametrize("floor", FLOORS.values(), ids=FLOORS)
def test_an_epsilon_that_torch_made_a_tensor_of(make_net, comparison, floor):
    """Before a mode can see it: the constant was zero already, and the program another one."""

    class Part(torch.nn.Module):
        def forward(self, x):
            size = floor((x * 0).abs().amax(-1, keepdim=True))
            return x + (x * 0) / size

    looked = comparison(make_net(Part()))
    origin = find_origin(looked)
    culprit = explain(origin, looked.side_by_side(worth_watching(origin).__contains__))
    assert not origin.unrounded
    assert (culprit.module, culprit.mechanism) == ("core.part", "eps-underflow")
    assert "1e-08" in culprit.evidence


def test_a_bound_near_one_that_is_written_into_a_place(make_net, comparison):
    class Part(torch.nn.Module):
        def forward(self, x):
            p = torch.cat([x.sigmoid() * 0.9, x], -1)
            p[:, x.shape[1] :] = 0.9999
            return x + torch.log(1 - p)[:, : x.shape[1]] + torch.log(1 - p)[:, x.shape[1] :] * x

    looked = comparison(make_net(Part()))
    origin = find_origin(looked)
    culprit = explain(origin, looked.side_by_side(worth_watching(origin).__contains__))
    assert (culprit.mechanism, culprit.variant) == ("eps-underflow", "near one")
    assert "the constant 0.9999 rounds to 1" in culprit.evidence


@pytest.mark.parametrize(
    ("largest", "told"),
    [(65539.0, "65539, float16 holds 65504;"), (9e4, "9e+04, float16 holds 6.55e+04;")],
)
def test_what_is_just_beyond_is_told_by_more_digits(largest, told):
    found = finding([1.0, largest], torch.float16)
    why = out_of_range(Operation(0, "pow", "m"), found, FORMATS[torch.float16])
    assert told in why.evidence


@pytest.mark.parametrize(
    ("name", "first", "told"),
    [
        ("remainder", 1.7e9, "overflow"),
        ("floor_divide", 1.7e9, "overflow"),
        ("masked_fill", 1.0, "mask-inf"),
        ("masked_fill", 1.7e9, "overflow"),  # all of it is infinite as it comes
    ],
)
def test_a_divisor_that_is_infinite_is_no_mask(name, first, told):
    exact = torch.tensor([first, 1.6e9])
    times = Measure(exact.half(), exact, torch.float16, False, False)
    lost = Measure(exact.half() * torch.nan, exact % 86_400, torch.float16)
    found = Finding(operands=[times], own=[lost], results=[lost], scalars=[86_400.0])
    assert out_of_range(Operation(0, name, "m"), found, FORMATS[torch.float16]).mechanism == told


class TwoMasks(nn.Module):
    """A causal mask and one of padding, added up: where both are, it is minus infinity."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x, keep):
        least = torch.finfo(x.dtype).min
        causal = torch.full((5, 5), least).triu(1).to(x.dtype)
        pad = torch.zeros(len(x), 1, 5).to(x.dtype).masked_fill(keep[:, None] == 0, least)
        scores = x @ x.transpose(1, 2) * 8 - 40 + (causal + pad)
        mixed = torch.softmax(scores, -1) @ x
        return self.head(mixed[:, -1] + 0 * mixed[:, 0])


@pytest.mark.parametrize("pads", [1, 2])
def test_masks_that_add_up_to_an_infinity_leave_no_room_either(pads):
    torch.manual_seed(0)
    x, keep = torch.randn(200, 5, 8) * 0.3, torch.ones(200, 5).long()
    keep[:, :pads] = 0
    made = Evaluation(TwoMasks().eval(), [(x, keep)], labelled=False)
    report = check(made, precision="16-true")
    assert (report.culprit.mechanism, report.culprit.variant) == ("mask-inf", "no room")
