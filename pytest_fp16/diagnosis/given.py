"""What a cast of the model or of its inputs takes digits from: nothing behind it brings them back.

The float32 program is run on numbers that were rounded as the cast rounds them, some at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pytest_fp16.diagnosis.comparison import Comparison
from pytest_fp16.diagnosis.origin import Origin
from pytest_fp16.diagnosis.remedy import Remedy
from pytest_fp16.diagnosis.trials import HEALED, Trials
from pytest_fp16.engine.batching import map_inputs
from pytest_fp16.engine.containers import map_tensors, named_parts
from pytest_fp16.engine.emulation.operations import LOW
from pytest_fp16.engine.models import call_as_is, quiet
from pytest_fp16.engine.outputs import main_output
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.untouched import untouched
from pytest_fp16.precision import precision
from pytest_fp16.theory.rounding import FORMATS, Format, round_to

#: Whether the float32 program fails as the 16-bit one does, on inputs that are given.
_Fails = Callable[[Any], bool]


@dataclass(frozen=True)
class Lost:
    """What loses it when it is cast: a buffer or a weight by its name, or inputs.

    Of several inputs, `key` is the one that does the damage alone; None where none does.
    """

    kind: Literal["inputs", "buffer", "weight"]
    name: str = ""
    key: int | str | None = None


def lost_as_cast(trials: Trials, origin: Origin | None) -> Lost | None:
    """That of which the cast alone does the damage; None where it is not one by itself."""
    mode = precision(trials.precision)
    if mode.mixed:  # it casts neither
        return None
    try:
        few = trials.rerun(Remedy(trials.precision), None)
        fmt = FORMATS[mode.dtype]
        fails = _failing(few, trials.model, origin)
        keep = few.candidate.subject.keep_inputs
        if fails(_given(few.sample.inputs, fmt, keep)):
            return Lost("inputs", key=_single(few.sample.inputs, fmt, keep, fails))
        mine, low = trials.model, _cast(few.candidate.model)
        buffers = {name: t for name, t in mine.named_buffers() if name in low}
        name = _alone(buffers, fmt, lambda: fails(few.sample.inputs))
        if name is not None:
            return Lost("buffer", name)
        weights = {name: t for name, t in mine.named_parameters() if name in low}
        name = _alone(weights, fmt, lambda: fails(few.sample.inputs))
        return None if name is None else Lost("weight", name)
    except Exception:  # nothing can be told
        return None


def _cast(candidate: nn.Module) -> set[str]:
    """Names of what a candidate stores in 16 bits; some it may keep in float32."""
    stored = (*candidate.named_parameters(), *candidate.named_buffers())
    return {name for name, t in stored if t.dtype in LOW}


def _given(inputs: Any, fmt: Format, keep: Sequence[int | str]) -> Any:
    """Inputs as a cast leaves them, but for those that are kept."""
    return map_inputs(inputs, lambda t, kept: t if kept else _rounded(t, fmt), keep)


def _single(inputs: Any, fmt: Format, keep: Sequence[int | str], fails: _Fails) -> int | str | None:
    """The one of several inputs whose cast is enough."""
    names: list[int | str] = list(named_parts(inputs))
    for name in names if len(names) > 1 else ():
        others = [other for other in names if other != name]
        if name not in keep and fails(_given(inputs, fmt, others)):
            return name
    return None


def _failing(few: Comparison, model: nn.Module, origin: Origin | None) -> _Fails:
    def fails(inputs: Any) -> bool:
        seed_everything(few.sample.seed)
        try:
            with torch.no_grad(), quiet(), untouched(model, weights=few.candidate.habits.writes):
                given = map_tensors(inputs, torch.clone)
                output = call_as_is(model, given, few.candidate.subject.forward)
        except Exception:
            return origin is None  # the 16-bit program stops, too
        return origin is not None and origin.damage.of(main_output(output).float()) >= HEALED

    return fails


def _alone(named: Mapping[str, Tensor], fmt: Format, fails: Callable[[], bool]) -> str | None:
    """The tensor whose rounding is enough, where one is: halves of those that are, again and again.

    One that cannot be told from others of its kind, each of which does a part, is none.
    """
    names = [name for name, t in named.items() if t.is_floating_point()]
    while names:
        with _stored([named[name] for name in names], fmt):
            if not fails():
                return None
        if len(names) == 1:
            return names[0]
        half = len(names) // 2
        with _stored([named[name] for name in names[:half]], fmt):
            names = names[:half] if fails() else names[half:]
    return None


@contextmanager
def _stored(tensors: Sequence[Tensor], fmt: Format) -> Iterator[None]:
    """Meanwhile tensors hold what a cast leaves of them."""
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        with torch.no_grad():
            for tensor in tensors:
                tensor.copy_(_rounded(tensor, fmt))
        yield
    finally:
        with torch.no_grad():
            for tensor, own in zip(tensors, before, strict=True):
                tensor.copy_(own)


def _rounded(tensor: Tensor, fmt: Format) -> Tensor:
    return round_to(tensor, fmt).to(tensor.dtype) if tensor.is_floating_point() else tensor
