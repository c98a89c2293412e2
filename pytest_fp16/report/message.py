"""A report in sentences: what was claimed and what happened, where, why, and what to do."""

from __future__ import annotations

import math

from pytest_fp16.report import figures
from pytest_fp16.report.model import Culprit, Cure, Metric, Report, Variant
from pytest_fp16.theory.budget import GENEROUS

_WHY = {
    "overflow": "a value leaves the range of {format}",
    "underflow": "values are too small for {format} and fall to zero",
    "cancellation": "nearly equal numbers are subtracted, and their rounding errors remain",
    "absorption": "a small number is lost beside a large one",
    "precision-loss": "{format} has too few digits for what is computed here",
    "unsupported-op": "the device has no {format} kernel for this operation",
    "mask-inf": "a mask constant becomes infinite in {format}",
    "eps-underflow": "what keeps a divisor or logarithm from zero is zero in {format}",
}

_WHY_VARIANT: dict[Variant, str] = {
    "mixed dtypes": "tensors of different dtypes meet in an operation that takes one",
    "refused by the program": "the program itself refuses {format}",
    "refused by autocast": "autocast refuses this operation, as it would be unsafe in 16 bits",
    "not in NumPy": "NumPy has no {format}: hand it tensor.float()",
    "other bits": "the bits of float32 are asked for, and {format} has others",
    "closure": "a gradient scaler cannot scale the steps of an optimizer that evaluates the loss "
    "itself; evaluate it in the training step, or train in bf16-mixed, without a scaler",
    "no gradient left": "a gradient scaler found no gradient left: step in the loop and not in "
    "hooks of the backward pass, or train in bf16-mixed, without a scaler",
    "while scaled": "what clamps or reads gradients must do so after scaler.unscale_(optimizer); "
    "or train in bf16-mixed, without a scaler",
    "whole numbers": "large whole numbers become one in {format}",
    "stored values": "a weight or a buffer is too small for {format} and falls to zero as the "
    "model is cast",
    "stored inputs": "the inputs themselves lose digits when they are cast to {format}",
    "infinite inputs": "the inputs themselves leave the range of {format} when they are cast",
    "infinite values": "a weight, a buffer or a number of the program's own leaves the range of "
    "{format} as it is cast",
    "stored digits": "a weight or a buffer loses digits as the model is cast to {format}",
    "near one": "a bound just below one is one in {format}: what is left of one is zero, or a step "
    "is taken that it keeps from",
    "another program": "the program does something else for {format}: it asks for the dtype, "
    "there or before",
    "stale weight": "a weight changes inside an autocast region, which goes on with its old cast",
    "coefficient": "a number that the program adds is zero in {format}",
    "padding": "the program reads padded positions, which are zero in float32 alone",
    "fast path": "torch's fast path of padded encoders stays on under autocast, and stops there",
    "another constant": "the program takes another constant for {format}: it asks for the dtype, "
    "as torch.finfo does",
    "own statement": "a statement of the program's own stops it in {format}: for the dtype, or for "
    "values that were rounded",
    "merged outputs": "outputs that float32 tells apart are one number in {format}",
    "no room": "a mask of the smallest number that {format} has, and what it is added to, are "
    "infinite",
    "bound": "a bound lies beyond the range of {format}",
    "large constant": "a constant lies beyond the range of {format}",
}

_PLACES = {"": "the model itself", "<optimizer>": "the optimizer", "<loss>": "the loss"}


def message(report: Report) -> str:
    """The whole story of one check, the first line a sentence of its own.

    A failing report takes a line for each failed check, then where, why, cure, forecast and how
    it ran; a passing one is a single paragraph. Warnings follow, one a line.
    """
    lines = [_passed(report)] if report.equivalent else _failed(report)
    return "\n".join([*lines, *(_line("warning", text) for text in report.warnings)])


def headline(report: Report) -> str:
    """What was claimed, and what happened, in one line."""
    did = "training in " if report.kind == "training" else ""
    if report.verdict == "inconclusive":
        claim = f"{did}{report.precision} against 32-true on {report.name} is inconclusive"
    else:
        claim = f"{did}{report.precision} is {report.verdict} to 32-true on {report.name}"
    happened = what_happened(report)
    return f"{claim}: {happened}" if happened else claim


def what_happened(report: Report) -> str:
    """The numbers of the headline; empty where there are none."""
    metric = report.metric
    if report.error is not None:
        said = "the model raised an error in 16 bits"
        if report.kind == "evaluation" and report.verdict == "inconclusive":  # for want of memory
            said = "no memory for a batch, nor for half of one that can be cut; yield smaller ones"
        if metric is not None and metric.labelled:
            value = figures.metric_pair(metric)[0]
            said += f" (reference: {metric.name} {value}{figures.unit(metric)})"
        return said
    if metric is None:
        return ""
    if not metric.labelled and report.flips is not None and report.decisions:
        return _unlabelled(report, metric)
    reference, candidate = figures.metric_pair(metric)
    unit = figures.unit(metric)
    return (
        f"{metric.name} {candidate}{unit}, reference {reference}{unit} ({_against_budget(metric)})"
    )


def _unlabelled(report: Report, metric: Metric) -> str:
    flips = report.flips or 0
    # A tie is no flip, but argmax may answer another class there: the loss counts what it does.
    share, budget = 100 * metric.loss, 100 * metric.budget
    digits = figures.apart(share, budget)
    ties = f" and {figures.plural(report.ties, 'tie')}" if report.ties else ""
    cost = "cost " if metric.budget_origin == "default" else ""  # weighed by their margins
    return (
        f"{figures.plural(flips, 'flip')}{ties} of {report.decisions} "
        f"({cost}{figures.decimal(share, digits)} %, budget {figures.decimal(budget, digits)} %; "
        "no labels)"
    )


def _against_budget(metric: Metric) -> str:
    loss, budget = figures.loss_pair(metric)
    if not math.isfinite(metric.loss):
        return f"the loss cannot be computed, budget {budget}"
    points = " points" if figures.is_share(metric) else ""
    if loss.startswith("-"):
        return f"gain {loss[1:]}{points}, budget {budget}"
    return f"loss {loss}{points}, budget {budget}"


def generous(metric: Metric, usual: float) -> str | None:
    """What to say of a user's budget many times the usual one: were points meant, as are printed?

    Only for a share, whose budget is printed in other units than the option takes.
    """
    given = metric.budget_origin != "default" and figures.is_share(metric)
    if not given or metric.budget <= GENEROUS * usual:
        return None
    budget, default = 100 * metric.budget, 100 * usual
    said = (
        f"the budget is {budget:.3g} points, {budget / default:.0f} times the default one here "
        f"({default:.2g})"
    )
    if metric.budget_origin == "relative":
        return said
    return (
        f"{said}; the table prints points, the option takes fractions: {metric.budget / 100:.3g} "
        f"is {metric.budget:.3g} points"
    )


def spent(report: Report) -> list[str]:
    """Where a report that only just passes, or by luck, comes near to failing; sentences."""
    if not report.equivalent or report.culprit is None:
        return []
    what, cure = "It passes by luck: most of what moved the outputs comes from", "To be safe"
    if report.metric is not None and report.metric.loss > report.metric.budget / 2:
        what, cure = "More than half of the budget is spent, most of it at", "To win it back"
    said = [f"{what} {_where(report)}"]
    return said if report.cure is None else [*said, f"{cure}: {_cure(report, report.cure)}"]


def _passed(report: Report) -> str:
    sentences = [headline(report)]
    shares = figures.certified(report.certified)
    facts = [figures.flips(report) if report.metric is None or report.metric.labelled else ""]
    facts.append(f"certified: {shares}" if shares else "")
    if any(facts):
        sentences[0] += "; " + "; ".join(fact for fact in facts if fact)
    sentences += spent(report)
    if report.run is not None:
        sentences.append(f"It ran {figures.mode(report.run)}")
    if report.speed is not None:
        sentences[-1] += f", {figures.decimal(report.speed.speedup, 2)} times as fast as 32-true"
    return (
        ". ".join(text[:1].upper() + text[1:] if n else text for n, text in enumerate(sentences))
        + "."
    )


def _why(report: Report, culprit: Culprit) -> str:
    """The mechanism in words."""
    words = _WHY_VARIANT[culprit.variant] if culprit.variant else _WHY[culprit.mechanism]
    return words.format(format=figures.dtype_name(report.precision))


def _failed(report: Report) -> list[str]:
    lines = [headline(report)]
    lines += [_line(check.name, check.detail) for check in report.checks if not check.passed]
    if report.error is not None:
        lines.append(_line("error", report.error))
    if report.culprit is not None:
        lines.append(_line("where", _where(report)))
        lines.append(_line("why", f"{report.culprit.mechanism}: {_why(report, report.culprit)}"))
    elif report.verdict == "not equivalent":
        lines.append(_line("where", _no_culprit(report)))
    if report.cure is not None:
        lines.append(_line("cure", _cure(report, report.cure)))
    elif report.verdict == "not equivalent":
        lines.append(_line("cure", f"none was found; stay in 32-true{_siblings(report)}"))
    if report.forecast is not None and report.forecast.method != "unavailable":
        lines.append(_line("forecast", _forecast(report)))
    if report.run is not None:
        canary = f"; {report.run.canary}" if report.run.canary else ""
        judged = f"; judged is {report.run.judged}" if report.run.judged else ""
        lines.append(_line("ran", figures.mode(report.run) + canary + judged))
    return lines


def _line(label: str, text: str) -> str:
    """A labelled line; further lines of the text are indented below it."""
    body = text.strip().replace("\n", "\n" + " " * 9)
    return f"  {label + ':':<6} {body}"


def place(module: str) -> str:
    """A module's name, where it has one a person would use."""
    return _PLACES.get(module, module)


def _where(report: Report) -> str:
    culprit = report.culprit
    assert culprit is not None, "unreachable: asked only where there is a culprit"
    operation = f", operation {figures.operation(culprit.operation)}" if culprit.operation else ""
    source = f" ({culprit.source})" if culprit.source else ""
    evidence = f": {culprit.evidence}" if culprit.evidence else ""
    return f"{place(culprit.module)}{operation}{source}{evidence}"


def _no_culprit(report: Report) -> str:
    top = sorted((s for s in report.sites if s.share > 0), key=lambda s: -s.share)[:3]
    text = "no single module or operation was found at fault"
    if not top:
        return text
    shares = ", ".join(
        f"{place(s.module)} ({figures.operation(s.operation)}) {figures.percent(s.share, 0)}"
        for s in top
    )
    return f"{text}; largest shares of σ²: {shares}"


def _siblings(report: Report) -> str:
    # More range is no help where digits are lost, nor where an operation is refused.
    digits = ("unsupported-op", "cancellation", "absorption", "precision-loss")
    no_help = report.culprit is not None and report.culprit.mechanism in digits
    if report.precision.startswith("bf16") or no_help or report.kind == "training":  # where tried
        return ""
    return ", or test bf16-true and bf16-mixed, whose range is that of float32"


def _cure(report: Report, cure: Cure) -> str:
    description = cure.description.strip().rstrip(".")
    if not description:
        description = f"{cure.kind}: {', '.join(cure.modules)}" if cure.modules else cure.kind
    if cure.verdict is None and not cure.verified:
        return f"{description}; not tried" + f": {cure.untried}" * bool(cure.untried)
    numbers = []
    if cure.metric is not None and report.metric is not None:
        numbers.append(_with_the_cure(report.metric, cure, cure.metric))
    elif cure.metric is not None and cure.metric_name:
        value = figures.value_of(cure.metric_name, cure.metric)
        numbers.append(f"{cure.metric_name} {value}")
    if cure.flips is not None:
        decisions = cure.decisions or report.decisions
        of = f" of {decisions}" if decisions else ""
        numbers.append(f"{figures.plural(cure.flips, 'flip')}{of}")
    passes = cure.verified and cure.verdict in (None, "equivalent")
    numbers.append("passes" if passes else "does not pass")
    if cure.verdict == "inconclusive":
        numbers[-1] = f"inconclusive: {cure.unsettled}" if cure.unsettled else "inconclusive"
    price = f"; price: {figures.price(cure.price)}" if cure.price is not None else ""
    return f"{description}; tried: {', '.join(numbers)}{price}"


def _with_the_cure(metric: Metric, cure: Cure, value: float) -> str:
    """The metric that a cure gave; beside what it was held against, where that is its own."""
    unit = figures.unit(metric)
    if cure.reference is None or cure.budget is None:
        return f"{metric.name} {figures.metric_value(metric, value)}{unit}"
    changes = {
        "reference": cure.reference,
        "candidate": value,
        "loss": cure.reference - value,
        "budget": cure.budget,
    }
    own = metric.model_copy(update=changes)
    reference, candidate = figures.metric_pair(own)
    seeds = " and ".join(map(str, cure.seeds))
    seed = f" with seed{'s' if len(cure.seeds) > 1 else ''} {seeds}" if seeds else ""
    return (
        f"{metric.name} {candidate}{unit}, reference {reference}{unit} "
        f"({_against_budget(own)}){seed}"
    )


def _forecast(report: Report) -> str:
    forecast = report.forecast
    assert forecast is not None, "unreachable: asked only where there is a forecast"
    reason = f": {forecast.reason}" if forecast.reason else ""
    return f"{forecast.verdict} ({forecast.method}, from 32-bit arithmetic alone){reason}"
