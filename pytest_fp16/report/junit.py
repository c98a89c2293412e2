"""A report as properties of a JUnit test case: short strings, so that they cross processes."""

from __future__ import annotations

from pytest_fp16.report import figures
from pytest_fp16.report.model import Report


def properties(report: Report) -> list[tuple[str, str]]:
    """(name, value) pairs, each name with the prefix ``fp16.``; what is unknown is left out.

    Metric, loss and budget are plain numbers in the metric's own units (shares as fractions of
    1), to be read by programs.
    """
    found: dict[str, object] = {"name": report.name}  # first: a test by hand may hold several
    found |= {"precision": report.precision, "verdict": report.verdict}
    found["failed"] = ", ".join(check.name for check in report.checks if not check.passed)
    if report.metric is not None:
        found["metric"] = report.metric.name
        for name in ("reference", "candidate", "loss", "budget"):
            found[name] = _number(getattr(report.metric, name))
    found |= {"inputs": report.inputs or None, "flips": report.flips}
    if report.forecast is not None:
        found["forecast"] = report.forecast.verdict
        if report.flips is not None:
            found["flips_allowed"] = report.forecast.flips_allowed
    for name in ("measured", "bounded", "probable"):
        share = getattr(report.certified, name)
        found[f"certified_{name}"] = None if share is None else _number(share)
    if report.culprit is not None:
        found["culprit"] = f"{report.culprit.module}:{report.culprit.operation}"
        found["mechanism"] = report.culprit.mechanism
    if report.speed is not None:
        found["speedup"] = _number(report.speed.speedup)
    if report.run is not None:
        found["ran"] = figures.mode(report.run)
    return [(f"fp16.{name}", str(v)) for name, v in found.items() if v is not None and v != ""]


def _number(value: float) -> str:
    return f"{value:.6g}"
