"""What need not be cast: inputs that are handed on in float32, or a buffer that stays so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pytest_fp16.diagnosis.given import Lost, lost_as_cast
from pytest_fp16.diagnosis.origin import Origin
from pytest_fp16.diagnosis.remedy import Remedy
from pytest_fp16.diagnosis.trials import Trials
from pytest_fp16.engine.containers import all_tensors, named_parts
from pytest_fp16.report.model import Culprit, CureKind

#: What is ruined before the program begins, so that nothing it does is worth trying before this.
_BEFORE = ("stored inputs", "infinite inputs")


def comes_first(culprit: Culprit) -> bool:
    """Whether the inputs themselves are what is lost."""
    return culprit.variant in _BEFORE


def lost_of(trials: Trials, origin: Origin | None) -> Lost | None:
    """`lost_as_cast`, asked once: it takes several passes, and words ask again."""
    if trials.lost is None:
        trials.lost = (lost_as_cast(trials, origin),)
    return trials.lost[0]


def uncast(
    trials: Trials, culprit: Culprit, origin: Origin | None
) -> Iterator[tuple[CureKind, Remedy]]:
    """That of which the cast alone does the damage, left as it is, where that heals.

    Args:
        trials: tries remedies on a few inputs.
        culprit: at whose line a float32 buffer may meet 16-bit weights.
        origin: None where the program stopped.
    """
    lost = lost_of(trials, origin)
    if lost is None:
        return
    lines = (culprit.source,) if culprit.source else ()
    if lost.kind == "buffer":
        bare = Remedy(trials.precision, buffers=(lost.name,))
        beside = replace(bare, lines=lines)  # where 16-bit weights refuse what it gives
        yield "upcast", bare if trials.heals(bare, origin) else beside
    if lost.kind == "inputs":
        remedy = Remedy(trials.precision, inputs=_names(trials, lost))
        cast = replace(remedy, lines=lines, meeting="narrowed")  # a layer may take 16 bits alone
        for tried in (remedy, cast) if lines else (remedy,):
            if trials.heals(tried, origin):
                yield "keep inputs", tried
                return
        trials.inputs_failed = True


def _names(trials: Trials, lost: Lost) -> tuple[int | str, ...]:
    """The input that does the damage alone; or all that a cast changes."""
    if lost.key is not None:
        return (lost.key,)
    parts = named_parts(trials.rerun(Remedy(trials.precision), None).sample.inputs)
    cast = {n: [t for t in all_tensors(p) if t.is_floating_point()] for n, p in parts.items()}
    return tuple(name for name, floating in cast.items() if floating)
