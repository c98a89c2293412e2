"""What a cure costs in speed: by the clock where 16 bits run natively, by counting elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from pytest_fp16.engine.arithmetic import Arithmetic
from pytest_fp16.engine.candidate import Candidate
from pytest_fp16.report.model import Price
from pytest_fp16.speed import pass_of, race, ratio

if TYPE_CHECKING:
    from pytest_fp16.evaluation.evidence import Kept
    from pytest_fp16.evaluation.precision_run import PrecisionRun
    from pytest_fp16.evaluation.run import EvaluationRun


def price_of(run: EvaluationRun, precision_run: PrecisionRun, cured: Candidate) -> Price | None:
    """The price of a cure that passed; None where the cured model cannot be run once more.

    Args:
        run: the evaluation.
        precision_run: the candidate that failed.
        cured: a fresh candidate, cured.
    """
    kept = precision_run.outcome.kept
    assert kept is not None, "unreachable: there was something to diagnose"
    emulated = precision_run.mode == "emulated"
    share = _share(cured, kept, emulated)
    if share is None:
        return None
    before = None if precision_run.failure else _share(precision_run.candidate, kept, emulated)
    price = Price(float32_share=share, float32_share_before=before)
    return price if emulated else price.model_copy(update=_times(run, precision_run, cured))


def _share(candidate: Candidate, kept: Kept, emulated: bool) -> float | None:
    """The share of the arithmetic that a candidate does in float32 on the inputs that were kept."""
    counted = Arithmetic()
    try:
        candidate.outputs(kept.inputs, kept.seed, emulated=emulated, observer=counted)
    except Exception:  # no price is no reason to lose the cure
        return None
    return counted.float32_share


def _times(run: EvaluationRun, precision_run: PrecisionRun, cured: Candidate) -> dict[str, float]:
    """Cured, uncured and reference take turns on the first batch."""

    def passing(candidate: Candidate) -> Callable[[], object]:
        return pass_of(candidate.model, candidate.precision, run.subject, run.device)

    runs = {"cured": passing(cured), "reference": passing(run.reference)}
    if not precision_run.failure:
        fresh = run.candidates.made(
            precision_run.precision.name, like=precision_run.candidate
        )  # it has no hooks
        runs["uncured"] = passing(fresh)
    cuda = [run.device] if run.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda):
            times = race(runs)
    except Exception:  # as above
        return {}
    found = {"speedup": ratio(times["reference"], times["cured"])}
    if "uncured" in times:
        found["slowdown"] = ratio(times["cured"], times["uncured"])
    return found
