"""A training in full: its pairs of runs, how far 32-bit runs lie apart, the gradient check."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from pytest_fp16.report import figures
from pytest_fp16.report.model import Metric, Report


def course(report: Report) -> list[str]:
    """One line for each thing that the runs and the gradient check have shown."""
    facts, metric = report.training, report.metric
    if not facts or metric is None:
        return []
    return [*_pairs(facts, metric), *_over_seeds(facts, metric), *_gradients(facts)]


def _pairs(facts: Mapping[str, Any], metric: Metric) -> list[str]:
    """The metric of both runs of every seed."""
    said = []
    columns = ("seeds", "reference_metrics", "candidate_metrics", "ended")
    for seed, reference, candidate, ended in zip(*map(facts.__getitem__, columns), strict=True):
        values = f"{_value(metric, reference)} → {_value(metric, candidate)}{figures.unit(metric)}"
        said.append(f"seed {seed} {values}" + ("" if ended == "finished" else f" ({ended})"))
    return ["runs: " + ", ".join(said)] if said else []


def _over_seeds(facts: Mapping[str, Any], metric: Metric) -> list[str]:
    """The spread that somebody sees who trains in 32 bits alone, and the limits of the loss."""
    lines = []
    every = [*facts["reference_metrics"], *facts.get("further_reference_metrics", ())]
    known = [v for v in every if v is not None and math.isfinite(v)]
    if len(known) > 1:
        spread = _value(metric, statistics.stdev(known), most=2)
        lines.append(f"spread of the 32-bit runs over seeds: {spread}{_points(metric)}")
    mean, lower, upper = (facts[name] for name in ("mean_loss", "lower", "upper"))
    if mean is not None and math.isfinite(lower) and math.isfinite(upper):
        mean, lower, upper = (_value(metric, value, most=2) for value in (mean, lower, upper))
        lines.append(f"mean loss: {mean}{_points(metric)}, 95 % limits {lower} to {upper}")
    return lines


def _gradients(facts: Mapping[str, Any]) -> list[str]:
    """ρ at the worst point, the parameter it is largest in, and updates that rounding takes."""
    check = facts["gradient_check"]
    points = check.get("points") or []
    if not points:
        return []
    worst = max(points, key=lambda point: point["rho"])
    tensor = f", most in {worst['worst_tensor']}" if worst.get("worst_tensor") else ""
    line = (
        f"gradient check: rounding adds {figures.significant(worst['rho'])} of the batch noise "
        f"(allowed {figures.significant(worst['rho_allowed'])}){tensor}"
    )
    lost = check.get("updates_lost")
    return [line + (f"; {figures.percent(lost)} of updates lost to rounding" if lost else "")]


def _value(metric: Metric, value: float | None, most: int = 1) -> str:
    if value is None:
        return "–"
    share = figures.is_share(metric)
    return figures.decimal(100 * value if share else value, most if share else most + 2)


def _points(metric: Metric) -> str:
    return " points" if figures.is_share(metric) else ""
