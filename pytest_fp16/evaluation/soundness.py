"""What is refused, or remarked, of data and reference before long work starts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.candidate import Candidate
from pytest_fp16.engine.containers import all_tensors, foreign
from pytest_fp16.engine.use import IGNORED
from pytest_fp16.errors import DataError, ModelError, SettingError
from pytest_fp16.metric.own import first_look
from pytest_fp16.metric.tallies import Accuracy, RSquared
from pytest_fp16.report.model import Check
from pytest_fp16.task import Task
from pytest_fp16.theory.budget import accuracy_error, guessed

if TYPE_CHECKING:
    from pytest_fp16.evaluation.run import EvaluationRun

#: Labelled decisions from which a reference can be told from chance.
_ENOUGH_FOR_CHANCE = 64
#: Labelled values from which their errors' own spread is known, and standard errors beyond doubt.
_ENOUGH_FOR_ERRORS = 8
_DOUBTFUL = 2.0
#: Tasks whose labels name what is right, among few.
_NAMING = ("classification", "multilabel")
#: From guessing to perfect: a first batch that shows less, for sure, ends the check at once.
_POOR = 0.1
_SURE = 3.0
#: Checks that a reference which does not repeat itself may fail.
_OF_ERRORS = ("as predicted", "good enough")
#: At least half of a candidate's squared error is then the reference's own.
_AT_MOST = 2.0


def require_data(data: Any) -> None:
    """Refuse data that can be drawn only once, or not at all.

    Raises:
        DataError: an iterator or generator, or something that does not iterate.
    """
    try:
        iterator = iter(data)
    except TypeError:
        made = "; pass what it makes, if that yields more than once" if callable(data) else ""
        raise DataError(
            f"data must yield batches (a DataLoader, a list); got {type(data).__name__}{made}"
        ) from None
    if iterator is data:
        raise DataError(
            f"data yields its batches once only ({type(data).__name__}); pass a DataLoader, a "
            "list, or an object whose __iter__ starts anew"
        )


def require_finite(score: float) -> None:
    """Refuse a metric of the user's own that says nothing of the reference.

    Raises:
        DataError: its mean is NaN or infinite, so that no loss can be told from it.
    """
    if not math.isfinite(score):
        raise DataError(
            f"metric= is {score} on the float32 outputs already (a mean over nothing, a logarithm "
            "of no error?); clamp what it returns, one finite score per input"
        )


def require_no_nan(output: Tensor) -> None:
    """Refuse a reference whose outputs of the first batch are no numbers.

    Raises:
        ModelError: some are NaN.
    """
    if bool(output.isnan().any()):
        raise ModelError(
            f"the reference itself returns NaN in float32 ({int(output.isnan().sum())} of "
            f"{output.numel()} outputs of the first batch); mend the model or its inputs first"
        )


def require_use(reference: Candidate, calls: list[None], inputs: Any, seed: int) -> None:
    """Refuse a `forward` that runs another model than the one it is given.

    Args:
        reference: in float32.
        calls: of it in its run of the first batch. Those of a model that a function gave out may
            be of the very one that `forward` knows from outside.
        inputs, seed: of the first batch.

    Raises:
        SettingError: every precision would run that other model.
    """
    subject = reference.subject
    if subject.forward is None or (calls and isinstance(subject.model, nn.Module)):
        return
    if reference.ignored(inputs, seed):
        raise SettingError(IGNORED)


def require_better_than_chance(task: Task, output: Tensor, labels: Any, n: int) -> None:
    """Refuse a classifier that guesses: its decisions say nothing of what 16 bits change.

    A first batch may be small, or all of one class: only one that leaves no doubt is enough.

    Args:
        task: how outputs and labels are read.
        output, labels: the reference's raw output and the labels of the first batch.
        n: its inputs.

    Raises:
        ModelError: its accuracy is near chance, whatever its error on so few of them.
    """
    if task.kind not in _NAMING:
        return
    logits = task.canonical(output)
    targets = task.canonical_labels(labels, n)
    assert targets is not None, "unreachable: labelled"
    valid = targets != task.ignore_index
    count, classes = int(valid.sum()), logits.shape[-1]
    if count < _ENOUGH_FOR_CHANCE or len(targets[valid].unique()) < max(2, classes / 2):
        return
    right = int((logits.argmax(-1) == targets)[valid].sum())
    most = (right + 2) / (count + 4) + _SURE * accuracy_error(right, right, count)
    if most <= 1 / classes + _POOR * (1 - 1 / classes):
        raise ModelError(
            f"the reference is near chance: accuracy {right / count:.1%} on the first {n} inputs, "
            f"chance is {1 / classes:.1%}; "
            + _what_to_do(task.kind == "classification" and count > n)
        )


def _what_to_do(tokens: bool) -> str:
    shifted = ", is a token's label the next one (shifted)" if tokens else ""
    return (
        f"is the model trained, are labels and inputs in order{shifted}? (inputs alone, with "
        "labelled=False, are compared without labels)"
    )


def guesses(task: Task, tally: Any, classes: int) -> str | None:
    """Why equal answers of the two precisions prove nothing; None where the reference knows some.

    Args:
        task: how outputs and labels are read.
        tally: the reference's labelled decisions.
        classes: among how many each decides.
    """
    if isinstance(tally, RSquared):
        return _worse_than_a_constant(tally)
    if task.kind not in _NAMING or not isinstance(tally, Accuracy):
        return None
    if tally.count < _ENOUGH_FOR_CHANCE:
        return None
    if task.kind == "multilabel" and tally.says_one:
        level = "every decision is the same"
    elif tally.value <= guessed(classes, tally.count):
        level = f"chance is {1 / classes:.1%}"
    else:
        return None
    what = _what_to_do(task.kind == "classification" and tally.count > tally.inputs)
    return (
        f"the reference is near chance: accuracy {tally.value:.1%}, {level}; "
        f"what knows nothing loses nothing; {what}"
    )


def _worse_than_a_constant(tally: RSquared) -> str | None:
    if tally.count < _ENOUGH_FOR_ERRORS or tally.below_a_constant <= _DOUBTFUL:
        return None
    return (
        f"the reference is worse than a constant: R² {tally.value:.3g}, a constant has 0; what "
        "knows nothing loses nothing; is the model trained, are labels and inputs in order, in "
        "the same units? (inputs alone, with labelled=False, are compared without labels, and "
        "metric= may show what it knows)"
    )


def explained(checks: Iterable[Check], error: float, own: float) -> str | None:
    """Why a failure proves nothing; None where it is the candidate's.

    Args:
        checks: of the candidate.
        error, own: the candidate's squared error, and that of a second run of the reference, as
            shares of the outputs' variance.
    """
    if any(c.name not in _OF_ERRORS for c in checks if not c.passed):
        return None
    if not own or error > _AT_MOST * own:
        return None
    return (
        f"the reference does not repeat itself: its own second run is off by {own**0.5:.0%} of the "
        f"outputs' spread, the candidate by {error**0.5:.0%}; seed what it draws from"
    )


def unsteady(metric: Any, output: Tensor, labels: Any, n: int) -> list[str]:
    """A remark on a metric that draws: 16 bits and 32 are then judged by different dice."""
    first, again = (torch.tensor(first_look(metric, output, labels, n)) for _ in range(2))
    if torch.equal(first.nan_to_num(), again.nan_to_num()):
        return []
    return [
        "metric= is not deterministic: it scores the same outputs otherwise when it is asked again"
    ]


def require_same_kind(labelled: bool, labels: Any, number: int) -> None:
    """A batch without labels among others would count as answered right by the reference.

    Raises:
        DataError: the batch of that number has none, and those before it have.
    """
    if labelled and labels is None:
        raise DataError(
            f"batch {number} holds no labels, but those before it do; yield (inputs, labels) "
            "or a dict with 'labels' each time, or inputs alone with labelled=False"
        )


def require_label_each(inputs: Any, labels: Any, n: int, output: Tensor) -> None:
    """Labels by another number than the inputs are no fault of the model's.

    Args:
        inputs: of a batch.
        labels: of a batch.
        n: inputs as they were counted, by the labels if there are any.
        output: the reference's.

    Raises:
        DataError: the model answers each input, and the labels are fewer or more.
    """
    if not isinstance(labels, Tensor) or not output.dim() or output.shape[0] == n:
        return
    first = next((t for t in all_tensors(inputs) if t.dim()), None)
    if first is not None and first.shape[0] == output.shape[0]:
        raise DataError(
            f"a batch holds {first.shape[0]} inputs and {n} labels; yield one label for each input"
        )


def after_the_data(run: EvaluationRun) -> list[str]:
    """Warnings of what the data held, once all of it has been seen.

    Raises:
        DataError: nothing that counts.
    """
    if not run.inputs:
        raise DataError("data is empty: it yielded no batch; a verdict needs inputs")
    if isinstance(run.totals.tally, Accuracy) and not run.totals.tally.count:
        raise DataError(
            f"no decision counts: every label is ignore_index ({run.subject.ignore_index})"
        )
    said = []
    if run.left_out:
        said.append(
            f"{run.left_out} batches were left out: their first tensor has no rows; inputs "
            "are counted by it where there are no labels"
        )
    if run.beyond:  # minus infinity is what a mask is for
        said.append(
            f"{run.beyond} outputs of the reference itself are NaN or infinite in float32; "
            "what 16 bits do to them cannot be told"
        )
    return said


def handed_on(inputs: Any) -> list[str]:
    """The warning that a batch holds objects whose tensors nobody can convert."""
    if not (kinds := foreign(inputs)):
        return []
    return [
        f"the inputs hold an object of type {', '.join(kinds)}, which is handed on as it is: "
        "floating tensors in it stay float32; cast them in forward=, or yield tensors, tuples, "
        "dicts or dataclasses"
    ]
