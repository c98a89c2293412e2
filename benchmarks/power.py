"""What the check finds that an accuracy gate does not, and how often it cries wolf.

    --part a   healthy models degraded by 0.1 to 5 points, or broken on one input in 10 to 1000:
               share found and share forecast against the number of inputs, beside accuracy gates
    --part b   defective 16-bit kernels that flip next to nothing, 256 inputs
    --part c   labelled and unlabelled data: do they give the same verdicts?
    --part d   false alarms over draws of healthy model, data and seed

Claimed: (b) found in at least 90 %; (d) at most one false alarm in 1,000.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks import common, data, models
from benchmarks.cases import HEALTHY, judge
from benchmarks.cases.base import ALL, fitted
from benchmarks.defects import DEFECTS, with_kernels
from benchmarks.forecast import group, pairs

POOL = 10_000


def draw(count: int, seed: int, pool: int = POOL) -> Tensor:
    """A random choice of test inputs."""
    return torch.randperm(pool, generator=torch.Generator().manual_seed(seed))[:count]


def gates(report: object) -> tuple[bool, bool]:
    """Would a gate at 1 point, and one at 99.9 % of the reference, have stopped this model?"""
    m = report.metric
    return m.loss > 0.01, m.candidate < 0.999 * m.reference


# --- a ------------------------------------------------------------------------------------------


class Offset(nn.Module):
    """A model with a common offset on all logits."""

    def __init__(self, model: nn.Module, offset: float) -> None:
        super().__init__()
        self.model, self.offset = model, offset

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) + self.offset


class Amplified(nn.Module):
    """An MLP whose features pass through larger units on their way to the head."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        features = self.model.body(x) * self.factor
        return self.model.head(features / self.factor)


def native_loss(model: nn.Module) -> float:
    """Points of accuracy that native float16 costs on the whole test set."""
    x, y = data.fashion("test")
    batches = data.batches(x, y, size=500)
    found = [
        judge.metric("classification", judge.run(model, batches, p), [b for _, b in batches])
        for p in ("32-true", "16-true")
    ]
    return 100 * (found[0] - found[1])


def degraded(model: nn.Module, points: float) -> nn.Module:
    """The model with the offset whose loss on the test set comes nearest to `points`."""
    offsets = [2.0 ** (k / 4) for k in range(24, 60)]
    return min((Offset(model, o) for o in offsets), key=lambda m: abs(native_loss(m) - points))


def broken_on_one_in(model: nn.Module, n: int) -> nn.Module:
    """The MLP in units in which one input in n overflows."""
    x, _ = data.fashion("test")
    with torch.no_grad():
        largest = model.body(x).amax(1)
    return Amplified(model, 65504.0 / float(largest.quantile(1 - 1 / n)))


def part_a(quick: bool) -> None:
    """Degraded and partly broken models against the number of inputs."""
    mlp, x, y = models.trained("mlp"), *data.fashion("test")
    subjects: list[tuple[str, Callable[[], nn.Module]]] = []
    for points in (1.0,) if quick else (0.1, 0.3, 1.0, 3.0, 5.0):
        subjects.append((f"{points} points", lambda p=points: degraded(mlp, p)))
    for n in (100,) if quick else (10, 100, 1000):
        subjects.append((f"one input in {n}", lambda n=n: broken_on_one_in(mlp, n)))
    rows = []
    for name, make in subjects:
        model = make()
        true_loss = native_loss(model)
        for count in (256,) if quick else (64, 256, 1024, 4096):
            tally, draws = [0] * 4, 3 if quick else 20
            for seed in range(draws):
                index = draw(count, seed)
                report = _check(model, data.batches(x[index], y[index], size=256)).report
                gate = gates(report) if report else (False, False)
                found = (
                    report is not None and report.verdict != "equivalent",
                    report is not None and report.forecast.verdict != "equivalent",
                    *gate,
                )
                tally = [t + bool(f) for t, f in zip(tally, found, strict=True)]
            rows.append(
                (name, f"{true_loss:.2f}", count, *(f"{t / draws:.0%}" for t in tally))
            )  # fmt: skip
            print(*rows[-1], sep=" | ", flush=True)
    common.write(
        "power-a",
        "Power: degraded models",
        "An MLP on Fashion-MNIST, 16-true. Share of draws in which each says no.",
        (
            "defect",
            "points lost on 10,000",
            "inputs",
            "found",
            "forecast",
            "gate 1 %",
            "gate 99.9 %",
        ),
        rows,
        quick=quick,
    )


def _check(model: nn.Module, batches: list, precision: str = "16-true", **more: object) -> object:
    from pytest_fp16 import Evaluation

    settings = {k: more.pop(k) for k in ("emulate", "target", "budget") if k in more}
    return common.checked(Evaluation(model=model, data=batches, **more), precision, **settings)


# --- b ------------------------------------------------------------------------------------------


def part_b(quick: bool) -> None:
    """Defective kernels hidden in a custom operation."""
    x, y = data.fashion("test")
    draws = 3 if quick else 20
    rows, found_all, tries, alarms, sound_tries, gates_all = [], 0, 0, 0, 0, [0, 0]
    for name in ("resmlp",) if quick else ("mlp", "resmlp", "vit"):
        for defect in ("", *DEFECTS):
            model = with_kernels(models.trained(name), defect)
            for precision in ("16-true", "bf16-true"):
                if defect == "weights through bfloat16" and precision == "bf16-true":
                    continue
                found, flips, spread, mean, gate = 0, 0, 0.0, 0.0, [0, 0]
                for seed in range(draws):
                    index = draw(256, seed)
                    batches = data.batches(x[index], y[index], size=256)
                    outcome = _check(model, batches, precision)
                    report = outcome.report
                    if report is None or report.standardised is None:
                        print(name, defect, outcome.error or report.error, flush=True)
                        continue
                    checks = {c.name: c.passed for c in report.checks}
                    found += not checks["as predicted"]
                    flips += report.flips
                    spread += report.standardised.spread / draws
                    mean += report.standardised.mean / draws
                    gate = [a + b for a, b in zip(gate, gates(report), strict=True)]
                if defect:
                    found_all, tries = found_all + found, tries + draws
                    gates_all = [a + b for a, b in zip(gates_all, gate, strict=True)]
                else:
                    alarms, sound_tries = alarms + found, sound_tries + draws
                row = (name, defect or "sound", precision, f"{spread:.2f}", f"{mean:+.2f}")
                row += (f"{flips / draws:.1f}", f"{found / draws:.0%}")
                rows.append((*row, *(f"{g / draws:.0%}" for g in gate)))
                print(*rows[-1], sep=" | ", flush=True)
    summary = (
        f"Found by the check *as predicted*: {common.share(found_all, tries)}; by an accuracy "
        f"gate at 1 point {common.share(gates_all[0], tries)}, at 99.9 % "
        f"{common.share(gates_all[1], tries)}. "
        f"Alarms on the sound kernel: {common.share(alarms, sound_tries)}."
    )
    headers = (
        *("model", "kernel", "precision", "rms of error / σ", "mean", "flips of 256"),
        *("found", "gate 1 %", "gate 99.9 %"),
    )
    common.write(
        "power-b", "Power: hidden defects, 256 inputs", summary, headers, rows, quick=quick
    )


# --- c ------------------------------------------------------------------------------------------


def part_c(quick: bool) -> None:
    """Every labelled pair again without its labels; the cases held out, too."""
    tally: dict[str, list[int]] = {}
    rows = []
    every = [("", pair) for pair in pairs("cuda", "", quick)]
    every += [("held out: ", pair) for pair in pairs("cuda", "", quick, held_out=True)]
    for kept, (case, precision, expected) in every:
        if case.task == "regression":
            continue
        with_ = common.check_case(case, precision)
        model, batches = case.build()
        bare = case.evaluation(model=model, data=[x for x, _ in batches], labelled=False)
        without = common.checked(bare, precision)
        counts = tally.setdefault(kept + group(case, expected), [0, 0, 0, 0])
        same = with_.verdict == without.verdict
        right = (1, with_.verdict == expected, without.verdict == expected, same)
        counts[:] = [c + r for c, r in zip(counts, right, strict=True)]
        if not same:
            said = (case.name, precision, expected, with_.verdict, without.verdict, without.error)
            rows.append(said)
            print(*said, sep=" | ", flush=True)
    lines = [(k, *v) for k, v in tally.items()]
    summary = common.table(("pairs", "number", "right", "right without labels", "same"), lines)
    common.write(
        "power-c",
        "Unlabelled data",
        summary + "\n\nPairs whose verdict changes:",
        ("case", "precision", "label", "with labels", "without", "error"),
        rows,
        quick=quick,
    )


# --- d ------------------------------------------------------------------------------------------


def healthy_draw(number: int) -> tuple[str, nn.Module, list]:
    """A healthy model and 256 of its test inputs, both chosen by the number of the draw."""
    from benchmarks.cases import healthy, load

    load()
    kinds = number % 4
    if kinds == 0:
        train, (x, y) = data.digits()
        seed = number // 4 % 10
        model = fitted(lambda: models.MLP(64, 64), train, seed=seed)
        index = draw(256, number, len(y))
        return f"mlp, seed {seed}", model, data.batches(x[index], y[index], size=256)
    if kinds == 1:
        x, y = data.fashion("test")
        index = draw(256, number)
        name = ("mlp", "resnet8")[number // 4 % 2]
        return name, models.trained(name), data.batches(x[index], y[index], size=256)
    names = [n for n in HEALTHY if n.startswith(("cnn_", "mlp_", "gru_", "vit_", "text_"))]
    name = names[number // 4 % len(names)]
    model, batches = getattr(healthy, name)()
    total = sum(len(y) for _, y in batches)
    return name, model, common.subset(batches, draw(256, number, total), 256)


def part_d(quick: bool, draws: int) -> None:
    """Healthy draws, one precision each in turn."""
    draws = 12 if quick else draws
    rows, alarms, forecasts = [], 0, 0
    for number in range(draws):
        name, model, batches = healthy_draw(number)
        precision = ALL[number // 5 % 4]
        found = _check(model, batches, precision)
        alarms += found.verdict != "equivalent"
        forecasts += found.forecast != "equivalent"
        if "equivalent" not in (found.verdict,) or found.forecast != "equivalent":
            failed = [c.detail for c in found.report.checks if not c.passed] if found.report else []
            why = found.error or "; ".join(failed) or found.report.forecast.reason
            rows.append((number, name, precision, found.verdict, found.forecast, why[:140]))
            print(*rows[-1], sep=" | ", flush=True)
    common.write(
        "power-d",
        "False alarms",
        f"{alarms} false alarms and {forecasts} false forecasts in {draws} draws of healthy model, "
        "data (256 inputs) and precision.",
        ("draw", "model", "precision", "verdict", "forecast", "why"),
        rows,
        quick=quick,
    )


def main() -> None:
    """Run one part, or all."""
    options = common.options(
        __doc__,
        ("--part", {"choices": tuple("abcd"), "default": None}),
        ("--draws", {"type": int, "default": 1000}),
    )
    parts = {"a": part_a, "b": part_b, "c": part_c}
    for name, run in parts.items():
        if options.part in (None, name):
            run(options.quick)
    if options.part in (None, "d"):
        part_d(options.quick, options.draws)


if __name__ == "__main__":
    main()
