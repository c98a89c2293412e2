"""The cures a failed training may be given, in the order they should be tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pytest_fp16.diagnosis.averages import copies_of_trained
from pytest_fp16.diagnosis.kept_buffers import NORMS, kept_buffers
from pytest_fp16.diagnosis.proposal import Proposal
from pytest_fp16.diagnosis.training_lines import at_its_line, at_the_steps_line
from pytest_fp16.engine.containers import map_tensors
from pytest_fp16.engine.emulation.operations import LOW
from pytest_fp16.engine.gradients.evidence import epsilons_of
from pytest_fp16.engine.gradients.rules.step_rules import BOUNDING
from pytest_fp16.engine.randomness import cuda_autocast_off
from pytest_fp16.engine.training.lightning import is_lightning
from pytest_fp16.engine.training.masters import Masters
from pytest_fp16.engine.training.optimization import needs_closure, optimization
from pytest_fp16.engine.training.place import Amendment
from pytest_fp16.engine.training.several import Several
from pytest_fp16.mixing import keep_in_float32
from pytest_fp16.precision import PRECISIONS, Precision
from pytest_fp16.report.model import Culprit
from pytest_fp16.subject import Training

#: Below √(smallest subnormal of the second moment) = 2^-12 an Adam epsilon cannot stand in for a
#: second moment that has rounded to zero; above 1e-3 it begins to change the training itself.
EPSILONS = (BOUNDING, 1e-3)


def proposals(
    subject: Training,
    model: nn.Module,
    precision: Precision,
    culprit: Culprit | None,
    loss_scale: float | None,
) -> Iterator[Proposal]:
    """Cures in the order of how likely they are to help, and how little they change.

    Args:
        model: a float32 model of the training, for the names of its modules.
        culprit: what is known to be at fault.
        loss_scale: the factor that would lift the gradients out of underflow, if known.
    """
    where = culprit.module if culprit is not None else None
    mechanism = culprit.mechanism if culprit is not None else None
    found: list[Proposal] = []
    decays = culprit is not None and culprit.operation == "weight_decay"
    if where == "<optimizer>" and not decays:  # of an epsilon elsewhere it would put the end off
        found += _epsilons(subject, model)
    if where == "<loss>" or culprit is None:
        lines = at_the_steps_line(subject, model, precision, culprit)
        free = mechanism == "mask-inf"  # a mask that fits costs nothing
        found += lines[:free] + _loss_in_float32(subject, model, precision) + lines[free:]
    found += kept_buffers(model, precision, culprit)
    if culprit is None:
        averages = [] if precision.mixed else copies_of_trained(model)
        found += [_keep(averages, averages[0], "absorption")] if averages else []
        if precision.casts and precision.dtype_name == "float16":  # second moments may be zero
            found += _epsilons(subject, model)[:1]
    if mechanism in ("underflow", None):
        found += _loss_scales(precision, loss_scale)
    if culprit is not None and where not in ("<optimizer>", "<loss>"):
        lines = at_its_line(model, precision, culprit)
        kept = _kept(model, culprit.module, mechanism)
        # Brought to one dtype, tensors leave everything in 16 bits, as a mask that fits does; and
        # what has no kernel is a line, whose module may hold half of the model beside it.
        at_once = culprit.variant == "mixed dtypes" or mechanism == "unsupported-op"
        first = len(lines) if at_once else mechanism == "mask-inf"
        found += lines[:first] + kept + lines[first:]
    other = [*_mixed(precision), *_bfloat16(precision)]
    other = other[::-1] if mechanism == "overflow" else other
    other += _bfloat16_mixed(precision)
    yield from _unique([*found, *_masters(subject, model, precision, where), *other])


def _unique(found: list[Proposal]) -> Iterator[Proposal]:
    seen = set()
    for proposal in found:
        if proposal.description not in seen:
            seen.add(proposal.description)
            yield proposal


def _epsilons(subject: Training, model: nn.Module) -> list[Proposal]:
    def raised_to(value: float) -> Callable[[Any], None]:
        def amend(optimizer: Any) -> None:
            for group in optimizer.param_groups:
                for name in epsilons_of(group):
                    group[name] = max(group[name], value)

        return amend

    groups = optimization(subject, model)[0].param_groups
    known = {n: g[n] for g in groups[::-1] for n in epsilons_of(g)}
    if not known:
        return []
    name, least = min(known.items(), key=lambda item: item[1])
    return [
        Proposal(
            kind="optimizer epsilon",
            description=f"set the optimizer's {name} to {value:g} (it is {least:g})",
            amendment=Amendment(optimizer=raised_to(value)),
            points_to="<optimizer>",
            mechanism="eps-underflow",
        )
        for value in EPSILONS
        if least < value
    ]


def _masters(
    subject: Training, model: nn.Module, precision: Precision, where: str | None
) -> list[Proposal]:
    """Float32 copies of the weights for an optimizer of the user's own, which keeps its state so.

    Torch's own are better served by mixed precision, which needs no code.
    """
    if precision.mixed or where != "<optimizer>":
        return []
    optimizer = optimization(subject, model)[0]
    if type(optimizer).__module__.startswith("torch.") or isinstance(optimizer, Several):
        return []
    if needs_closure(optimizer):
        return []  # it would run the model on them
    return [
        Proposal(
            kind="float32 copies",
            description="step float32 copies of the weights (the optimizer's state is float32, "
            f"too), and copy them into the {precision.dtype_name} ones after each step",
            amendment=Amendment(optimizer=Masters),
            points_to="<optimizer>",
            mechanism="absorption",
        )
    ]


def _loss_in_float32(subject: Training, model: nn.Module, precision: Precision) -> list[Proposal]:
    own = subject.loss
    if subject.training_step is not None or own is None or is_lightning(model):
        return []

    def loss(outputs: Any, targets: Any) -> Any:
        with torch.autocast("cpu", enabled=False), cuda_autocast_off():
            return own(_widened(outputs), _widened(targets))

    outside = ", outside autocast" if precision.mixed else ""
    beside = "" if precision.mixed else ", with floating targets in float32, too"
    said = f"compute the loss in float32{outside}: loss(outputs.float(), targets){beside}"
    return [
        Proposal(
            kind="loss in float32",
            description=said,
            subject=replace(subject, loss=loss),
            points_to="<loss>",
        )
    ]


def _widened(value: Any) -> Any:
    return map_tensors(value, lambda t: t.float() if t.dtype in LOW else t)


def _loss_scales(precision: Precision, scale: float | None) -> list[Proposal]:
    if precision.mixed or precision.dtype_name != "float16" or not scale or scale <= 1:
        return []
    return [
        Proposal(
            kind="loss scale",
            description=f"multiply the loss by {scale:g} before backward(), and divide the "
            "gradients by it before the optimizer's step",
            amendment=Amendment(loss_scale=scale),
            points_to="<loss>",
            mechanism="underflow",
        )
    ]


def _kept(model: nn.Module, where: str, mechanism: str | None) -> list[Proposal]:
    modules = dict(model.named_modules())
    if where not in modules or not where:
        return []
    sets = [[where]]
    norms = [n for n, m in modules.items() if isinstance(m, NORMS)]
    if isinstance(modules[where], NORMS) and len(norms) > 1:
        sets.append(norms)
    parent = where.rpartition(".")[0]
    if parent:
        sets.append([parent])
    return [_keep(names, where, mechanism) for names in sets]


def _keep(names: list[str], where: str, mechanism: str | None) -> Proposal:
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return Proposal(
        kind="keep_in_float32",
        description=f"keep {shown} in float32: keep_in_float32(model, {names[:4]!r})",
        modules=names,
        amendment=Amendment(model=lambda model: keep_in_float32(model, names, quiet=True)),
        points_to=where,
        mechanism=mechanism or "precision-loss",  # type: ignore[arg-type]
    )


def _mixed(precision: Precision) -> list[Proposal]:
    if precision.mixed:
        return []
    name = precision.name.replace("true", "mixed")
    return [
        Proposal(
            kind="mixed",
            description=f"train in {name}: float32 weights and optimizer state, 16-bit products",
            precision=PRECISIONS[name],
            points_to="<optimizer>",
            mechanism="absorption",
        )
    ]


def _bfloat16(precision: Precision) -> list[Proposal]:
    if precision.dtype_name != "float16":
        return []
    name = f"bf{precision.name}"
    return [
        Proposal(
            kind="bfloat16",
            description=f"train in {name}: bfloat16 has the range of float32",
            precision=PRECISIONS[name],
            mechanism="overflow",
        )
    ]


def _bfloat16_mixed(precision: Precision) -> list[Proposal]:
    """Both at once, for what loses its range as float16 and its digits as bfloat16."""
    if precision.mixed or precision.dtype_name != "float16":
        return []
    return [
        Proposal(
            kind="bfloat16",
            description="train in bf16-mixed: float32 weights and optimizer state, products in "
            "bfloat16, which has the range of float32",
            precision=PRECISIONS["bf16-mixed"],
            mechanism="overflow",
        )
    ]
