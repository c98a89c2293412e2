"""What is followed along the trajectory, and then alone, to the end of the training."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pytest_fp16.engine.gradients.probes.course import SEED, Course
from pytest_fp16.engine.gradients.probes.optimizer_probe import Recorder, probed
from pytest_fp16.engine.gradients.probes.statistics_probe import StatisticsRecorder
from pytest_fp16.engine.gradients.probes.steady_probe import Steady, SteadyRecorder
from pytest_fp16.engine.training.trainee import Trainee
from pytest_fp16.precision import Precision

if TYPE_CHECKING:
    from pytest_fp16.engine.gradients.evidence import Evidence


class Alone:
    """The gradients, running statistics and steady buffers of a 32-bit trajectory.

    Under autocast these stay in float32: nothing is kept.
    """

    def __init__(self, exact: Trainee, precision: Precision) -> None:
        self.exact, self.precision = exact, precision
        self.recorder = Recorder(exact)
        self.statistics = StatisticsRecorder(exact.model)
        self.steady = SteadyRecorder(exact.model)

    def keep(self) -> None:
        """A step has been made."""
        if self.precision.mixed:
            return
        self.statistics.keep()
        self.steady.keep()

    def followed(
        self,
        evidence: Evidence,
        course: Course,
        make: tuple[Callable[[], Trainee], Callable[[], Trainee]],
    ) -> None:
        """Add to the evidence where each ends, in a true precision.

        Args:
            make: makes the reference and the candidate as they start.
        """
        self.recorder.handle.remove()
        if self.precision.mixed:
            return
        dtype: Any = self.precision.dtype
        evidence.lags = self.statistics.lags(course.total, dtype)
        evidence.optimizer = probed(self.exact, self.recorder, course.total, dtype)
        if evidence.broke is None:
            steps = course.length, course.total
            asked = Steady(make, self.exact, course.any, course.extra, steps, SEED)
            evidence.stalled = asked.stalled(self.steady.paces())
