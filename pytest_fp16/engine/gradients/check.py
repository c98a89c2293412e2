"""The gradient check: a forecast of a training in 16 bits, from a few gradients and steps.

Along a short 32-bit trajectory the candidate's gradient, always emulated, is held against the
reference's; the first steps are made in both precisions; and the optimizer alone is run to the end
on a sample of the weights. A longer look may follow (docs/explanation/gradient-check.md).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.emulation.wording import told
from pytest_fp16.engine.gradients.evidence import (
    Broke,
    Evidence,
    count_in,
    float_tensors,
    least_epsilon,
    lost_epsilon,
    lost_in_the_cast,
    note_copies,
    weights_finite,
)
from pytest_fp16.engine.gradients.origins.lost_digits import lost_digits
from pytest_fp16.engine.gradients.origins.lost_gradients import (
    changed_by_scaled_steps,
    look_behind,
    not_skipped,
    skipped_share,
)
from pytest_fp16.engine.gradients.origins.own_checks import (
    SHOWN,
    counted,
    decides,
    failing,
    rounded_index,
)
from pytest_fp16.engine.gradients.points import TRIED, beyond_range, examine_point, gradients
from pytest_fp16.engine.gradients.probes.alone import Alone
from pytest_fp16.engine.gradients.probes.course import SEED, Course, Tell
from pytest_fp16.engine.gradients.probes.evaluated import evaluated, metric_lost
from pytest_fp16.engine.gradients.probes.guards import Guards, lost_guards
from pytest_fp16.engine.gradients.probes.infinite_loss import returns_into_range
from pytest_fp16.engine.gradients.probes.late_failures import Outlook, fails_late
from pytest_fp16.engine.gradients.probes.second_look import applied_step, exact_step, longer_look
from pytest_fp16.engine.gradients.probes.watched_steps import Replays, watched
from pytest_fp16.engine.gradients.rules.rules import gradient_is_lost
from pytest_fp16.engine.gradients.rules.second_look_rules import needs_longer_look
from pytest_fp16.engine.gradients.rules.step_rules import stuck
from pytest_fp16.engine.gradients.rules.verdict import GradientFindings, conclude
from pytest_fp16.engine.randomness import preserved_state, seed_everything
from pytest_fp16.engine.source import raised_at
from pytest_fp16.engine.training.order import preserved_generators
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.precision import REFERENCE, Precision
from pytest_fp16.settings import Settings
from pytest_fp16.subject import Training
from pytest_fp16.theory.rounding import FORMATS

__all__ = ["GradientFindings", "gradient_check"]

_LOST_WEIGHT = "a weight is not finite after the optimizer's step"
_EMPTIED = 3  # batches without what a lost guard is added to that are tried in 16 bits


def gradient_check(
    subject: Training,
    precision: Precision,
    settings: Settings,
    device: torch.device,
    tell: Tell | None = None,
) -> GradientFindings:
    """Forecast whether training in `precision` is equivalent; global state is left as it was.

    Args:
        subject: the training; nothing of it is changed.
        precision: the candidate.
        settings: its target is the device the emulation speaks for.
        device: where it runs.
        tell: called with how many batches have been taken, for each.

    Raises:
        DataError: the training data yields no batches.
        FP16Error: as `Trainee`, for a model or optimizer that cannot be used.
    """
    with preserved_state(), preserved_generators(subject.train_data), torch.enable_grad():
        check = _Check(Course(subject, tell), precision, Place(device, settings.target))
        return conclude(check.run(), precision)


class _Check:
    def __init__(self, course: Course, precision: Precision, place: Place) -> None:
        self.course, self.subject, self.precision = course, course.subject, precision
        self.state, self.losses = initial_state(self.subject, SEED), list[float]()
        self.exact = Trainee(self.subject, REFERENCE, SEED, self.state, place)
        low = replace(place, emulated=True)
        self.replays = Replays(self.exact, self.state, precision, low, SEED)
        self.evidence = Evidence(FORMATS[precision.dtype], cast=not precision.mixed)
        self.evidence.total_steps = self.course.total
        self.outlook = Outlook()

    def _candidate(self) -> Trainee:
        return self.replays.fresh()

    def _reference(self) -> Trainee:
        return Trainee(self.subject, REFERENCE, SEED, self.state, self.exact.place)

    def run(self) -> Evidence:
        """Trajectory, points, first steps, and the optimizer alone."""
        evidence = self.evidence
        first, extra = self.course.first, self.course.extra
        evidence.batch_size = max(map(count_in, extra))
        candidate = self._candidate()
        evidence.epsilon = lost_epsilon(candidate)
        evidence.least_epsilon = least_epsilon(candidate)
        evidence.lost_weights = lost_in_the_cast(self.state, candidate)
        with candidate.installed():
            evidence.broke = self._point(candidate, extra, 0)
            if evidence.broke is None:
                seed_everything(0)
                evidence.guards = lost_guards(self._candidate(), extra[0], evidence.format)
                make = self._reference, self._candidate
                alone = self._trajectory(candidate, extra)
                alone.followed(evidence, self.course, make)
                if evidence.broke is None and decides(candidate, extra[0]):
                    evidence.broke = self._fails(candidate)
                if evidence.broke is None:
                    evidence.stepped = self.replays.beyond_range(extra, first)
                    counts = counted(self.exact, candidate, extra[0], evidence.format)
                    evidence.miscount, evidence.changed = counts
                    self._second_look(extra)
                    evidence.evaluated = evaluated(self.exact, candidate, self.exact.applied)
                    if metric_lost(evidence.evaluated) and evidence.digits is None:
                        evidence.digits = lost_digits(self.exact, candidate, extra[0])
        return evidence

    def _point(self, candidate: Trainee, extra: list[Any], step: int) -> Broke | None:
        roundoff = self.evidence.format.unit_roundoff
        try:
            point = examine_point(self.exact, candidate, extra, step, roundoff)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            gradients(self.exact, extra[0], 0)  # what 32 bits raise too is the user's: passed on
            return self._raised(error, extra[0])
        self.evidence.points.append(point)
        if point.left_out:
            return "the loss has no gradient", self.replays.cause_in(extra)
        if point.skipped and candidate.scaler is not None and self.evidence.skipped is None:
            shown = list(itertools.islice(self.course.any(), SHOWN))
            share = skipped_share(self.exact, candidate, [*extra, *shown])
            self.evidence.skipped = share, self.replays.cause_in(extra)
        self.outlook.note(self.exact, extra, step)
        if point.finite and all(math.isfinite(c) or not math.isfinite(r) for r, c in point.losses):
            if gradient_is_lost(point):
                found = self.replays.here([extra[0]]).swallowed
                scale = point.scale if candidate.scaler is not None else None
                look_behind(self.evidence, self.exact, extra[0], scale, found)
                digits = self.evidence.digits
                self.evidence.digits = digits or lost_digits(self.exact, candidate, extra[0])
            return None
        if beyond_range(point) and (
            step < self.course.length
            or returns_into_range(self.replays, self.evidence.points, self.losses, self.course)
        ):
            return None  # what is trained does not feel it, and it returns into the range
        origin = self.replays.cause_in(extra[:TRIED])
        return f"the {'loss' if point.finite else 'gradient'} is not finite", origin

    def _raised(self, error: Exception, batch: Any, drawn: int = 0) -> Broke:
        """What the candidate raised at the reference's weights, and where."""
        self._note(error, batch)
        watch = self.replays.here([batch], drawn=drawn)
        self.evidence.raised_in, self.evidence.raised_by = watch.failed_in, watch.raised_by
        return told(error), watch.behind(error)

    def _note(self, error: Exception, batch: Any) -> None:
        """Where the candidate raised, and whether for an index that was rounded."""
        evidence, low = self.evidence, self._candidate()
        evidence.raised_at = raised_at(error)
        evidence.miscount = rounded_index(error, self.exact, low, batch, evidence.format)

    def _fails(self, candidate: Trainee) -> Broke | None:
        """What the candidate raises with other batches, where it decides by its values."""
        found = failing(self.exact, candidate, self.course.any())
        if found is None:
            return None
        if found.error is not None:
            return self._raised(found.error, found.batch, found.seed)
        origin = self.replays.here([found.batch], drawn=found.seed).cause
        return "the loss of some batches is not finite", origin

    def _trajectory(self, candidate: Trainee, extra: list[Any]) -> Alone:
        """The 32-bit steps, with a point in the middle and at the end."""
        evidence, exact = self.evidence, self.exact
        alone = Alone(exact, self.precision)
        observer, emptied, course = None, 0, self.course
        if evidence.guards:
            observer = Guards(exact.model, self.precision.dtype, evidence.guards)
        points = {max(course.length // 3, 1), course.length}
        half = course.together // 2
        snapshots = [float_tensors(exact)]
        for step in range(course.length):
            held = course.of(step)
            self.losses += exact_step(exact, held, SEED, step, observer)
            if step == 0:
                note_copies(snapshots[0], exact)
            if observer is not None:
                observer.step()
                if observer.emptied and evidence.broke is None and emptied < _EMPTIED:
                    emptied += 1
                    evidence.broke = self._emptied(candidate, held[-1])
            alone.keep()
            if step == 0 or step + 1 in points:
                self.replays.learn_formats(course.first[: (step + 1) * course.every])
            if step + 1 in (half, 2 * half):
                snapshots.append(float_tensors(exact))
            if step + 1 in points and evidence.broke is None:
                evidence.broke = self._point(candidate, extra, step + 1)
        if evidence.broke is None:
            self._sure(candidate, [not_skipped(evidence, candidate, extra), *extra])
            evidence.broke = self._together(course.first[: 2 * half * course.every], snapshots)
        return alone

    def _emptied(self, candidate: Trainee, batch: Any) -> Broke | None:
        """The gradient of a batch for which a lost guard has nothing left beside it."""
        if candidate.scaler is not None:
            return None  # such a step is skipped
        candidate.follow(self.exact)
        try:
            finite = gradients(candidate, batch, 0).finite
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return self._raised(error, batch)
        return None if finite else ("the gradient is not finite", self.replays.here([batch]).cause)

    def _sure(self, candidate: Trainee, batches: list[Any]) -> None:
        """The gradient of outputs that the model gives only once it has learned."""
        found = fails_late(self.exact, candidate, batches, self.outlook, self.evidence.total_steps)
        if found is not None:
            outputs, sure, self.evidence.solved = found
            origin = self.replays.here(batches[:1], sure).cause
            self.evidence.confident = f"the gradient of {outputs} is not finite", origin

    def _together(self, first: list[Any], snapshots: list[dict[str, Tensor]]) -> Broke | None:
        """The first steps once more, in the candidate's precision."""
        candidate, every = self._candidate(), self.course.every
        start, steps = float_tensors(candidate), len(first) // every
        try:
            for step in range(steps):
                batches = first[step * every : (step + 1) * every]
                loss = applied_step(candidate, batches, SEED, step)
                if step == 0:
                    note_copies(start, candidate)
                self.evidence.first_losses.append((self.losses[(step + 1) * every - 1], loss))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self._note(error, batches[-1])
            watch = self.replays.first(first)
            if not weights_finite(candidate.model, float_tensors(candidate)):  # for the step
                return _LOST_WEIGHT, watch.cause
            self.evidence.raised_in, self.evidence.raised_by = watch.failed_in, watch.raised_by
            return told(error), watch.behind(error)
        reached = float_tensors(candidate)  # before it is watched, which may be a step more
        if candidate.scaler is not None and stuck(self.evidence.first_losses):
            self.evidence.stuck = watched(candidate, batches, SEED, since=steps - 1).cause
        if not weights_finite(candidate.model, reached):
            return _LOST_WEIGHT, self.replays.first(first).cause
        self.evidence.compare(self.exact.model, (start, reached), snapshots, steps)
        if candidate.scaler is not None and candidate.by_hand is not None:
            self.evidence.scaled_steps = changed_by_scaled_steps(
                self._reference(), first, every, snapshots
            )
        return None

    def _second_look(self, extra: list[Any]) -> None:
        """Where weights or gradients go another way, and nothing else is wrong: do they learn?"""
        evidence, doubt = self.evidence, needs_longer_look(self.evidence)
        if doubt is None:
            return
        course, exact = self.course, (self._reference(), self.exact)
        streams = course.stream, course.again(), course.again()
        steps = course.length, min(2 * course.length, course.total)
        look = longer_look(exact, self._candidate, streams, extra, SEED, steps, doubt)
        if isinstance(look, str):
            evidence.broke = look, None
        else:
            evidence.second = look
