"""Whether first order holds: one run rounded at random, set against what a reverse pass predicts.

A slope says what an error does as long as it is small beside what it passes through. Where a
rounding takes a quotient from one end of its range to the other, the slope on either side is flat;
a root next to zero is steep, and what its argument loses there is next to nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.batching import FEWEST
from pytest_fp16.engine.prediction.random_rounding import NOISE_RUNS
from pytest_fp16.engine.prediction.reverse import NotDifferentiableError
from pytest_fp16.engine.prediction.theory_batch import TheoryBatch
from pytest_fp16.engine.prediction.tracer import Tracer
from pytest_fp16.engine.tracing.trace import Trace
from pytest_fp16.theory.margin import lost_values
from pytest_fp16.theory.standardised import FLOAT32_NOISE, spread_allowed

#: Mean square of errors over that predicted, at most. Of independent normal errors it is one on
#: average; where a single input has them all, it is above this once in 16,000.
MOST = 16.0
#: The same, at least. A single normal error is as small as that once in thirty times.
LEAST = 1 / 600
#: Of `NOISE_RUNS` runs the mean square of an input's errors over that predicted, at least: that of
#: as many normal errors is smaller once in 7,500 times.
LEAST_OF_RUNS = 1 / 16
#: An input is looked at alone whose σ is this many times the median, and that has as large a part
#: of all squared errors as this: of such there are fewer than ten.
STEEP, PART = 10.0, 0.1


def require_first_order(
    tracer: Tracer,
    part: tuple[Any, int, list[int], Tensor],
    seed: int,
    plain: tuple[Trace, Tensor],
    sigma: Tensor,
) -> None:
    """Compare a reverse pass over some inputs of a batch with one run rounded at random.

    Args:
        tracer: of the candidate.
        part: the batch's inputs, their number, the indices looked at, and of those that count the
            reference's canonical logits, [kept, P, C].
        seed: of the batch.
        plain: the trace of these inputs, with its canonical logits.
        sigma: what the reverse pass predicts for their margins, [kept, 1].

    Raises:
        NotDifferentiableError: errors are much larger than predicted, or much smaller, or outputs
            are lost: a variance of two sums may be negative, and has no root.
    """
    inputs, n, indices, reference = part
    kept, task = len(reference), tracer.task
    generator = torch.Generator(device=tracer.device).manual_seed(seed)
    with tracer.totals_apart():
        noisy = tracer.trace_part(inputs, n, indices, seed, noise=generator)[1].detach()[:kept]
    trace, was = plain[0], plain[1].detach()[:kept]
    if bool(lost_values(was, noisy).any()):
        raise NotDifferentiableError("a run rounded at random loses outputs")
    error = task.margins(noisy, reference) - task.margins(was, reference)
    expected = sigma.square() + (FLOAT32_NOISE * task.magnitude(was)).square()
    usable = error.isfinite() & expected.isfinite() & ~trace.doubts.undecided[:kept, None]
    found, predicted, alone = (
        float(v[usable].double().sum()) for v in (error.square(), expected, sigma.square())
    )
    most = MOST if task.decides else _most_of_values(expected[usable].double())
    if found > most * predicted or found < LEAST * alone:
        times = f"{(found / predicted) ** 0.5:.2g} times as far as" if predicted else "where"
        tail = "" if predicted else " no error"
        raise NotDifferentiableError(
            f"a run rounded at random errs {times} first order predicts{tail}"
        )


def _most_of_values(expected: Tensor) -> float:
    """`MOST` of values, whose squared error is what is lost: what the verdict grants their spread.

    Args:
        expected: the squared errors predicted. Where a few are large, it is as if there were few.
    """
    squares = float(expected.square().sum())
    alike = round(float(expected.sum()) ** 2 / squares) if squares else 1
    return min(MOST, spread_allowed(max(1, alike)) ** 2)


def settle_steep(
    tracer: Tracer, said: TheoryBatch, inputs: Any, n: int, reference: Tensor, seed: int
) -> TheoryBatch:
    """Values' σ, where a few inputs have most of what is lost, by runs that are rounded at random.

    The direction of features that are next to none is as steep as they are small, and yet can do
    no more than turn. One such input would be all that a forecast tells.

    Args:
        tracer: of the candidate.
        said: what a reverse pass predicts for the batch.
        inputs, n, reference, seed: the batch; see `noise_batch`.

    Raises:
        NotDifferentiableError: the model does not run on a part of a batch.
    """
    if tracer.task.decides:
        return said  # a flip costs one at most
    sigma = said.sigma[:, 0].double()
    large = sigma.square() > PART * sigma.square().sum()
    steep = (large & (sigma > STEEP * sigma.median())).nonzero().flatten().tolist()
    if not steep:
        return said
    indices = (steep * FEWEST)[: max(len(steep), min(n, FEWEST))]
    rows, settled = reference[indices], said.sigma.clone()
    generator = torch.Generator(device=tracer.device).manual_seed(seed)
    with tracer.totals_apart():
        plain = tracer.trace_part(inputs, n, indices, seed, adjoint=False)[1].detach()
        was = tracer.task.margins(plain, rows)
        squares = torch.zeros_like(was)
        for _ in range(NOISE_RUNS):
            run = tracer.trace_part(inputs, n, indices, seed, noise=generator)[1].detach()
            squares += (tracer.task.margins(run, rows) - was).square()
    found = squares[: len(steep)] / NOISE_RUNS
    flat = found < LEAST_OF_RUNS * settled[steep].square()
    settled[steep] = torch.where(flat, found.sqrt(), settled[steep])
    return replace(said, sigma=settled)
