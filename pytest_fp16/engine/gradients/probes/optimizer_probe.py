"""A long run of the optimizer alone, on a few hundred weights, in 16 bits and in 32.

An optimizer works element by element, so a sample of each tensor shows what happens to its state
over a whole training at a hundredth of the cost: the gradients are those of the 32-bit trajectory,
then its last third again and again.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.gradients.origins.found import Found
from pytest_fp16.engine.gradients.origins.origin import OriginWatch
from pytest_fp16.engine.source import entrance
from pytest_fp16.engine.training.guard import all_finite
from pytest_fp16.engine.training.optimizer_copy import copied_over
from pytest_fp16.engine.training.trainee import Trainee, gradient_of
from pytest_fp16.theory.gradient import Movement, movement

SAMPLE = 128
#: Steps at most.
_MOST = 1500
#: Weights are looked at after so many steps.
_WATCHED = 16
#: Steps with the gradients, their opposites and their doubles that tell what a state is made of;
#: enlarged, so that neither weight decay nor an epsilon has a part in it.
_TELLING, _ENLARGED = 3, 2.0**12
#: Gradients made again do not answer to where the weights have gone, and what bets on them (a coin
#: bettor) then goes ever faster in 32 bits: past this many times the longest recorded step, no
#: training is shown.
_AWAY = 10.0


class Recorder:
    """Keeps a sample of every gradient an optimizer is about to apply."""

    def __init__(self, trainee: Trainee) -> None:
        self.index: dict[int, Tensor] = {}
        self.steps: list[dict[int, Tensor]] = []
        cast = [p for p in trainee.parameters() if not p.is_complex()]  # those stay in 32 bits
        self.start = {id(p): self._sample(p).clone() for p in cast}
        self.states = {id(p): self._state(trainee.optimizer, p) for p in cast}
        self.moved: set[int] = set()
        self.handle = trainee.optimizer.register_step_pre_hook(self._hook)

    def _sample(self, tensor: Tensor) -> Tensor:
        key, flat = id(tensor), tensor.detach().flatten()
        if key not in self.index:
            stride = max(flat.numel() // SAMPLE, 1)
            self.index[key] = torch.arange(0, flat.numel(), stride, device=flat.device)[:SAMPLE]
        return flat[self.index[key]]

    def _state(self, optimizer: Any, p: Tensor) -> dict[str, Any]:
        """What an optimizer keeps of a parameter before its first step (Adagrad does)."""
        held = optimizer.state.get(p, {})
        return {
            kind: self._sample_like(p, value).clone() if isinstance(value, Tensor) else value
            for kind, value in held.items()
        }

    def _sample_like(self, p: Tensor, value: Tensor) -> Tensor:
        if value.shape != p.shape:
            return value.detach()
        self._sample(p)
        return value.detach().flatten()[self.index[id(p)]]

    def _hook(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        held = {}
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None and not p.is_complex():
                    held[id(p)] = self._sample_of(p)
        self.moved |= held.keys()
        self.steps.append(held)

    def repeated(self, step: int) -> dict[int, Tensor]:
        """The gradients of a step; after the last one, those of the last third again and again."""
        count = len(self.steps)
        tail = max(count // 3, 1)
        return self.steps[step if step < count else count - tail + (step - count) % tail]

    def _sample_of(self, p: Tensor) -> Tensor:
        self._sample(p)
        return gradient_of(p).flatten()[self.index[id(p)]].clone()


@dataclass(frozen=True)
class Probe:
    """What came of it.

    Attributes:
        moved: displacement of the sampled weights, 16 bits against 32.
        finite: whether weights and state stayed so.
        broke_at: step at which they did not, or -1.
        states: per kind of state, the median of log10(16 bits / 32 bits) over elements that are
            not zero in 32 bits; minus infinity where most are zero in 16.
        zeroed: per kind of state, the share that is zero in 16 bits and not in 32.
        lost: share of single updates that left a weight as it was although it moved in 32 bits.
        origin: the operation that made the first value that is not finite, if it was seen.
        magnitudes: the kinds of state that measure how large gradients are: steps are divided by
            them.
    """

    moved: Movement
    finite: bool
    broke_at: int
    states: dict[str, float]
    zeroed: dict[str, float]
    lost: float
    magnitudes: frozenset[str] = frozenset()
    origin: Found | None = None


def probed(trainee: Trainee, recorder: Recorder, total: int, dtype: torch.dtype) -> Probe | None:
    """As `probe`, for a whole training of so many steps, or the first of them.

    None where there is nothing to learn from it: an optimizer that asks for its own gradients, or
    one that cannot be copied, or takes matrices. Its real steps are compared.
    """
    if trainee.closure or trainee.by_hand is not None or not recorder.steps:
        return None
    try:
        return probe(trainee, recorder, min(total, _MOST), dtype, trainee.place.target)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return None


def probe(
    trainee: Trainee, recorder: Recorder, steps: int, dtype: torch.dtype, target: str
) -> Probe:
    """Run the optimizer of `trainee` on the recorded sample for `steps` steps, in both formats."""
    twin = _Run(trainee.optimizer, recorder, torch.float32)
    low = _Run(trainee.optimizer, recorder, dtype)
    broke, lost, counted, origin, longest = -1, 0.0, 0, None, 0.0
    for first in range(0, steps, _WATCHED):
        block = [recorder.repeated(step) for step in range(first, min(first + _WATCHED, steps))]
        before, wide = low.weights(), twin.weights()
        length = _both(low, twin, block[:1], target)
        after, wide_after = low.weights(), twin.weights()
        recorded = first < len(recorder.steps)
        if not recorded and length > _AWAY * longest and all_finite([before]):
            after, wide_after = before, wide
            break
        moving = wide_after != wide
        lost += float(((after == before) & moving).sum())
        counted += int(moving.sum())
        if not all_finite([after]):
            broke, origin = first, _origin(trainee.optimizer, recorder, dtype, first, target)
            break
        length = max(length, _both(low, twin, block[1:], target))
        longest = max(longest, length) if recorded else longest
        after, wide_after = low.weights(), twin.weights()
    moved, finite = movement(wide_after - twin.start, after - low.start), all_finite([after])
    states, zeroed = _compare_states(twin, low)
    sizes = _magnitudes(trainee.optimizer, recorder)
    return Probe(moved, finite, broke, states, zeroed, lost / max(counted, 1), sizes, origin)


def _both(low: _Run, twin: _Run, block: list[dict[int, Tensor]], target: str) -> float:
    """So many steps of each, one after the other: to enter an emulation takes as long as a step.

    Returns:
        The length of the longest in 32 bits.
    """
    with Emulation(target):
        for held in block:
            low.step(held)
    longest, place = 0.0, twin.weights()
    for held in block:
        twin.step(held)
        before, place = place, twin.weights()
        longest = max(longest, float((place - before).norm()))
    return longest


def _origin(
    optimizer: Any, recorder: Recorder, dtype: torch.dtype, steps: int, target: str
) -> Found | None:
    """The operation that made the first value that is not finite, up to some step."""
    low, origin = _Run(optimizer, recorder, dtype), OriginWatch(nn.Module())
    origin.phase = "<optimizer>"
    for step in range(steps + 1):
        with Emulation(target), origin if step > steps - _WATCHED else nullcontext():
            low.step(recorder.repeated(step))
    return origin.cause


def _magnitudes(optimizer: Any, recorder: Recorder) -> frozenset[str]:
    """Kinds of state that measure the size of gradients, whatever their author calls them.

    They are never negative, do not feel a gradient's sign, and grow with it: a second moment, its
    largest so far, Adamax's norm. A momentum feels the sign; averages of weights do not grow.
    """
    runs = []
    for factor in (_ENLARGED, -_ENLARGED, 2 * _ENLARGED):
        run = _Run(optimizer, recorder, torch.float32)
        for held in recorder.steps[:_TELLING]:
            run.step(held, factor)
        runs.append(run.states())
    plain, opposite, double = runs
    found = []
    for kind, value in plain.items():
        some = value != 0
        if kind not in opposite or kind not in double or not bool(some.any()):
            continue
        even = (opposite[kind][some] / value[some] - 1).abs() < 0.1
        grown = double[kind][some] / value[some] > 1.5
        if bool((value >= 0).all()) and float((even & grown).float().mean()) > 0.5:
            found.append(kind)
    return frozenset(found)


class _Run:
    """A copy of an optimizer over small tensors of its own."""

    def __init__(self, optimizer: Any, recorder: Recorder, dtype: torch.dtype) -> None:
        self.keys: list[list[int]] = []  # per group: the parameters its one tensor is made of
        self.tensors: list[nn.Parameter] = []
        self.sizes = {key: len(start) for key, start in recorder.start.items()}
        groups, states = {}, {}
        for group in optimizer.param_groups:
            keys = [id(p) for p in group["params"] if id(p) in recorder.moved]
            own = []
            if keys:
                together = torch.cat([recorder.start[k] for k in keys])
                own = [nn.Parameter(together.to(dtype, copy=True))]
                self.keys.append(keys)
                self.tensors += own
                states[own[0]] = _joined([recorder.states[k] for k in keys], dtype)
            groups[id(group)] = {**group, "params": own}
        self.optimizer = copied_over(optimizer, groups)
        self.optimizer.state.update({t: held for t, held in states.items() if held})
        self.dtype = dtype
        self.start = self.weights()

    @entrance
    def step(self, gradients: dict[int, Tensor], factor: float = 1.0) -> None:
        for keys, tensor in zip(self.keys, self.tensors, strict=True):
            parts = [
                gradients.get(k, torch.zeros(self.sizes[k], device=tensor.device)) for k in keys
            ]
            tensor.grad = (torch.cat(parts) * factor).to(self.dtype)
        self.optimizer.step()

    def weights(self) -> Tensor:
        return torch.cat([t.detach().float().flatten() for t in self.tensors])

    def states(self) -> dict[str, Tensor]:
        kinds: dict[str, list[Tensor]] = {}
        for tensor in self.tensors:
            for kind, value in self.optimizer.state.get(tensor, {}).items():
                if isinstance(value, Tensor) and value.shape == tensor.shape and value.numel():
                    kinds.setdefault(kind, []).append(value.detach().float().flatten())
        return {kind: torch.cat(values) for kind, values in kinds.items()}


def _joined(states: list[dict[str, Any]], dtype: torch.dtype) -> dict[str, Any]:
    """The states of several parameters as that of one: tensors of their shape put together."""
    joined: dict[str, Any] = {}
    for kind, value in states[0].items():
        parts = [part for s in states if isinstance(part := s.get(kind), Tensor) and part.dim()]
        whole = len(parts) == len(states)
        joined[kind] = torch.cat(parts).to(dtype, copy=True) if whole else value
    return joined


def _compare_states(twin: _Run, low: _Run) -> tuple[dict[str, float], dict[str, float]]:
    off, zeroed = {}, {}
    mine = low.states()
    for kind, wide in twin.states().items():
        nonzero = wide != 0
        if kind not in mine or not bool(nonzero.any()):
            continue
        ratio = (mine[kind][nonzero] / wide[nonzero]).abs()
        zeroed[kind] = float((ratio == 0).float().mean())
        off[kind] = float(ratio.log10().nan_to_num(nan=math.inf, neginf=-math.inf).median())
    return off, zeroed
