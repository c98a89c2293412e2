"""The plan in a check: what it keeps in float32, what it no longer needs, what it gains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from pytest_fp16.engine.copies import make_model
from pytest_fp16.errors import SettingError
from pytest_fp16.mixing import keep_in_float32
from pytest_fp16.plan import Entry, Plan, merge_plan, read_plan, stale
from pytest_fp16.report.model import Report
from pytest_fp16.settings import Settings
from pytest_fp16.subject import Training


def plan_of(settings: Settings, test: str = "") -> Plan | None:
    """The plan that settings name; an empty one where its file is still to be written.

    Args:
        settings: of the check.
        test: the test's id, which tells tests of one name apart; empty outside pytest.

    Raises:
        SettingError: a file that is no plan.
    """
    if settings.plan is None:
        return None
    exists = Path(settings.plan).exists()
    plan = read_plan(settings.plan) if exists else Plan((), settings.plan)
    return replace(plan, test=test)


def kept_by(plan: Plan, test: str, precision: str, model: nn.Module) -> tuple[str, ...]:
    """The modules the plan keeps in float32, those that the model has."""
    names = {name for name, _ in model.named_modules(remove_duplicate=False)}
    return tuple(m for m in plan.modules(test, precision) if m in names)


def with_kept(subject: Training, keep: tuple[str, ...]) -> Training:
    """A training whose models keep modules in float32."""

    def made() -> nn.Module:
        return keep_in_float32(make_model(subject.model), keep, quiet=True)

    return replace(subject, model=made() if isinstance(subject.model, nn.Module) else made)


def remarks(
    plan: Plan,
    report: Report,
    model: nn.Module,
    again: Callable[[str], bool] | None = None,
) -> list[str]:
    """What the plan did for a report: what it kept, and entries that have lost their point.

    Args:
        plan: as it was read.
        report: what came out with the plan.
        model: the float32 model.
        again: whether a precision passes without the plan, and not by luck; None where that would
            take too long, so that nobody knows whether what is kept is still needed.
    """
    kept = kept_by(plan, report.name, report.precision, model)
    needed = None
    if kept and again is not None and report.equivalent and again(report.precision):
        needed = ()
    said = stale(plan, report.name, report.precision, model, needed)
    if kept and needed is None:
        said.insert(0, f"kept in float32 by the plan {plan.path}: {', '.join(kept)}")
    return said


def extended(
    plan: Plan, reports: list[Report], found: Mapping[str, tuple[str, ...]], model: nn.Module
) -> list[Report]:
    """Write what was found into the plan's file, for tests that it says nothing of yet.

    Nothing is said by entries whose modules are gone, either: what is found joins them, and theirs
    is the user's to remove. Where a plan that is applied is no longer enough, it stands as somebody
    reviewed it, and the lines it lacks are told.

    Args:
        plan: as it was read.
        reports: the reports of one test.
        found: modules of verified cures that keep modules in float32, by precision.
        model: the float32 model.

    Returns:
        The reports, which say so, or why it could not be written.
    """
    entries: list[Entry] = []
    lacks: dict[str, str] = {}
    for report in reports:
        name, modules = plan.test or report.name, found.get(report.precision, ())
        if not modules:
            continue
        new = [Entry(name, report.precision, m, _reason(report)) for m in modules]
        if kept_by(plan, report.name, report.precision, model):
            lines = "; ".join(str(entry) for entry in new)
            lacks[report.precision] = (
                f"the plan {plan.path} is no longer enough; add to it: {lines}"
            )
        else:
            entries += [e for e in plan.of(name, report.precision) if e.test == name] + new
    written = {entry.precision for entry in entries}
    said = f"the cure is written to the plan {plan.path}; run again to be held against it"
    try:
        if entries:
            merge_plan(plan.path, [(entry.test, entry.precision) for entry in entries], entries)
    except SettingError as error:  # the verdict stands without it
        said = f"the cure is not in the plan: {error}"
    told = lacks | dict.fromkeys(written, said)
    return [r.remarked([told[r.precision]]) if r.precision in told else r for r in reports]


def _reason(report: Report) -> str:
    culprit = report.culprit
    return f"{culprit.mechanism} in {culprit.module} ({culprit.operation})" if culprit else ""
