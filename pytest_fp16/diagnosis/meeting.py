"""Where the wider dtype came from that a 16-bit tensor met in an operation that takes one dtype."""

from __future__ import annotations

from typing import Any

from torch import nn

from pytest_fp16.diagnosis.comparison import Comparison
from pytest_fp16.diagnosis.tape import Entry, Ref
from pytest_fp16.engine.containers import all_tensors
from pytest_fp16.engine.emulation.operations import LOW, flat
from pytest_fp16.engine.untouched import memory

#: What a module holds of its own that its casts do reach.
_CAST = ("_parameters", "_buffers", "_modules")


def widened(comparison: Comparison) -> str | None:
    """Where a recorded program, which raised for dtypes, came to the wider one; in words.

    It is followed back from the wider tensor of the operation that raised, to the first operation
    that made one of a 16-bit and a wider tensor, and to whatever the latter was. Where torch
    raised before it came to an operation, from the last wider tensor that was made. None where
    there is no such tensor.
    """
    entries = comparison.tape.entries
    made = _producers(entries)
    taken, known = _taken(comparison), True
    if not taken:
        taken, known = [r for e in entries[::-1] for r in e.results if _is_wide(r)][:1], False
    if not taken:
        return None
    entered, source = _followed(_likeliest(taken, made), made)
    wide = _named(taken[0])
    what = _told(comparison, source)
    if entered is None:
        return f"the {wide} tensor there is {what}" if known else None
    low = next(_named(ref) for ref in _floats(entered) if ref.twin.dtype in LOW)
    return f"{wide} comes in at {_name(comparison, entered)}, where {low} meets {what}"


def _taken(comparison: Comparison) -> list[Ref]:
    """The wider tensors that the operation takes which raised, where it is known."""
    recorded, tape = comparison.recorded, comparison.tape
    if recorded is None or recorded.raised is None or not tape.starts:
        return []
    last = tape.entries[tape.starts[-1]]
    mixes = last.index == recorded.raised.index and any(r.twin.dtype in LOW for r in _floats(last))
    return _wide(last) if mixes else []


def _producers(entries: list[Entry]) -> dict[int, Entry]:
    """What made each tensor; what only writes into one has not."""
    made: dict[int, Entry] = {}
    for entry in entries:
        taken = {id(ref.twin) for ref in _refs(entry)}
        for result in entry.results:
            if isinstance(result, Ref) and id(result.twin) not in taken:
                made.setdefault(id(result.twin), entry)
    return made


def _followed(ref: Ref, made: dict[int, Entry]) -> tuple[Entry | None, Ref | Entry]:
    """The first operation of 16-bit and wider tensors on the way, and the wider one's origin."""
    entered = None
    while (entry := made.get(id(ref.twin))) is not None:
        wide = _wide(entry)
        if not wide:
            return entered, entry
        if entry.index is not None and any(r.twin.dtype in LOW for r in _floats(entry)):
            entered = entry
        ref = _likeliest(wide, made)
    return entered, ref


def _likeliest(wide: list[Ref], made: dict[int, Entry]) -> Ref:
    """One that the program made, rather than a weight that is meant to be so.

    And not as it is told: zeros of another tensor's dtype follow that.
    """
    known = [ref for ref in wide if id(ref.twin) in made]
    led = (ref for ref in known if not _follows(ref, made))
    return next(led, known[0] if known else wide[0])


def _follows(ref: Ref, made: dict[int, Entry]) -> bool:
    """Whether it was made of nothing, in a dtype that was given, or is a view of such."""
    entry = made.get(id(ref.twin))
    while entry is not None and len(_refs(entry)) == 1:
        entry = made.get(id(_refs(entry)[0].twin))
    return entry is not None and not _refs(entry) and entry.kwargs.get("dtype") is not None


def _refs(entry: Entry) -> list[Ref]:
    given = flat([*entry.args, *entry.kwargs.values()])
    return [value for value in given if isinstance(value, Ref)]


def _floats(entry: Entry) -> list[Ref]:
    return [ref for ref in _refs(entry) if ref.twin.dtype.is_floating_point]


def _wide(entry: Entry) -> list[Ref]:
    return [ref for ref in _refs(entry) if _is_wide(ref)]


def _is_wide(value: Any) -> bool:
    wide = isinstance(value, Ref) and value.twin.dtype not in LOW
    return wide and value.twin.dtype.is_floating_point


def _named(ref: Ref) -> str:
    return str(ref.twin.dtype).removeprefix("torch.")


def _name(comparison: Comparison, entry: Entry) -> str:
    """An operation, with its line."""
    if entry.index is None:
        return "a view"
    operation = comparison.operations[entry.index]
    name = "a cast" if operation.name == "_to_copy" else operation.name
    return f"{name} ({operation.source})" if operation.source else name


def _told(comparison: Comparison, source: Ref | Entry) -> str:
    """What the wider tensor is."""
    if isinstance(source, Ref):
        if source.fixed:
            return _held(comparison.candidate.model, source)
        if comparison.candidate.precision.mixed:
            return "an input"
        if comparison.candidate.subject.keep_inputs:
            return "an input that keep_inputs= hands on as it is"
        return f"an input that the program casts to {_named(source)}"
    if _floats(source):
        low = _named(_floats(source)[0])
        return f"what {_name(comparison, source)} made of {low}"
    how = " of whole numbers" if _refs(source) else ""
    asked = source.func is not None and any(
        a.name == "dtype" for a in source.func._schema.arguments
    )
    if asked and source.kwargs.get("dtype") is None:
        how = " without a dtype"
    return f"what {_name(comparison, source)} made{how}"


#: Where a module keeps the functions that it calls before and after its own.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def _held(model: nn.Module, ref: Ref) -> str:
    """A constant that no operation has made, by the name a module has for it."""
    place = memory(ref.low)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if memory(tensor) == place:
            return f"{name}, a weight or buffer that stays so"
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _CAST and place in map(memory, all_tensors(value)):
                whose = path or "the model"
                if name in _HOOKS:
                    return f"a tensor that a hook of {whose} holds, which no cast reaches"
                return (
                    f"{name} of {whose}, a plain attribute that no cast reaches: register it as a "
                    "buffer"
                )
    return f"a {_named(ref)} tensor that the program has, or casts, and does not compute"
