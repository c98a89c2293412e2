"""The plan in an evaluation: what it keeps in float32, what it no longer need, what it gains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from pytest_fp16.plan import Entry, Plan, read_plan, stale, write_plan
from pytest_fp16.report.model import Report
from pytest_fp16.settings import Settings


def plan_of(settings: Settings) -> Plan | None:
    """The plan that settings name; an empty one where its file is still to be written.

    Raises:
        SettingError: a file that is no plan.
    """
    if settings.plan is None:
        return None
    return read_plan(settings.plan) if Path(settings.plan).exists() else Plan((), settings.plan)


def kept_by(plan: Plan, test: str, precision: str, model: nn.Module) -> tuple[str, ...]:
    """The modules the plan keeps in float32, those that the model has."""
    names = {name for name, _ in model.named_modules(remove_duplicate=False)}
    return tuple(m for m in plan.modules(test, precision) if m in names)


def remarks(
    plan: Plan,
    report: Report,
    model: nn.Module,
    again: Callable[[str], Report],
) -> list[str]:
    """What the plan did for a report: what it kept, and entries that have lost their point.

    Args:
        plan: as it was read.
        report: what came out with the plan.
        model: the float32 model.
        again: checks a precision without the plan.
    """
    kept = kept_by(plan, report.name, report.precision, model)
    needed = None
    if kept and report.equivalent and again(report.precision).equivalent:
        needed = ()
    said = stale(plan, report.name, report.precision, model, needed)
    if kept and needed is None:
        said.insert(0, f"kept in float32 by the plan {plan.path}: {', '.join(kept)}")
    return said


def extend(plan: Plan, reports: list[Report], found: Mapping[str, tuple[str, ...]]) -> None:
    """Write what was found into the plan's file, for tests that it says nothing of yet.

    Args:
        plan: as it was read.
        reports: the reports of one test.
        found: modules of verified cures that keep modules in float32, by precision.

    Raises:
        SettingError: the file cannot be written.
    """
    entries = [
        Entry(report.name, report.precision, module, _reason(report))
        for report in reports
        for module in found.get(report.precision, ())
        if not plan.of(report.name, report.precision)
    ]
    if entries:
        ran = [(entry.test, entry.precision) for entry in entries]
        write_plan(plan.path, plan.updated(ran, entries).entries)


def _reason(report: Report) -> str:
    culprit = report.culprit
    return f"{culprit.mechanism} in {culprit.module} ({culprit.operation})" if culprit else ""
