"""Decisions that rounding could change: counted where they are used, and kinks passed over."""

import pytest
import torch
import torch.nn.functional as F

from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.tracing.recorder import Recorder
from pytest_fp16.engine.tracing.shadow import wrap_inputs
from pytest_fp16.engine.tracing.trace import Trace

BATCH = 5


def traced(program, rows, **options):
    recorder = Recorder(batch=BATCH, device=torch.device("cpu"), totals={}, where=lambda: "here")
    trace = Trace(recorder, "cuda", {}, **options)
    shadows = wrap_inputs([rows], torch.float16)
    with preserved_state(), torch.no_grad(), trace:
        return trace, program(*shadows)


def with_errors(program, rows, error=1e-3):
    """A second run, which knows how far off the values are that the first compared."""
    first, _ = traced(program, rows, collect=True)
    assert first.doubts.operands
    return traced(program, rows, errors=[(key, error) for key, _ in first.doubts.operands])[0]


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (lambda y: y.argmax(-1), False),
        (lambda y: F.one_hot(y.argmax(-1), 3) * 2, True),
        (lambda y: y.max(-1).values, False),
        (lambda y: y.gather(-1, y.max(-1).indices.unsqueeze(-1)), True),
        (lambda y: y.topk(1).values, False),
        (lambda y: y.topk(3).indices + 0, False),
        (lambda y: y.long().float() * 2, True),
        (lambda y: y.floor() * 2, True),
        (lambda y: y.round() * 2, False),
        (lambda y: torch.bucketize(y, torch.tensor([2.0])) + 1, True),
        (lambda y: (y > 2.0) & (y < 9), True),
        (lambda y: (y > 3.0) & (y < 9), False),
        (lambda y: y.argmax(0) + 1, False),
        (lambda y: y.clamp(max=3.0) if not torch.isfinite(y).all() else y, False),
        (lambda y: F.one_hot(y.float().argmax(-1), 3) * 2, True),
        (lambda y: F.one_hot(y.float().softmax(-1).topk(1).indices, 3) * 2, True),
    ],
)
def test_decisions_count_where_they_are_used(program, expected):
    rows = torch.tensor(
        [[2.0, 2.0, 1.1], [0.1, 0.3, 0.4], [0.6, 1.2, 1.4], [1.7, 0.2, 1.6], [0.8, 0.3, 5.0]]
    )
    trace, _ = traced(lambda t: program(t.exp().log()), rows)

    assert trace.doubts.undecided[0].item() is expected
    if not expected:
        assert not trace.doubts.undecided.any()


@pytest.mark.parametrize(
    "branch",
    [
        lambda y: (y > 2.0).all(),
        lambda y: ((y > 2.0) | (y < -1.0)).any(-1)[3],
        lambda y: torch.allclose(y, torch.tensor(1.1).to(y.dtype), atol=0.9),
        lambda y: torch.equal(y, torch.full_like(y, 2.0)),
    ],
)
def test_a_program_that_branches_on_a_decision_in_doubt_is_told(branch):
    rows = torch.tensor([[2.0], [5.0], [6.0], [7.0], [8.0]])
    trace, _ = traced(lambda t: t * 2 if bool(branch(t.exp().log())) else t * 3, rows)
    assert trace.doubts.branches
    assert not trace.doubts.undecided.all()  # where it goes is for runs rounded at random to see
    far, _ = traced(lambda t: t * 2 if bool(branch(t.exp().log())) else t * 3, rows + 30)
    assert not far.doubts.branches
    assert not far.doubts.undecided.any()


@pytest.mark.parametrize(
    "activation",
    [
        lambda y: torch.where(y > 0, y, 0.1 * y),
        lambda y: torch.where(y > 0, y, y.exp() - 1),
        lambda y: torch.where(y.abs() < 2, y * y / 2, 2 * y.abs() - 2),  # Huber's
        lambda y: y * (y > 0),
        lambda y: (y > 0).to(y.dtype) * y,
        lambda y: y.masked_fill(y < 0, 0.0),
        lambda y: torch.where(~(y > 0), 0.0, y),
        lambda y: y.sign() * y.abs(),
        lambda y: torch.relu(y.abs()) * y.sgn(),  # as F.lp_pool2d has it
        lambda y: y.sign() * torch.log1p(y.abs()),
        lambda y: torch.copysign(y * y / (1 + y.abs()), y),
        lambda y: torch.nn.functional.threshold(y, 2.0, 2.0),
    ],
)
def test_two_values_that_meet_are_a_kink_and_no_decision(activation):
    rows = torch.tensor([[1e-5, 1.0], [-1e-5, 2.0], [0.0, 2.001], [3.0, -2.0], [5.0, 7.0]])
    trace = with_errors(lambda t: activation(t.exp().log()), rows)
    assert not trace.doubts.undecided.any()


DIVISIONS = (
    lambda y: y / 0.7,
    lambda y: torch.div(y, 0.7, rounding_mode=None),
    lambda y: torch.div(y, 0.7, rounding_mode="floor"),
)


def test_a_division_that_does_not_round_is_no_decision():
    rows = torch.rand(BATCH, 2)
    runs = [traced(lambda y, p=p: p(y.exp()), rows, collect=True)[0] for p in DIVISIONS]
    assert [len(run.doubts.operands) for run in runs] == [0, 0, 1]


@pytest.mark.parametrize(
    "jump",
    [
        lambda y: torch.where(y > 0, 1.0, 0.0) + y,
        lambda y: torch.where(y > 0, y + 0.01, 0.1 * y),
        lambda y: (y > 0) * (y + 1),
        lambda y: y.masked_fill(y < 0, -torch.inf),
        lambda y: torch.where(y > 0, 1e6 * y, 0.0),  # so steep that it is one
        lambda y: torch.where((y > 0)[:, :1], y, 0.1 * y),  # of a view, whose gaps are not known
        lambda y: (y > 0).to(y.dtype).mean(-1, keepdim=True) * y,
        lambda y: (y > 0) * (y < 9) * 0.5 + y,  # of two masks
        lambda y: y.sign() * 0.5 + y,
        lambda y: y.sign() * y.abs().sqrt(),  # so steep that it is one
        lambda y: torch.copysign(torch.full_like(y, 0.5), y),
        lambda y: torch.remainder(y, 0.7),
        lambda y: torch.nn.functional.threshold(y, 0.0, -1.0),
    ],
)
def test_a_jump_is_a_decision(jump):
    rows = torch.tensor([[1e-5, 1.0], [2.0, 1.0], [3.0, 1.0], [4.0, 1.0], [5.0, 1.0]])
    trace = with_errors(lambda t: jump(t.exp().log()), rows)
    assert trace.doubts.undecided.tolist() == [True, False, False, False, False]
