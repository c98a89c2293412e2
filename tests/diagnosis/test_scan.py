"""A program looked through for one kind of fault."""

import torch
from torch import nn

from pytest_fp16.diagnosis.findings import Finding
from pytest_fp16.diagnosis.measure import Measure
from pytest_fp16.diagnosis.scan import UNSOUND, defective, overflowing, unneeded, vanishing
from pytest_fp16.diagnosis.twin_run import Operation


def test_sound_operations_are_below_the_threshold_of_unsound_ones(make_net, comparison):
    for part in (nn.LayerNorm(32), nn.GELU(), nn.Softmax(-1), nn.Linear(32, 32)):
        operations = comparison(make_net(part, steps=5)).side_by_side(lambda i: True)
        steps = [m.steps for o in operations for m in o.finding.own]
        assert max(steps) > 0.1
        assert max(steps) < UNSOUND
        assert defective(operations) is None


def watched(*all_values):
    exact = [torch.tensor(values) for values in all_values]
    measures = [Measure(e.half(), e, torch.float16) for e in exact]
    return [Operation(i, "mul", f"m{i}", finding=Finding(own=[m])) for i, m in enumerate(measures)]


def test_the_first_that_overflows_and_the_last_that_vanishes():
    assert overflowing(watched([1.0], [9e4], [9e5])).module == "m1"
    assert vanishing(watched([1e-9], [1e-9], [1.0])).module == "m1"


def test_nothing_is_found_in_what_is_sound():
    for look in (overflowing, vanishing, defective):
        assert look(watched([1.0], [0.0])) is None
        assert look([]) is None


def test_what_a_lost_constant_guards_may_need_no_guard():
    def needless(values, *scalars):
        entered = watched(values)[0].finding.own
        finding = Finding(scalars=list(scalars), operands=entered)
        return unneeded([Operation(0, "add", "", finding=finding)], 0)

    assert needless([1e-9, 2e-9], 1e-13)
    assert needless([1e-9, 2e-9], 1.0, 1e-13)  # no other number is a guard
    assert not needless([1e-9, 2e-9], 1.0)
    assert not needless([1e-9, 2e-9], 1e-11)  # it changes them
    assert not needless([1e-9, 0.0], 1e-13)  # one is zero in 32 bits too
    assert not needless([1e-3, 2e-3], 1e-13)  # none fell to zero
    assert not unneeded([], 0)
