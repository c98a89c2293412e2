"""σ where no reverse pass applies: the program run several times, rounded at random."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.device import is_out_of_memory
from pytest_fp16.engine.emulation.wording import comes_of_values
from pytest_fp16.engine.prediction.decision_errors import learn_decisions
from pytest_fp16.engine.prediction.reverse import NotDifferentiableError
from pytest_fp16.engine.prediction.theory_batch import PROBABLE_SIGMAS, TheoryBatch, require_shape
from pytest_fp16.engine.prediction.tracer import Tracer
from pytest_fp16.theory.margin import lost_values

#: How many runs.
NOISE_RUNS = 8


def noise_batch(tracer: Tracer, inputs: Any, n: int, reference: Tensor, seed: int) -> TheoryBatch:
    """Theory for one batch of n inputs with the reference's canonical logits [N, P, C]."""
    task = tracer.task
    detailed = not tracer.totals
    trace, plain = tracer.trace(inputs, n, seed, adjoint=False, detailed=detailed)
    if trace.doubts.decisions and not tracer.errors and _learned(tracer, inputs, n, seed):
        trace, plain = tracer.trace(inputs, n, seed, adjoint=False, detailed=detailed)
    plain = plain.detach()
    require_shape(plain, reference)
    margin = task.margins(plain, reference)
    squares, classes, lost, runs, last = torch.zeros_like(margin), [], [], 0, plain
    moved, moved_squares = torch.zeros_like(plain), torch.zeros(len(plain), device=plain.device)
    for run in _runs(tracer, inputs, n, seed, reference):  # reduced at once: a vocabulary is large
        if run is None:
            lost.append(torch.ones((), dtype=torch.bool, device=plain.device))
            classes.append(torch.full(plain.shape[:2], -1, device=plain.device))
            continue
        runs, last = runs + 1, run
        lost.append(lost_values(reference, run).any())
        squares += (task.margins(run, reference) - margin).square_()
        if task.decides:
            classes.append(run.argmax(-1).masked_fill_(run.sum(-1).isnan(), -1))
        else:
            moved += run - plain
            moved_squares += (run - plain).square_().flatten(1).sum(1)
    # Divided by R − 2, the mean square of errors over σ is one although σ is estimated itself.
    sigma, times = (squares / max(runs - 2, 1)).sqrt_(), max(runs, 1)
    sigma = sigma if runs else torch.full_like(sigma, torch.inf)
    none = torch.zeros_like(margin, dtype=torch.bool)
    undecided = trace.doubts.undecided
    return TheoryBatch(
        logits=plain,
        margin=margin,
        sigma=sigma,
        bound=None,
        bounded=none,
        probable=margin > PROBABLE_SIGMAS * sigma if task.decides else none.clone(),
        overflowed=trace.recorder.overflowed,
        undecided=undecided[:n] if len(undecided) == n else undecided.new_zeros(n),
        noisy_classes=torch.stack(classes) if task.decides else None,
        noisy_logits=last,
        noisy_lost=torch.stack(lost),
        **({} if task.decides else _values(plain, moved / times, moved_squares / times)),
    )


def _runs(
    tracer: Tracer, inputs: Any, n: int, seed: int, reference: Tensor
) -> Iterator[Tensor | None]:
    """The outputs of each run; None where its values have stopped the program, or their number.

    Raises:
        OtherShapeError: half of the runs give another number of values than the reference.
    """
    noise, reshaped = torch.Generator(device=tracer.device).manual_seed(seed), 0
    for _ in range(NOISE_RUNS):
        run = _rounded(tracer, inputs, n, seed, noise)
        if run is None or run.shape == reference.shape:
            yield run
            continue
        reshaped += 1
        if 2 * reshaped >= NOISE_RUNS:
            require_shape(run, reference)
        yield None


def _rounded(
    tracer: Tracer, inputs: Any, n: int, seed: int, noise: torch.Generator
) -> Tensor | None:
    """The outputs of a run rounded at random; None where its values have stopped the program."""
    try:
        return tracer.trace(inputs, n, seed, noise=noise)[1].detach()
    except Exception as error:
        if is_out_of_memory(error) or not comes_of_values(error):
            raise
        return None


def _learned(tracer: Tracer, inputs: Any, n: int, seed: int) -> bool:
    """Whether the errors of what the model decides on are known now: of masks there are none."""
    try:
        learn_decisions(tracer, inputs, n, seed)
    except NotDifferentiableError:  # a batch that cannot be cut: they stay bounded by ulps
        return False
    return True


def _values(plain: Tensor, moved: Tensor, square: Tensor) -> dict[str, Tensor]:
    """Mean and scatter of values from how far, and how far squared, they moved on average.

    Their squared error depends on both: a value that another decision inside the model moves is
    as often moved towards the label as away from it, which σ alone does not tell.
    """
    scatter = square - moved.square().flatten(1).sum(1)
    return {"average": plain + moved, "scatter": scatter.clamp(min=0)}
