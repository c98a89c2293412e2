"""One reverse pass: what each site contributes, and where none can be made."""

import pytest
import torch

from pytest_fp16.engine.prediction.reverse import NotDifferentiableError, backward
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.tracing.recorder import Recorder
from pytest_fp16.engine.tracing.shadow import wrap_inputs
from pytest_fp16.engine.tracing.trace import Trace
from pytest_fp16.theory.rounding import FLOAT16

BATCH = 5


def traced(program):
    recorder = Recorder(batch=BATCH, device=torch.device("cpu"), totals={}, where=lambda: "here")
    trace = Trace(recorder, "cuda", constants={})
    x = torch.linspace(0.3, 2.7, BATCH).unsqueeze(1)
    shadows = wrap_inputs([x], torch.float16)
    with preserved_state(), torch.no_grad(), trace:
        out = program(*shadows)
    return trace, x.half().float(), out.inner.reshape(BATCH, 1, -1)


def test_a_site_contributes_its_spacing_times_its_derivative():
    """y = 3x and z = y², so ∂z/∂y = 2y; the site of z itself has derivative one."""
    trace, x, logits = traced(lambda t: (t * 3.0) * (t * 3.0))
    sums = backward(trace, logits, torch.ones(BATCH, 1, 1))[FLOAT16]
    y = 3 * x[:, 0]
    at = [2 ** (v.log2().floor() - 10) for v in (y, y * y)]
    assert sums.absolute == pytest.approx(2 * (y * at[0]) + at[1])
    assert sums.square == pytest.approx(2 * (y * at[0]).square() + at[1].square())


def test_inputs_without_a_seed_contribute_nothing():
    trace, _, logits = traced(lambda t: t * 3.0)
    sums = backward(trace, logits, torch.ones(2, 1, 1))[FLOAT16]
    assert (sums.absolute[:2] > 0).all()
    assert (sums.absolute[2:] == 0).all()


def test_a_lost_logit_takes_no_part():
    trace, _, logits = traced(lambda t: (t - 0.3) * 3.0)
    lost = torch.where(torch.arange(BATCH).reshape(-1, 1, 1) == 2, torch.inf, logits)
    sums = backward(trace, lost, torch.ones(BATCH, 1, 1))[FLOAT16]
    assert sums.absolute[2] == 0
    assert sums.absolute[3] > 0


def test_outputs_without_a_gradient_are_told():
    trace, _, logits = traced(lambda t: t * 3.0)
    with pytest.raises(NotDifferentiableError, match="the outputs carry no gradient"):
        backward(trace, logits.detach(), torch.ones(BATCH, 1, 1))


def test_a_pass_that_torch_refuses_is_told():
    class OneWay(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("this way is closed")

    trace, _, logits = traced(lambda t: t * 3.0)
    with torch.enable_grad(), pytest.raises(NotDifferentiableError, match="this way is closed"):
        backward(trace, OneWay.apply(logits), torch.ones(BATCH, 1, 1))
