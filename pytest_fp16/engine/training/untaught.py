"""Whether a 32-bit training learned anything that 16 bits could lose."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from pytest_fp16.engine.training.score import Score
from pytest_fp16.report.figures import loss_of, value_of
from pytest_fp16.theory.budget import guessed

#: What to do about it, in a report.
ADVICE = "train longer, mend the recipe, or pass metric= that shows what is learned"

#: From guessing to perfect: a run that came this far learned, whatever others did.
HALF_WAY = 0.5


def learned_nothing(scores: Sequence[Score | None]) -> str | None:
    """Why a comparison with these 32-bit runs proves nothing; None where they learned.

    Two trainings that learned nothing are equivalent whatever rounding does to them. A metric of
    the user's own has no chance level that is known here, and is not judged.
    """
    found = [s for s in scores if s is not None and math.isfinite(s.value)]
    if not found:
        return None
    values = [s.value for s in found]
    mean = statistics.fmean(values)
    # Networks that learned nothing differ by more than their inputs' sampling does.
    spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    if found[0].majority is None:
        if found[0].name != "R²" or mean > spread or max(values) > HALF_WAY:
            return None
        return f"the 32-bit training learned nothing: R² {mean:.3g}, a constant has 0; {ADVICE}"
    classes = max(found[0].predictions.shape[-1], 1)
    chance = 1 / classes
    half_way = chance + HALF_WAY * (1 - chance)
    if mean <= guessed(classes, found[0].inputs) + spread and max(values) <= half_way:
        level = f"guesses have {chance:.1%}"
    elif all(_says_one(score) for score in found):
        level = f"every decision is the commonest label, {found[0].majority:.1%}"
    else:
        return None
    return f"the 32-bit training learned nothing: accuracy {mean:.1%}, {level}; {ADVICE}"


def remarked(score: Score) -> str | None:
    """The warning where decisions are no better than one label for all; rare ones may be right."""
    if score.majority is None or not score.value <= score.majority + score.resolution:
        return None
    return (
        f"the 32-bit training is near chance: accuracy {score.value:.1%}, the commonest label "
        f"alone {score.majority:.1%}; a verdict on it says little, train longer"
    )


def _says_one(score: Score) -> bool:
    """Whether every decision is the same, and no better than the commonest label."""
    if score.majority is None or not score.predictions.numel():
        return False
    one = len(score.predictions.argmax(-1).unique()) == 1
    return one and score.value <= score.majority + score.resolution


def unmoved(start: float, trained: float, budget: float, wide: bool, name: str) -> str | None:
    """Why a loss within the budget proves nothing about a training; None where it does.

    Args:
        start: the metric of the weights that training starts from.
        trained: the metric of the 32-bit runs.
        budget: the loss that would pass.
        wide: the budget is a default one, which the spread of the 32-bit runs has made wide.
        name: of the metric, which says how its values are told.
    """
    gain = trained - start
    if not math.isfinite(gain):
        return None
    came = f"from {value_of(name, start)} to {value_of(name, trained)}"
    would_pass = loss_of(name, budget)
    if gain < -budget:
        return (
            f"the 32-bit training lowers the metric, {came}: higher is better; is its sign right?"
        )
    if wide and budget > gain / 2:
        return (
            f"the 32-bit runs differ so much over seeds that a loss of {would_pass} would pass, "
            f"which is more than half of what training brings ({came}); steady the training, or "
            "set a budget"
        )
    if gain <= budget:
        return (
            f"the 32-bit training brings the metric {came}, so that one which changes nothing "
            f"would pass a budget of {would_pass}; set a smaller one, {ADVICE}"
        )
    return None
