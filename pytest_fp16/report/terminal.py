"""Reports as tables for a terminal: one row per test and precision, or one report in full."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pytest_fp16.report import figures
from pytest_fp16.report.message import place
from pytest_fp16.report.model import Report, Site
from pytest_fp16.report.trained import course

Named = tuple[str, Report]

#: Characters of a test's name, at least: a wide table is easier to bear than tests of one name.
_SHORTEST = 24


def table(reports: Sequence[Named], width: int | None = 120) -> str:
    """One row per test and precision; columns that say nothing in any row are left out.

    Args:
        reports: pairs of a test's name and its report.
        width: columns of the terminal; long test names are cut in the middle to fit. None: a file
            or a log, where nothing is cut.
    """
    if not reports:
        return ""
    columns = columns_of(reports)
    notes = _notes(columns)
    excess = 0 if width is None else _width(_grid(columns)) - width
    if excess > 0:
        longest = max(_SHORTEST, max(map(len, columns["test"])) - excess)
        columns["test"] = [_cut(name, longest) for name in columns["test"]]
    return "\n".join([_grid(columns), *notes])


def columns_of(reports: Sequence[Named]) -> dict[str, list[str]]:
    """The cells of the table by the header of their column, without columns that say nothing."""
    columns = {"test": [name for name, _ in reports]}
    for header, cell in _COLUMNS.items():
        cells = [cell(report) for _, report in reports]
        if any(cells):
            columns[header] = cells
    return columns


def _notes(columns: dict[str, list[str]]) -> list[str]:
    """What is said once below the table rather than in every row."""
    notes = []
    if _CERTIFIED in columns:
        notes.append(
            "certified: share of decisions sure to be kept, in %: measured / bounded / probable"
        )
    modes = set(columns.get("ran", []))
    if len(modes) == 1:
        notes.append(f"all ran {modes.pop()}")
        del columns["ran"]
    return notes


def _grid(columns: dict[str, list[str]]) -> str:
    right = ("loss", "budget", "flips\nallowed", "ties", "speedup", "memory")
    return _layout(columns, ["right" if name in right else "left" for name in columns])


def _layout(columns: dict[str, list[str]], align: list[str]) -> str:
    """A plain table whose headers may have two lines.

    Headers go in as rows: tabulate widens a column by two where it knows its header.
    """
    from tabulate import tabulate

    filled = []
    for name, cells in columns.items():
        head = (*name.split("\n"), "")[:2]
        width = max(map(len, (*head, *cells)))
        filled.append([*head, "-" * width, *cells])
    rows = list(zip(*filled, strict=True))
    if not any(rows[1]):
        del rows[1]
    text = tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=align)
    return "\n".join(line.rstrip() for line in text.splitlines())


def _width(text: str) -> int:
    return max(map(len, text.splitlines()))


def _cut(name: str, length: int) -> str:
    """`name` with its middle left out: the start and the precision at its end tell most."""
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[len(name) - (length - 1 - head) :]}"


def _metric(report: Report) -> str:
    if report.metric is None or not (report.metric.labelled or report.flips is None):
        return ""
    reference, candidate = figures.metric_pair(report.metric)
    name = "" if report.metric.name == "accuracy" else f"{report.metric.name} "
    name = name.replace("nearest-neighbour agreement", "neighbours")
    return f"{name}{reference} → {candidate}{figures.unit(report.metric)}"


def _flips(report: Report) -> str:
    if report.flips is None:
        return ""
    allowed = figures.flips_allowed(report)
    return str(report.flips) if allowed is None else f"{report.flips}/{allowed}"


def _certified(report: Report) -> str:
    shares = (report.certified.measured, report.certified.bounded, report.certified.probable)
    if all(share is None for share in shares):
        return ""
    return "/".join("–" if share is None else figures.floored(share) for share in shares)


def _memory(report: Report) -> str:
    speed = report.speed
    if speed is None or not speed.peak_memory or not speed.reference_peak_memory:
        return ""
    return f"{figures.decimal(speed.peak_memory / speed.reference_peak_memory, 2)}×"


_CERTIFIED = "certified\nm/b/p"

_COLUMNS: dict[str, Callable[[Report], str]] = {
    "precision": lambda r: r.precision,
    "verdict": lambda r: r.verdict,
    "metric\n32 → 16 bit": _metric,
    "loss": lambda r: figures.loss_pair(r.metric)[0] if r.metric else "",
    "budget": lambda r: figures.loss_pair(r.metric)[1] if r.metric else "",
    "flips\nallowed": _flips,
    "ties": lambda r: str(r.ties) if r.ties else "",
    _CERTIFIED: _certified,
    "speedup": lambda r: f"{figures.decimal(r.speed.speedup, 2)}×" if r.speed else "",
    "memory": _memory,
    "ran": lambda r: figures.mode(r.run) if r.run else "",
}


def full(report: Report, top: int = 10) -> str:
    """How close a model is to the limits of the format, whatever the verdict.

    Headroom to overflow, values below the normal range and flushed to zero, the sites with the
    largest shares of σ², and the least robust inputs (their indices in the order of the data).
    """
    lines = [f"{report.name}, {report.precision}: {report.verdict}"]
    lines += [f"  {text}" for text in _standing(report)]
    if report.kind == "training":
        return "\n".join([*lines, *(f"  {text}" for text in course(report))])
    if not report.sites:
        return "\n".join([*lines, "  no ranges or shares: the theory pass gave none"])
    lines += [f"  {text}" for text in _extremes(report.sites)]
    ranked = sorted(report.sites, key=_rank)
    nearest = min(ranked, key=lambda s: s.headroom)
    # A buffer has no share, and is shown all the same where it is what left the range.
    shown = [s for i, s in enumerate(ranked) if i < top or (s is nearest and s.headroom < 0)]
    lines += [f"  {text}" for text in _sites(shown).splitlines()]
    if len(report.sites) > len(shown):
        rest = sum(s.share for s in report.sites) - sum(s.share for s in shown)
        rest_text = figures.percent(max(rest, 0.0))
        lines.append(
            f"  … and {len(report.sites) - len(shown)} more sites with {rest_text} of σ² together"
        )
    return "\n".join(lines)


def _rank(site: Site) -> tuple[float, float]:
    """Largest share first; without shares, least headroom first. NaN comes last."""
    share = site.share if site.share == site.share else -1.0
    return -share, site.headroom


def _standing(report: Report) -> list[str]:
    """The figures of the theory, one line each."""
    lines = []
    flips, shares = figures.flips(report), figures.certified(report.certified)
    if flips:
        lines.append(flips)
    if shares:
        lines.append(f"certified: {shares}")
    if report.standardised is not None:
        s = report.standardised
        lines.append(
            f"error over σ: spread {figures.decimal(s.spread, 2)} "
            f"(allowed {figures.decimal(s.spread_allowed, 2)}), mean {figures.decimal(s.mean, 2)} "
            f"(allowed ±{figures.decimal(s.mean_allowed, 2)}), {s.bound_exceeded} of {s.count} "
            "beyond the worst-case bound"
        )
        lines += [f"  {check.detail}" for check in report.checks if check.excused]
    if report.delta_max is not None and report.gamma_median is not None:
        lines.append(
            f"largest δ {figures.significant(report.delta_max)}, "
            f"median Γ {figures.significant(report.gamma_median)}"
        )
    if report.loss_reference is not None and report.loss_candidate is not None:
        what = "last training loss" if report.kind == "training" else "cross-entropy"
        lines.append(
            f"{what}: {figures.significant(report.loss_candidate)}, "
            f"reference {figures.significant(report.loss_reference)}"
        )
    if report.cure is not None and report.cure.price is not None:
        lines.append(f"price of the cure: {figures.price(report.cure.price)}")
    if report.least_robust:
        lines.append("least robust inputs: " + ", ".join(map(str, report.least_robust)))
    return lines


def _extremes(sites: Sequence[Site]) -> list[str]:
    """The site closest to overflow, and the one that loses most values to zero."""
    nearest = min(sites, key=lambda s: s.headroom)
    at = f"{place(nearest.module)} ({figures.operation(nearest.operation)})"
    largest = figures.significant(nearest.largest)
    lines = [f"closest to overflow: {at}, {_headroom(nearest)}, largest value {largest}"]
    lost = max(sites, key=lambda s: s.zeroed or 0.0)
    if lost.zeroed:
        lines.append(
            f"most values flushed to zero: {place(lost.module)} "
            f"({figures.operation(lost.operation)}), "
            f"{figures.percent(lost.zeroed)}"
        )
    return lines


def _headroom(site: Site) -> str:
    if site.headroom < 0:
        return f"{figures.decimal(-site.headroom)} powers of two beyond the range"
    return f"{figures.decimal(site.headroom)} powers of two left"


def _power(headroom: float) -> str:
    """Nothing where no value was finite, after an overflow, or all were zero."""
    return "–" if math.isinf(headroom) else f"2^{figures.decimal(headroom)}"


def _sites(sites: Sequence[Site]) -> str:
    columns = {
        "module": [_cut(place(site.module), 40) for site in sites],
        "operation": [figures.operation(site.operation) for site in sites],
        "share\nof σ²": [figures.percent(site.share) for site in sites],
        "largest": [figures.significant(site.largest) if site.largest else "–" for site in sites],
        "headroom": [_power(site.headroom) for site in sites],
        "subnormal": [figures.percent(site.subnormal) for site in sites],
        "zeroed": [figures.percent(site.zeroed) for site in sites],
    }
    if not any(site.share > 0 for site in sites):  # σ is none that could be shared out
        del columns["share\nof σ²"]
    return _layout(columns, ["left", "left", *["right"] * (len(columns) - 2)])
