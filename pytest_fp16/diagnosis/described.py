"""A cure in words: what was applied, as a user can apply it, and beside it what was not tried."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pytest_fp16.diagnosis.advice import advice, advised, brought, fitting, in_float32
from pytest_fp16.diagnosis.applied import BOUNDS, Applied, moves
from pytest_fp16.diagnosis.origin import Origin
from pytest_fp16.diagnosis.remedy import Remedy
from pytest_fp16.diagnosis.trials import Trials
from pytest_fp16.diagnosis.uncast import lost_of
from pytest_fp16.report.figures import written
from pytest_fp16.report.model import Culprit

_SHOWN = 3
_REGION = "outside autocast (with torch.autocast(device_type, enabled=False))"


def described(trials: Trials, remedy: Remedy, culprit: Culprit, origin: Origin | None) -> str:
    """What a remedy that passed was, and what else might be done."""
    if remedy.anew or remedy.unpacked:
        return advice(culprit)[1]
    if remedy.inputs:
        return _handed_on(trials, remedy) + _as_integers(trials, culprit, origin)
    if remedy.meeting == "fitted":
        return fitting(culprit)
    if remedy.meeting:
        said = f"{advice(culprit)[1]}: {brought(remedy.meeting, culprit)}"
        done = trials.applied.get(remedy)
        others = _elsewhere(done.taken, culprit) if done is not None else []
        return f"{said}; and so for {_listed(others)}" if others else said
    if remedy.buffers:
        again = "set it again once the model is cast, which takes from it what is needed"
        said = f"keep the buffer {_listed(remedy.buffers)} in float32: {again}"
        return f"{said}; and {_lines(trials, remedy, culprit)}" if remedy.lines else said
    if remedy.lines:
        own = culprit.variant == "another constant"
        instead = f" (or, not tried: {advice(culprit)[1]})" * own
        return f"{_lines(trials, remedy, culprit)}{instead}"
    names = ", ".join(remedy.keep)
    what = f"keep {names} in float32"
    if remedy.precision != trials.precision:
        what = f"run in {remedy.precision}" + f" with {names} kept in float32" * bool(names)
    untried = _beside(trials, culprit, origin)
    several = len(remedy.keep) > 1 and culprit.module in remedy.keep
    if several:
        there = f"; there, not tried: {untried}" if untried else ""
        return f"{what} ({culprit.module} alone is not enough{there})"
    return f"{what} (not tried: {untried})" if untried else what


def _handed_on(trials: Trials, remedy: Remedy) -> str:
    """Inputs that are not cast, and where what is made of them is, so that a layer takes it."""
    names = ", ".join(map(repr, remedy.inputs))
    said = f"hand input {names} on in float32 (keep_inputs=[{names}])"
    done = trials.applied.get(remedy)
    if done is None or not done.taken:
        return said
    return f"{said}, and cast what is made of them for what takes it: {_listed(done.taken)}"


def _as_integers(trials: Trials, culprit: Culprit, origin: Origin | None) -> str:
    """What to do instead where the one input there is holds whole numbers."""
    lost = lost_of(trials, origin) if culprit.variant == "whole numbers" else None
    if lost is None or lost.key is not None:  # beside another input that is ruined they are no help
        return ""
    return f" (or, not tried: {replace(advised(culprit), wide='').at(culprit.source)})"


def _elsewhere(places: Iterable[str], culprit: Culprit) -> list[str]:
    """Where tensors of two dtypes met, but for the culprit's own place."""
    line = f" at {culprit.source}"
    return [place for place in places if place != culprit.module and not place.endswith(line)]


def _lines(trials: Trials, remedy: Remedy, culprit: Culprit) -> str:
    """What was done on lines, in the words of the program."""
    first, *others = remedy.lines
    done = trials.applied.get(remedy)
    if done is None:
        more = f", and what is computed at {_listed(others)}" * bool(others)
        return (
            f"{in_float32(culprit)} at {first}, and all else there{more}, and cast back only where "
            "a layer takes the result"
        )
    if others:
        what = f"compute everything in float32 at {first}, the casts there included, and what is "
        what += f"computed at {_listed(others, len(others))}"
    else:
        what = _on_one_line(done, culprit, first)
    what += f", {_REGION}" * done.uncast
    what += ", out of place (x = x.float()…)" * done.out_of_place
    if done.taken:
        return f"{what}, and cast back only for what takes the result: {_listed(done.taken)}"
    return what


def _on_one_line(done: Applied, culprit: Culprit, line: str) -> str:
    """What was computed there in float32, and what was made so that brings numbers to 16 bits."""
    # What bounds rounds nothing, but for its bound.
    bounds = BOUNDS if culprit.mechanism == "eps-underflow" or culprit.operation in BOUNDS else ()
    computed = [name for name in done.computed if not moves(name) or name in bounds]
    made = [f".{name}" for name in done.made]
    operation = written(culprit.operation)
    if computed:
        casts = f", the casts there ({_listed(made)}) included" * bool(made)
        return f"compute {_listed(computed)} in float32 at {line}{casts}"
    if made:
        known = culprit.operation in ("", "_to_copy")
        already = "" if known else f" ({operation} is computed in float32 there already)"
        return f"cast to float32 in place of {_listed(made)} at {line}{already}"
    return f"{in_float32(culprit)} at {line}, and all else there"


def _beside(trials: Trials, culprit: Culprit, origin: Origin | None) -> str:
    """What else may be done, so far as it is not known to be no help; not tried on all inputs."""
    found = advised(culprit, not trials.inputs_failed)
    line = Remedy(trials.precision, lines=(culprit.source,)) if culprit.source else None
    if culprit.mechanism == "mask-inf" and any(r.meeting == "fitted" for r in trials.short):
        return ""
    change = replace(found, wide="").at(culprit.source)
    stored = culprit.variant in ("stored inputs", "stored digits")
    if not found.wide and not stored:
        return change
    lost = lost_of(trials, origin)
    if lost is not None and any(lost.name in remedy.buffers for remedy in trials.short):
        lost = None  # kept in float32 it was no help: what enters is ruined as well
    given = lost is not None and lost.kind == "inputs"
    if (stored and lost is None) or (given and trials.inputs_failed):
        return change
    if lost is not None:
        # Integers at the line are no help where one of the inputs that they meet is ruined before.
        whole = culprit.variant == "whole numbers" and lost.key is not None
        change = "" if stored or whole else change
        wide = "hand the inputs on in float32 (keep_inputs=): their cast is what ruins it"
        if lost.key is not None:
            which = f"hand input {lost.key!r} on in float32 (keep_inputs=[{lost.key!r}])"
            wide = f"{which}: its cast is what ruins it"
        elif lost.kind != "inputs":
            wide = f"keep the {lost.kind} {lost.name} in float32: its cast is what ruins it"
        return ", or ".join(filter(None, (change, wide)))
    if line is None or line in trials.short or not trials.heals(line, origin):
        return change
    done = trials.applied.get(line)
    text = found.at(culprit.source)
    if done is not None and done.complex:
        text = text.replace("and its result back", "and leave its result so (it is complex)")
    return text + (f", {_REGION}" if done is not None and done.uncast else "")


def _listed(names: Iterable[str], most: int = _SHOWN) -> str:
    """``"a, b and c"``; of more than that it is said how many."""
    known = list(names)
    shown = known[:most] + ([f"{len(known) - most} more"] if len(known) > most else [])
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))
