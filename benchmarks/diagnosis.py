"""Is the culprit right, the mechanism, the cure? And what do the usual scans blame?

Claimed: over planted failures the culprit module right at first guess in 95 %, the mechanism in
90 %, a verified cure in 90 %; on healthy models no culprit. Beside it stand a module-level scan for
NaN and infinity and a layer-by-layer comparison at a fixed tolerance, by the modules they blame.
An explanation, before cures, costs at most 10 plain forward passes of the inputs it looks at.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import common, data, models, pretrained
from benchmarks.cases import Planted, judge
from benchmarks.cases.base import Case
from benchmarks.forecast import OPTIONS, chosen
from pytest_fp16 import Evaluation, Settings
from pytest_fp16.diagnosis import evaluation
from pytest_fp16.engine.models import call_as_is
from pytest_fp16.evaluation import EvaluationRun
from pytest_fp16.evaluation_report import report_of
from pytest_fp16.report.model import Report
from pytest_fp16.treatment import patient_of


def traced(model: nn.Module, inputs: Any, precision: str) -> dict[str, Tensor]:
    """Output of every module of one run, under its name; what was reached before an exception."""
    found: dict[str, Any] = {}
    model, convert, context = judge.prepared(model, precision, "cuda")
    for name, module in model.named_modules():
        if name:

            def keep(_: Any, __: Any, out: Any, name: str = name) -> None:
                found.setdefault(name, out)  # returned, it would take the place of a later output

            nn.Module.register_forward_hook(module, keep)  # by the class: scripted ones refuse
    with context, suppress(RuntimeError, ValueError, NotImplementedError, TypeError):
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
        want = reference[name]
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
        self.costs: dict[str, tuple[float, float]] = {}
        self.total = [0.0, 0.0]

    def __enter__(self) -> Price:
        self.explained = evaluation.explained
        evaluation.explained = self.timed
        return self

    def __exit__(self, *exception: object) -> None:
        evaluation.explained = self.explained

    def timed(self, patient: Any) -> Any:
        """An explanation, timed, and then plain passes of its inputs."""
        start = time.process_time()
        found = self.explained(patient)
        seconds = time.process_time() - start
        inputs, forward = found.specimen.sample.inputs, found.specimen.candidate.subject.forward
        with torch.no_grad():
            plain = min(seconds_of(lambda: call_as_is(patient.reference, inputs, forward)))
        self.costs[patient.report.precision] = (seconds, plain)
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
    every.append(("minilm", pretrained.minilm(), pretrained.minilm_data(48, 48)))
    every.append(("crepe", pretrained.crepe(), pretrained.crepe_data(32, 32)))
    for name, model, batches in every:
        subject = Evaluation(model=model, data=batches, name=name)
        run = EvaluationRun(subject, Settings(precisions=("bf16-true",)), None)
        run.execute()
        lane = run.lanes[0]
        price.timed(patient_of(run, lane, report_of(run, lane), {}))
        rows.append((name, price.of("bf16-true")))
    return rows


def seconds_of(run: Any, repeats: int = 5) -> list[float]:
    """Seconds of this process that each of a few runs took."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return taken


def main() -> None:
    """Diagnose every planted failure and look for culprits in healthy models."""
    options = common.options(__doc__, *OPTIONS)
    with Price() as price:
        diagnosed(options, price)


class Tally:
    """Rows of the table, and what they add up to.

    Attributes:
        marks: pairs with module, operation, mechanism, a verified cure and its kind right.
        blamed: modules that a scan for NaN blames, a comparison, and all there are.
        false: healthy pairs with a culprit though nothing was wrong; `healthy` counts them all.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.rows: list[tuple[Any, ...]] = []
        self.marks = [0] * 5
        self.blamed = [0, 0, 0]
        self.false: list[str] = []
        self.healthy = 0

    def sound(self, case: Case, precision: str, report: Report | None) -> None:
        """A pair that is equivalent: nobody is to blame."""
        if isinstance(case, Planted) or report is None:
            return
        self.healthy += 1
        if report.culprit is not None and report.verdict == "equivalent" and not report.warnings:
            self.false.append(f"{case.name} {precision}: {report.culprit.module}")

    def failing(self, case: Planted, precision: str, report: Report | None, passes: str) -> bool:
        """A pair that fails; whether all that is said of it is right."""
        culprit = report.culprit if report else None
        cure = report.cure if report else None
        marks = (
            culprit is not None and culprit.module == case.module,
            culprit is not None and culprit.operation in case.operations,
            culprit is not None and culprit.mechanism in (case.mechanism, *case.also),
            cure is not None and cure.verified,
            cure is not None and cure.kind in case.cures(precision, self.target),
        )
        nan_scan, layers = usual_scans(case, precision)
        every = len(dict(case.build()[0].named_modules())) - 1
        self.marks = [t + m for t, m in zip(self.marks, marks, strict=True)]
        scans = (len(nan_scan), len(layers), every)
        self.blamed = [t + n for t, n in zip(self.blamed, scans, strict=True)]
        self.rows.append(
            (
                *(case.name, precision, *("yes" if m else "NO" for m in marks[:4])),
                f"{case.module}: {case.operations[0]}, {case.mechanism}",
                f"{culprit.module}: {culprit.operation}, {culprit.mechanism}"
                if culprit
                else "none",
                f"{cure.kind} {' '.join(cure.modules)}" if cure else "none",
                *(len(nan_scan), len(layers), passes),
            )
        )
        return all(marks[:4])

    @property
    def summary(self) -> str:
        """All pairs in a few sentences."""
        module, operation, mechanism, verified, kind = (
            common.share(m, len(self.rows)) for m in self.marks
        )
        return (
            f"Culprit module right in {module}, operation in {operation}, mechanism in "
            f"{mechanism}; a verified cure in {verified}, of an expected kind in {kind}. "
            f"Culprits named on passing healthy pairs without a warning: {len(self.false)} of "
            f"{self.healthy}. Modules blamed over the same failures: by a NaN and infinity scan "
            f"{self.blamed[0]}, by a layer-by-layer comparison (rtol 1e-3) {self.blamed[1]}, of "
            f"{self.blamed[2]}. "
        )


def diagnosed(options: Any, price: Price) -> None:
    """All cases, and the result."""
    tally = Tally(options.target)
    for case, precision, expected in chosen(options):
        found = common.check_case(case, precision, target=options.target)
        if expected == "equivalent":
            tally.sound(case, precision, found.report)
        elif not tally.failing(case, precision, found.report, price.of(precision)):
            print(*tally.rows[-1], found.error, sep=" | ", flush=True)
    small = price.ratio
    price.total = [0.0, 0.0]
    real = ", ".join(f"{name} {passes}" for name, passes in real_models(price))
    summary = tally.summary + (
        f"Explanations before cures cost {small:.1f} plain forward passes of the inputs they look "
        f"at over these small models, and of real ones (claimed: 10) {real}; "
        f"{price.ratio:.1f} over these together."
    )
    headers = (
        *("case", "precision", "module", "operation", "mechanism", "cure verified"),
        *("label", "said", "cure", "NaN scan blames", "comparison blames", "passes"),
    )
    common.write(
        f"diagnosis-{'held-out-' * options.held_out}{options.target}",
        f"Diagnosis of {len({row[0] for row in tally.rows})} planted cases, "
        f"target {options.target}",
        summary,
        headers,
        tally.rows,
        "\n".join(f"- {line}" for line in tally.false),
        quick=options.quick or bool(options.only),
    )


if __name__ == "__main__":
    main()
