"""An independent judge of the training labels: native 16-bit CPU kernels and the plain metric.

It shares no code with pytest-fp16. Over a few seeds, a (case, precision) pair is *broken* when a
run raises, ends with parameters, outputs or loss that are not finite where its 32-bit twin's are,
or the mean loss of the metric is above 2 points and twice the spread of the 32-bit runs; *sound*
when the mean loss is at most 1.5 points or that spread; *near* in between, and then no label is
claimed.

    python -m benchmarks.cases.training_judge [--only NAME] [--device cuda] [--write]
"""

from __future__ import annotations

import argparse
import inspect
import math
import statistics
import time
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.cases.judge import metric
from benchmarks.cases.training import TrainingCase, load

SEEDS = 3
PRECISIONS = ("16-true", "bf16-true", "16-mixed", "bf16-mixed")
FORMATS = {"16": torch.float16, "bf16": torch.bfloat16, "32": torch.float32}


def _cast(x: Any, dtype: torch.dtype | None, device: str) -> Any:
    if isinstance(x, tuple):
        return tuple(_cast(part, dtype, device) for part in x)
    return x.to(device, dtype) if dtype is not None and x.is_floating_point() else x.to(device)


def _outputs(model: nn.Module, x: Any) -> Any:
    return model(*x) if isinstance(x, tuple) else model(x)


def _loss(given: dict[str, Any], model: nn.Module, x: Any, y: Any) -> torch.Tensor:
    if given.get("training_step"):
        return given["training_step"](model, (x, y))
    return given["loss"](_outputs(model, x), y)


def _asks(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer asks for the loss itself, as a sharpness-aware one does."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def train(case: TrainingCase, precision: str, seed: int, device: str = "cpu") -> tuple[float, bool]:
    """(metric, whether all stayed finite) of one native run."""
    given = case.build()
    torch.manual_seed(seed)
    model: nn.Module = given["model"]()
    dtype = FORMATS[precision.split("-")[0]]
    mixed = precision.endswith("mixed")
    model = model.to(device) if mixed else model.to(device, dtype)
    cast = None if mixed else dtype
    scaler = torch.amp.GradScaler(device, enabled=precision == "16-mixed")
    optimizer = given["optimizer"](model.parameters())
    schedule = given["scheduler"](optimizer) if given.get("scheduler") else None
    every, last = given.get("accumulate", 1), 0.0
    order = torch.Generator().manual_seed(seed)
    for _ in range(given["epochs"]):
        data = given["train_data"]
        index = torch.randperm(len(data), generator=order).tolist()
        index = index if given["epochs"] > 1 else range(len(data))
        for step, i in enumerate(index):
            x, y = data[i]
            x, y = _cast(x, cast, device), _cast(y, cast, device)

            def closure(x: Any = x, y: Any = y) -> torch.Tensor:
                optimizer.zero_grad()
                with torch.autocast(device, dtype, enabled=mixed):
                    loss = _loss(given, model, x, y)
                loss.backward()
                return loss

            if _asks(optimizer):
                last = float(optimizer.step(closure))
                continue
            with torch.autocast(device, dtype, enabled=mixed):
                loss = _loss(given, model, x, y)
            scaler.scale(loss).backward()
            last = float(loss)
            if (step + 1) % every == 0:
                if given.get("clip_grad_norm"):
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), given["clip_grad_norm"])
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                if schedule is not None and given.get("scheduler_step") == "step":
                    schedule.step()
        if schedule is not None and given.get("scheduler_step") != "step":
            schedule.step()
    return _score(given, model.eval(), precision, last)


@torch.no_grad()
def _score(
    given: dict[str, Any], model: nn.Module, precision: str, last: float
) -> tuple[float, bool]:
    device = str(next(model.parameters()).device)
    dtype, mixed = FORMATS[precision.split("-")[0]], precision.endswith("mixed")
    with torch.autocast(device.split(":")[0], dtype, enabled=mixed):
        cast = None if mixed else dtype
        outputs = [
            _outputs(model, _cast(x, cast, device)).float().cpu() for x, _ in given["eval_data"]
        ]
    finite = math.isfinite(last) and all(bool(o.isfinite().all()) for o in outputs)
    finite = finite and all(bool(p.isfinite().all()) for p in model.parameters())
    labels = [y for _, y in given["eval_data"]]
    return metric(given.get("task", "auto"), [o.nan_to_num() for o in outputs], labels), finite


def judge(
    case: TrainingCase, precision: str, twins: list[tuple[float, bool]], device: str
) -> tuple[str, float, str]:
    """(broken, sound or near; mean loss; a note)."""
    losses = []
    for seed, (reference, _) in enumerate(twins):
        try:
            score, finite = train(case, precision, seed, device)
        except (RuntimeError, TypeError, ValueError, LookupError, AssertionError) as error:
            return "broken", 1.0, str(error).split("\n")[0][:60]
        if not finite:
            return "broken", reference - score, "not finite"
        losses.append(reference - score)
    mean = statistics.mean(losses)
    spread = statistics.stdev(r for r, _ in twins)
    word = "broken" if mean > max(0.02, 2 * spread) else "near"
    return "sound" if mean <= max(0.015, spread) else word, mean, ""


def chosen(options: argparse.Namespace) -> list[TrainingCase]:
    """The cases that are asked for."""
    found = [case for case in load().values() if options.only in case.name]
    found = [case for case in found if case.origin == "held out" or not options.held_out]
    return [case for case in found if case.origin == "reported" or not options.reported]


def judged(name: str, every: bool, device: str) -> list[tuple[str, ...]]:
    """A row per precision that has a label, or per every one."""
    case, rows = load()[name], []
    start = time.perf_counter()
    twins = [train(case, "32-true", seed, device) for seed in range(SEEDS)]
    before = statistics.mean(m for m, _ in twins)
    for precision in (p for p in PRECISIONS if every or p in (*case.fails, *case.sound)):
        label = "broken" if precision in case.fails else "sound"
        label = label if precision in (*case.fails, *case.sound) else "none"
        word, loss, note = judge(case, precision, twins, device)
        mark = "DIFFER" if label not in (word, "none") else "agree" if word == label else ""
        row = (case.name, precision, label, word, f"{before:.1%}", f"{100 * loss:.4g}", mark, note)
        print(" ".join(f"{c:<20}" for c in row), f"{time.perf_counter() - start:.1f}s", flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Judge every claimed pair and show where label and judge differ."""
    from benchmarks import common

    options = common.options(
        main.__doc__,
        ("--only", {"default": "", "help": "cases whose name contains this"}),
        ("--held-out", {"action": "store_true", "help": "those of training_heldout only"}),
        ("--reported", {"action": "store_true", "help": "those of training_reported only"}),
        ("--every", {"action": "store_true", "help": "every precision, labelled or not"}),
        ("--missing", {"action": "store_true", "help": "those that the table lacks, beside it"}),
        ("--device", {"choices": ("cpu", "cuda"), "default": "cpu", "help": "whose kernels"}),
        ("--write", {"action": "store_true", "help": "write benchmarks/results/labels-…"}),
    )
    judging = partial(judged, every=options.every, device=options.device)
    table = "labels-training" + "-cuda" * (options.device == "cuda")
    kept = common.kept(table) if options.missing else common.Kept()
    wanted = kept.lacks(case.name for case in chosen(options))
    lines = [*kept.rows, *(row for rows in common.spread(judging, wanted, options) for row in rows)]
    differ = sum(row[6] == "DIFFER" for row in lines)
    said = f"{len(lines) - differ} of {len(lines)} labels confirmed, {differ} differ"
    print(said)
    common.write(
        table,
        f"Training labels against the judge, native kernels of {options.device}",
        f"{said}.",
        ("case", "precision", "label", "judge", "32-bit metric", "loss (points)", "", "note"),
        lines,
        kept.told,
        quick=not options.write,
    )


if __name__ == "__main__":
    main()
