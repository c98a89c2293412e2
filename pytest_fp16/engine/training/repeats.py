"""Whether a training is a function of its weights, data and seed, or remembers earlier ones.

What a training step, a loss or an optimizer keeps outside the model (a count of steps in a global
list, a criterion's own weights) is shared by all runs: each goes on where another has stopped, and
none is the training that the user meant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.copies import make_model
from pytest_fp16.engine.own_caches import find_caches
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.training.lightning import own_calls
from pytest_fp16.engine.training.modes import to_train
from pytest_fp16.engine.training.order import step_seed
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.errors import SettingError
from pytest_fp16.precision import REFERENCE
from pytest_fp16.subject import Training

#: A relative difference of two losses that a device's order of additions does not make.
_SAME = 1e-4
#: A drift this many times as large as what random draws of the step's own make is none of them.
_DRIFT = 10.0
#: Steps in a row at first, and at the end: what relaxes (an average) does so evenly, no draw does.
_FIRST, _AGAIN = 3, 8


@dataclass
class FirstStep:
    """The first step of seed 0 in 32 bits, made again and again.

    Args:
        subject: the training.
        batch: the first batch.
        place: where it is made.
    """

    subject: Training
    batch: Any
    place: Place

    def __post_init__(self) -> None:
        self.before = self._losses(_FIRST)

    @property
    def draws(self) -> bool:
        """Whether steps in a row are not the same."""
        return any(_differ(*pair) for pair in pairwise(self.before))

    def drift(self) -> str | None:
        """What to say where it is another step by now than it was at first; None where it is not.

        Random draws of the step's own make it another one each time, and drift nowhere. An average
        that is moved by each step comes back evenly: its losses have differences, and those hardly
        any.
        """
        first, *_ = self.before
        after = self._losses(1)
        if math.isnan(after[0]) or not _differ(first, after[0]):
            return None
        after += self._losses(_AGAIN - 1)  # the usual training is spared them
        if not all(map(math.isfinite, after)):
            return None
        if any(not _differ(first, loss) for loss in after):
            return None  # a draw makes it another one now and then
        noise = median([*_bends(self.before), *_bends(after)])
        if abs(first - after[0]) <= _DRIFT * noise:
            return None
        return (
            f"the training remembers earlier runs: its first step, from the same weights on the "
            f"same batch, had a loss of {first:.4g} at first and has {after[0]:.4g} now. "
            "What it counts or learns must be in the model, as a submodule, a buffer or an "
            "attribute, since each run has a model of its own"
        )

    def caches(self) -> list[str]:
        """Look for tables kept outside the model; a warning of each, see `find_caches`."""
        subject, model = self.subject, make_model(self.subject.model)
        return find_caches(model, own_calls(subject, model), lambda: torch.tensor(self._loss()))

    def _losses(self, steps: int) -> list[float]:
        return [self._loss() for _ in range(steps)]

    def _loss(self) -> float:
        """The loss of the step; NaN where it raised."""
        try:
            with torch.enable_grad():
                state = initial_state(self.subject, 0)
                trainee = Trainee(self.subject, REFERENCE, 0, state, self.place)
                to_train(trainee.model)
                with trainee.installed():
                    seed_everything(step_seed(0, 0, 0))
                    return trainee.step(self.batch, last=True)
        except Exception:  # the runs themselves tell of it
            return math.nan


def _bends(losses: list[float]) -> list[float]:
    """Second differences, in size."""
    return [abs(a - 2 * b + c) for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]


def _differ(one: float, other: float) -> bool:
    """Whether two losses are more than one; what was lost twice is not."""
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) != math.isnan(other)
    return not math.isclose(one, other, rel_tol=_SAME)


def require_own_parameters(trainee: Trainee, another: Trainee) -> None:
    """Refuse an optimizer that holds what is not the model's and is not made anew for each run.

    Args:
        trainee, another: two of one training, with a model and an optimizer each.

    Raises:
        SettingError: both would train the same tensors.
    """
    shared = [t for t in foreign(trainee) if any(t is other for other in foreign(another))]
    if not shared:
        return
    shapes = ", ".join(str(tuple(t.shape)) for t in shared[:3])
    raise SettingError(
        f"the optimizer holds {len(shared)} parameter(s) that are not the model's (of shape "
        f"{shapes}{', …' if len(shared) > 3 else ''}): each run has a model of its own, and all "
        "would train these. Make the optimizer of the parameters it is given; what a criterion or "
        "another network learns belongs into the model, as a submodule"
    )


def foreign(trainee: Trainee) -> list[Tensor]:
    """What its optimizer holds that is no parameter of the model."""
    own = {id(p) for p in trainee.model.parameters()}
    held = [p for group in trainee.optimizer.param_groups for p in group["params"]]
    return [p for p in held if id(p) not in own]
