"""How close an evaluation came to the limits of the format: what was computed, and what is stored.

An operation's row says nothing of a buffer that it reads, so that the tensors of the model have
rows of their own where they are what counts.
"""

from __future__ import annotations

import math

import torch

from pytest_fp16.engine.stored import Stored
from pytest_fp16.evaluation.precision_run import PrecisionRun
from pytest_fp16.precision import Precision
from pytest_fp16.report.figures import plural, significant
from pytest_fp16.report.model import Site
from pytest_fp16.theory.rounding import FORMATS, Format

#: Tensors that are warned of by name.
_NAMED = 3


def sites_of(precision_run: PrecisionRun) -> list[Site]:
    """Every rounding site, the largest contribution first; then what is stored near the limit."""
    if precision_run.theory is None:
        return []
    totals = precision_run.theory.totals
    whole = sum(t.variance for t in totals.values())
    dtype = precision_run.precision.dtype
    most = FORMATS[dtype].largest if dtype in FORMATS else torch.finfo(dtype).max
    sites = [
        Site(
            module=module,
            operation=operation,
            share=t.variance / whole if whole > 0 else 0.0,
            largest=t.largest,
            headroom=_headroom(most, t.largest),
            subnormal=t.subnormal / t.values if t.values else None,
            zeroed=t.zeroed / t.values if t.values else None,
            source=t.source,
        )
        for (module, operation), t in totals.items()
    ]
    return [*sorted(sites, key=lambda s: -s.share), *_stored_sites(precision_run, sites, most)]


def _stored_sites(precision_run: PrecisionRun, sites: list[Site], most: float) -> list[Site]:
    """The tensors that left the range, and the one that is nearest to it of all there is."""
    rows = [_site(stored, most) for stored in precision_run.candidate.stored if not stored.meant]
    rows.sort(key=lambda site: site.headroom)
    nearest = min((site.headroom for site in sites), default=math.inf)
    return [r for i, r in enumerate(rows) if r.headroom < 0 or (not i and r.headroom < nearest)]


def _site(stored: Stored, most: float) -> Site:
    module, _, name = stored.name.rpartition(".")
    headroom = _headroom(most, stored.largest)
    return Site(module=module, operation=name, share=0.0, largest=stored.largest, headroom=headroom)


def _headroom(most: float, largest: float) -> float:
    return math.log2(most / largest) if largest > 0 else math.inf


def harmless_overflows(sites: list[Site], precision: Precision) -> list[str]:
    """The warning of operations whose values leave the range, although the outputs bear it."""
    if precision.dtype not in FORMATS:
        return []
    fmt = FORMATS[precision.dtype]
    computed = [s for s in sites if s.source is not None or s.share > 0]  # others are stored
    out = [s for s in computed if s.largest >= fmt.overflow_threshold]
    said = [
        f"{s.module or 'the model itself'}, operation {s.operation}{_at(s)}: values up to "
        f"{significant(s.largest)} leave the range of {fmt.name}, which holds "
        f"{significant(fmt.largest)}, and it does little harm on this data"
        for s in sorted(out, key=lambda s: s.headroom)[:_NAMED]
    ]
    if len(out) > _NAMED:
        said.append(f"so do those of {plural(len(out) - _NAMED, 'more operation')}")
    return said


def _at(site: Site) -> str:
    return f" ({site.source})" if site.source is not None else ""


def beyond_range(found: list[Stored], precision: Precision) -> list[str]:
    """The warning of each tensor of a model that its cast has made infinite in part."""
    lost = [stored for stored in found if stored.surprising]
    said = [_told(stored, FORMATS[precision.dtype]) for stored in lost[:_NAMED]]
    if len(lost) > _NAMED:
        said.append(f"{plural(len(lost) - _NAMED, 'more tensor')} of the model are infinite so")
    return said


def _told(stored: Stored, fmt: Format) -> str:
    largest = significant(stored.largest)
    if f"{stored.largest:.3g}" == f"{fmt.largest:.3g}":
        largest = f"{stored.largest:.6g}"
    of = f"{stored.infinite} of {plural(stored.count, 'value')}"
    return (
        f"stored in {fmt.name}, {stored.name} has {of} that are infinite "
        f"(largest {largest}, {fmt.name} holds {significant(fmt.largest)})"
    )
