"""Time and memory of one batch at a precision, measured beside the reference.

The timing function is handed in (pytest-benchmark's ``benchmark.pedantic``). Before each of its
rounds the reference runs once on the same clock, so that the ratios come from one process and a
busy machine slows both sides. Models run as their user runs them: TF32, fused paths and fast paths
stay as they are set, because a gain over a reference nobody deploys is no gain.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pytest_fp16.engine.batching import cast_inputs, copied, first_batch, split_batch, to_device
from pytest_fp16.engine.copies import own_model
from pytest_fp16.engine.device import resolve_device
from pytest_fp16.engine.emulation.wording import misses_a_gradient
from pytest_fp16.engine.models import (
    autocast,
    call_as_is,
    prepare,
    taking_gradients,
)
from pytest_fp16.engine.training.modes import to_train
from pytest_fp16.precision import REFERENCE, Precision
from pytest_fp16.precision import precision as precision_of
from pytest_fp16.report.model import Report, Speed
from pytest_fp16.subject import Evaluation, Training

if TYPE_CHECKING:
    from pytest_fp16.settings import Settings

Pedantic = Callable[..., Any]

_SECONDS = 2.0
_FEWEST, _MOST = 5, 50


def clock() -> float:
    """Seconds, once the device has finished what it was given."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()
    return time.perf_counter()


def timed(
    benchmark: Any, group: str, subject: Evaluation | Training, report: Report, settings: Settings
) -> Report:
    """The report with its speed, as a row of that group in pytest-benchmark's table.

    Args:
        benchmark: pytest-benchmark's fixture; where it has timed something already, nothing is.
        group: where its user has named none.
        subject, report, settings: what was examined, with what result, and how.
    """
    if getattr(benchmark, "stats", None) is not None:
        return report
    benchmark.group = getattr(benchmark, "group", None) or group
    try:
        speed = measure(subject, report.precision, settings, benchmark.pedantic)
    except Exception as error:  # a model that fails in 16 bits has its verdict already
        return report.remarked([f"speed could not be measured ({type(error).__name__}: {error})"])
    figures = speed.model_dump(exclude_none=True)
    benchmark.extra_info.update(figures, precision=report.precision, verdict=report.verdict)
    return report.model_copy(update={"speed": speed})


def measure(
    subject: Evaluation | Training,
    precision: str,
    settings: Settings,
    pedantic: Pedantic,
    rounds: int | None = None,
) -> Speed:
    """The time of one batch (of one step, for a training) in native 16 bits and in float32.

    Args:
        subject: model and data; one batch is drawn.
        precision: the candidate.
        settings: device, and the precisions among which a mixed one is compared with its true one.
        pedantic: times a function: called with ``target``, ``setup`` (run before each round),
            ``rounds``, ``warmup_rounds`` and ``iterations``.
        rounds: how often; None for what fits in about two seconds, 5 to 50.

    Returns:
        Medians over the rounds, and the medians of the rounds' ratios.

    Raises:
        DataError: there is no batch.
        Exception: whatever the model raises in 16 bits.
    """
    device = resolve_device(settings.device)
    candidate = precision_of(precision)
    rivals = [REFERENCE, *_mixed_rival(candidate, settings)]
    with _random_state(device):
        works = {p.name: _work(subject, p, device) for p in [*rivals, candidate]}
        peaks = {name: _peak_memory(work, device) for name, work in works.items()}
        times: dict[str, list[float]] = {name: [] for name in works}

        def setup() -> None:
            for rival in rivals:
                times[rival.name].append(_timed(works[rival.name].run))

        def target() -> None:
            times[precision].append(_timed(works[precision].run))

        setup()
        target()
        rounds = rounds or _rounds(sum(t[-1] for t in times.values()))
        pedantic(target, setup=setup, rounds=rounds, warmup_rounds=1, iterations=1)
    kept = {name: seconds[-rounds:] for name, seconds in times.items()}
    return _speed(kept, peaks, precision, rivals[1].name if rivals[1:] else None)


def _speed(
    times: Mapping[str, list[float]],
    peaks: Mapping[str, int | None],
    precision: str,
    mixed: str | None,
) -> Speed:
    """Medians of one precision beside the reference's, and a mixed one's where there is one."""
    own, reference = times[precision], times[REFERENCE.name]
    return Speed(
        seconds=statistics.median(own),
        reference_seconds=statistics.median(reference),
        speedup=ratio(reference, own),
        speedup_over_mixed=ratio(times[mixed], own) if mixed is not None else None,
        peak_memory=peaks[precision],
        reference_peak_memory=peaks[REFERENCE.name],
    )


def race(runs: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of functions that take turns, for as many rounds as fit in about two seconds.

    The first round, in which kernels are chosen and memory is found, is not counted.
    """

    def in_turn() -> dict[str, float]:
        return {name: _timed(run) for name, run in runs.items()}

    in_turn()
    rounds = [in_turn()]
    wanted = _rounds(sum(rounds[0].values()))
    rounds += [in_turn() for _ in range(wanted - 1)]
    return {name: [taken[name] for taken in rounds] for name in runs}


def ratio(slower: list[float], faster: list[float]) -> float:
    """The median over the rounds of one time over the other."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def _mixed_rival(candidate: Precision, settings: Settings) -> list[Precision]:
    """The mixed precision of the candidate's format, where it is selected too."""
    rival = candidate.name.replace("-true", "-mixed")
    return [precision_of(rival)] if rival != candidate.name and rival in settings.precisions else []


def _rounds(seconds: float) -> int:
    return max(_FEWEST, min(_MOST, int(_SECONDS / max(seconds, 1e-9))))


def _timed(run: Callable[[], object]) -> float:
    """Seconds of one run, without whatever traces Python: only one side would be traced."""
    trace = sys.gettrace()
    sys.settrace(None)
    try:
        start = clock()
        run()
        return clock() - start
    finally:
        sys.settrace(trace)


class _Work:
    """One model at one precision with its batch on the device, and how to run it once."""

    def __init__(self, run: Callable[[], object], held: int) -> None:
        self.run = run
        self.held = held


def _work(subject: Evaluation | Training, precision: Precision, device: torch.device) -> _Work:
    before = _allocated(device)
    if isinstance(subject, Training):
        run = _training(subject, precision, device)
    else:
        run = _evaluation(subject, precision, device)
    return _Work(run, _allocated(device) - before)


def _evaluation(
    subject: Evaluation, precision: Precision, device: torch.device
) -> Callable[[], object]:
    return pass_of(prepare(own_model(subject.model), precision, device), precision, subject, device)


def pass_of(
    model: torch.nn.Module, precision: Precision, subject: Evaluation, device: torch.device
) -> Callable[[], object]:
    """A function that takes the first batch through a model that was prepared for a precision.

    Raises:
        DataError: there is no batch.
    """
    inputs, _ = split_batch(first_batch(subject.data, "the data"), subject.holds_labels)
    inputs = copied(to_device(inputs, device))
    if precision.casts:
        inputs = cast_inputs(inputs, precision.dtype, subject.keep_inputs)

    forward = subject.forward

    def run() -> object:
        nonlocal forward
        try:
            with torch.no_grad(), autocast(precision, device, device.type):
                return call_as_is(model, inputs, forward)
        except RuntimeError as error:
            if not misses_a_gradient(error) or forward is not subject.forward:
                raise
        forward = taking_gradients(forward)
        return run()

    return run


def _training(
    subject: Training, precision: Precision, device: torch.device
) -> Callable[[], object]:
    from pytest_fp16.engine.training.place import Place
    from pytest_fp16.engine.training.trainee import Trainee, initial_state

    subject = replace(subject, model=partial(own_model, subject.model))
    place = Place(device, device.type)
    trainee = Trainee(subject, precision, 0, initial_state(subject, 0), place)
    to_train(trainee.model)
    batch = first_batch(subject.train_data, "the data")

    def run() -> object:
        with trainee.installed():
            return trainee.step(batch, last=True)

    return run


def _random_state(device: torch.device) -> Any:
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _peak_memory(work: _Work, device: torch.device) -> int | None:
    """Bytes of model, batch and everything one run allocates; None where torch does not count."""
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work.run()
    clock()
    return work.held + torch.cuda.max_memory_allocated(device) - before
