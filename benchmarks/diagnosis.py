"""Is the culprit right, the mechanism, the cure? And what do the usual scans blame?

Claimed: over planted failures the culprit module right at first guess in 95 %, the mechanism in
90 %, a verified cure in 90 %; on healthy models no culprit. Beside it stand a module-level scan for
NaN and infinity and a layer-by-layer comparison at a fixed tolerance, by the modules they blame.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import common
from benchmarks.cases import PLANTED, Planted, judge
from benchmarks.cases.base import Case
from benchmarks.forecast import pairs


def traced(model: nn.Module, inputs: Any, precision: str) -> dict[str, Tensor]:
    """Output of every module of one run, under its name; what was reached before an exception."""
    found: dict[str, Any] = {}
    model, convert, context = judge.prepared(model, precision, "cuda")
    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(lambda _, __, out, name=name: found.setdefault(name, out))
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
        if not torch.allclose(out.float(), want, rtol=1e-3, atol=1e-5):
            differ.append(name)
    return broken, differ


def main() -> None:
    """Diagnose every planted failure and look for culprits in healthy models."""
    options = common.options(
        __doc__,
        ("--target", {"choices": ("cuda", "cpu"), "default": "cuda"}),
        ("--only", {"default": ""}),
    )
    rows, tally, blamed, false_culprits, healthy = [], [0] * 5, [0, 0, 0], [], 0
    for case, precision, expected in pairs(options.target, options.only, options.quick):
        found = common.check_case(case, precision, target=options.target)
        report = found.report
        culprit = report.culprit if report else None
        if expected == "equivalent":
            if not isinstance(case, Planted):
                healthy += 1
                if culprit is not None and report.verdict == "equivalent" and not report.warnings:
                    false_culprits.append(f"{case.name} {precision}: {culprit.module}")
            continue
        cure = report.cure if report else None
        nan_scan, layers = usual_scans(case, precision)
        module = culprit is not None and culprit.module == case.module
        mechanisms = (case.mechanism, *case.also)
        marks = (
            module,
            culprit is not None and culprit.operation in case.operations,
            culprit is not None and culprit.mechanism in mechanisms,
            cure is not None and cure.verified,
            cure is not None and cure.kind in case.cures(precision, options.target),
        )
        tally = [t + bool(m) for t, m in zip(tally, marks, strict=True)]
        blamed[0] += len(nan_scan)
        blamed[1] += len(layers)
        blamed[2] += len(dict(case.build()[0].named_modules())) - 1
        said = f"{culprit.module}: {culprit.operation}, {culprit.mechanism}" if culprit else "none"
        wanted = f"{case.module}: {case.operations[0]}, {case.mechanism}"
        cured = f"{cure.kind} {' '.join(cure.modules)}" if cure else "none"
        row = (
            case.name,
            precision,
            *("yes" if m else "NO" for m in marks[:4]),
            wanted,
            said,
            cured,
        )
        rows.append((*row, len(nan_scan), len(layers)))
        if not all(marks[:4]):
            print(*row, found.error, sep=" | ", flush=True)
    n = len(rows)
    summary = (
        f"Culprit module right in {common.share(tally[0], n)}, operation in "
        f"{common.share(tally[1], n)}, mechanism in {common.share(tally[2], n)}; a verified cure "
        f"in {common.share(tally[3], n)}, of an expected kind in {common.share(tally[4], n)}. "
        f"Culprits named on passing healthy pairs without a warning: {len(false_culprits)} of "
        f"{healthy}. Modules blamed over the same failures: by a NaN and infinity scan "
        f"{blamed[0]}, by a layer-by-layer comparison (rtol 1e-3) {blamed[1]}, of {blamed[2]}."
    )
    headers = (
        *("case", "precision", "module", "operation", "mechanism", "cure verified"),
        *("label", "said", "cure", "NaN scan blames", "comparison blames"),
    )
    common.write(
        f"diagnosis-{options.target}",
        f"Diagnosis of {len(PLANTED)} planted cases, target {options.target}",
        summary,
        headers,
        rows,
        "\n".join(f"- {line}" for line in false_culprits),
        quick=options.quick or bool(options.only),
    )


if __name__ == "__main__":
    main()
