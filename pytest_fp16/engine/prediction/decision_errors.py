"""How far rounding moves the values that a model decides on, found by a few runs rounded at random.

A comparison has no gradient, so the reverse pass does not say it; and the spacing of the format at
a difference near zero says nothing of the errors of what was subtracted.
"""

from __future__ import annotations

from typing import Any

import torch

from pytest_fp16.engine.prediction.tracer import Tracer
from pytest_fp16.engine.tracing.decisions import Errors, Operands

_RUNS = 4


def decision_errors(tracer: Tracer, inputs: Any, n: int, indices: list[int], seed: int) -> Errors:
    """The predicted errors of what each decision compares, from some inputs of a batch.

    Raises:
        NotDifferentiableError: the model does not run on a part of a batch.
    """
    generator = torch.Generator(device=tracer.device).manual_seed(seed)

    def operands(**options: Any) -> Operands:
        trace, _ = tracer.trace_part(inputs, n, indices, seed, collect=True, **options)
        return trace.doubts.operands

    plain = operands(adjoint=False)
    squares = [0.0] * len(plain)
    for _ in range(_RUNS if plain else 0):
        noisy = operands(noise=generator)
        for i, ((key, was), (other, now)) in enumerate(zip(plain, noisy, strict=False)):
            if key == other and was.shape == now.shape:
                squares[i] += float((now - was).nan_to_num(0, 0, 0).square().mean())
    return [(key, (s / _RUNS) ** 0.5) for (key, _), s in zip(plain, squares, strict=True)]


def learn_decisions(tracer: Tracer, inputs: Any, n: int, seed: int) -> None:
    """Predict, on the first few inputs of a batch, the error of what the model decides on.

    Raises:
        NotDifferentiableError: as `decision_errors`.
    """
    tracer.errors = decision_errors(tracer, inputs, n, list(range(5 if n >= 7 else 1)), seed)
    tracer.totals.clear()
