"""An independent judge of the labels: native 16-bit CPU kernels, and the metric's plain loss.

It shares no code with pytest-fp16. A (case, precision) pair is *broken* when the candidate raises,
turns a finite output into NaN or infinity, or loses more than a point of its metric; *sound* when
it loses at most half a point; *near* in between. `--policy cuda` runs 16-mixed and bf16-mixed under
CUDA's autocast lists instead of the CPU's, because most labels are claimed for CUDA and no GPU is
needed to know which operations its autocast lifts to float32. What a CPU cannot tell is whether
CUDA has a 16-bit kernel where the CPU has none, or the other way round.

With ``--device cuda`` the kernels are those of a GPU, its autocast is real, and that is known too.

    python -m benchmarks.cases.judge [--policy cpu|cuda] [--device cuda] [--only NAME] [--write]
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cases import base
from benchmarks.cases.policy import (
    Composites,
    CudaAutocast,
    CudaScans,
    Regions,
    cast,
    lower_recurrent,
)

BROKEN, SOUND = 0.01, 0.005
FORMATS = {"16": torch.float16, "bf16": torch.bfloat16}


def moved(value: Any, device: str) -> Any:
    """An input on the device."""
    if isinstance(value, (list, tuple)) and not isinstance(value, rnn.PackedSequence):
        return type(value)(moved(v, device) for v in value)
    return value.to(device) if hasattr(value, "to") else value


def prepared(
    model: nn.Module, precision: str, policy: str = "cpu", device: str = "cpu"
) -> tuple[nn.Module, Callable[[Any], Any], ExitStack]:
    """A copy of the model as it runs in one precision, how its inputs are cast, and its context."""
    model, context = copy.deepcopy(model).to(device), ExitStack()
    context.enter_context(torch.no_grad())
    there = partial(moved, device=device)
    if precision == "32-true":
        return model, there, context
    dtype = FORMATS[precision.split("-")[0]]
    if policy == "cuda" and device == "cpu":
        context.enter_context(CudaScans())
    if precision.endswith("true"):
        return model.to(dtype), lambda x: cast(there(x), dtype), context
    if device != "cpu":
        context.enter_context(torch.autocast(device, dtype))
    elif policy == "cuda":
        lower_recurrent(model, dtype)
        regions = Regions(dtype)
        context.enter_context(regions)
        context.enter_context(CudaAutocast(regions))
        context.enter_context(Composites(regions))
    else:
        context.enter_context(torch.autocast("cpu", dtype))
    return model, there, context


def called(model: nn.Module, inputs: Any, convert: Callable[[Any], Any]) -> Tensor:
    """What the model makes of a tensor, a tuple of them or a dict: its logits, or the first."""
    if isinstance(inputs, dict):
        said = model(**{k: convert(v) for k, v in inputs.items()})
    else:
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        said = model(*(convert(x) for x in inputs))
    if isinstance(said, dict) and "logits" in said:  # as a ModelOutput is
        return said["logits"]
    return said[0] if isinstance(said, tuple) else said


def run(
    model: nn.Module, data: list, precision: str, policy: str = "cpu", device: str = "cpu"
) -> list[Tensor]:
    """Outputs of every batch in one precision, as float32 on the CPU."""
    model, convert, context = prepared(model, precision, policy, device)
    with context:
        outputs = [called(model, inputs, convert) for inputs, _ in data]
    return [o.float().cpu() for o in outputs]


def metric(task: str, outputs: list[Tensor], labels: list[Tensor]) -> float:
    """Accuracy, R², or agreement of signs, from scratch."""
    out = torch.cat([o.detach() for o in outputs])
    y = torch.cat(labels) if task != "embedding" else None
    if task == "regression":
        y = y.view_as(out).double()
        return float(1 - (out.double() - y).square().sum() / (y - y.mean(0)).square().sum())
    if task == "multilabel":
        return float(((out > 0) == (y.view_as(out) > 0.5)).float().mean())
    if y.shape == out.shape[:1] + out.shape[2:]:
        out = out.movedim(1, -1)
    kept = y != -100
    return float((out.argmax(-1) == y)[kept].float().mean())


def neighbours(outputs: list[Tensor]) -> Tensor:
    """The nearest other row of each batch, by cosine."""
    found = []
    for out in outputs:
        unit = nn.functional.normalize(out.double(), dim=-1)
        found.append((unit @ unit.T).fill_diagonal_(-2).argmax(-1))
    return torch.cat(found)


@dataclass(frozen=True)
class Judgement:
    """What the judge found."""

    word: str
    reference: float
    loss: float
    note: str = ""


def judge(case: base.Case, precision: str, policy: str = "cpu", device: str = "cpu") -> Judgement:
    """Whether a case is broken in one precision, by a device's native kernels."""
    model, data = case.build()
    reference = run(model, data, "32-true", device=device)
    task, labels = case.task, [y for _, y in data]
    before = 1.0 if task == "embedding" else metric(task, reference, labels)
    try:
        candidate = run(model, data, precision, policy, device)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError) as error:
        return Judgement("broken", before, 1.0, str(error).split("\n")[0][:70])
    if not all(bool(o.isfinite().all()) for o in reference):
        return Judgement("invalid", before, 0.0, "the reference is not finite")
    lost = sum(int((~o.isfinite()).sum()) for o in candidate)
    if task == "embedding":
        after = float((neighbours(candidate) == neighbours(reference)).float().mean())
    else:
        after = metric(task, [o.nan_to_num(nan=-1e30) for o in candidate], labels)
    loss = before - after
    if lost:
        return Judgement("broken", before, loss, f"{lost} outputs not finite")
    word = "broken" if loss > BROKEN else "sound" if loss <= SOUND else "near"
    return Judgement(word, before, loss)


class _Origin(TorchDispatchMode):
    """Remembers the first operation that makes NaN or infinity, and the module it ran in."""

    def __init__(self, stack: list[str]) -> None:
        super().__init__()
        self.stack, self.found = stack, ("", "")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        try:
            out = func(*args, **(kwargs or {}))
        except Exception:
            self.found = self.found if self.found[1] else (self.stack[-1], name)
            raise
        first = isinstance(out, Tensor) and out.is_floating_point() and not self.found[1]
        if first and name not in ("empty", "full_like") and not bool(out.isfinite().all()):
            self.found = (self.stack[-1], name)
        return out


def origin(case: base.Case, precision: str, policy: str = "cuda") -> tuple[str, str]:
    """Module and operation of the first value that is not finite, or that raises."""
    model, data = case.build()
    model, convert, context = prepared(model, precision, policy)
    stack = [""]
    for name, module in model.named_modules():
        enter = lambda _, __, name=name: stack.append(name)  # noqa: E731
        nn.Module.register_forward_pre_hook(module, enter)  # by the class: scripted ones refuse
        nn.Module.register_forward_hook(module, lambda *_: stack.pop() and None)
    mode = _Origin(stack)
    with context, mode, suppress(RuntimeError, TypeError, ValueError, IndexError):
        for inputs, _ in data:
            called(model, inputs, convert)
    return mode.found


def expected(case: base.Case, precision: str, policy: str) -> str:
    """What the label says: broken, sound, or nothing."""
    if isinstance(case, base.Planted):
        if precision in case.moot:
            return "-"
        return "broken" if precision in case.failing(policy) else "sound"
    return "sound" if precision in case.sound(policy) else "-"


def cases(held_out: bool) -> list[base.Case]:
    """The cases that are held out, or all others."""
    base.load()
    if held_out:
        return list(base.HELD_OUT.values())
    return [*base.HEALTHY.values(), *base.PLANTED.values()]


Row = tuple[str, str, str, str, str, str, str, str]


def rows(name: str, policy: str, device: str) -> list[Row]:
    """Name, precision, label, judgement and its figures, for each precision of a case."""
    case, lines = base.named(name), []
    for precision in base.ALL:
        label, found = expected(case, precision, policy), judge(case, precision, policy, device)
        mark = "" if label == "-" else "agree" if label == found.word else "DIFFER"
        lost = 100 * found.loss
        figures = (f"{found.reference:.1%}", f"{lost:.2f}" if lost < 1e6 else f"{lost:.0e}")
        lines.append((name, precision, label, found.word, *figures, mark, found.note))
    return lines


def show_origins(only: str, policy: str, held_out: bool) -> None:
    """Where the values of every planted case first fail, beside its label."""
    for case in cases(held_out):
        if not isinstance(case, base.Planted) or only not in case.name:
            continue
        if failing := case.failing(policy):
            found = origin(case, failing[0], policy)
            print(case.name, failing[0], "found", *found, "label", case.module, case.operations)


def main() -> None:
    """Judge every case and show where label and judge differ."""
    from benchmarks import common

    options = common.options(
        main.__doc__,
        ("--policy", {"choices": ("cpu", "cuda"), "default": "cuda"}),
        ("--device", {"choices": ("cpu", "cuda"), "default": "cpu", "help": "whose kernels"}),
        ("--only", {"default": "", "help": "cases whose name contains this"}),
        ("--held-out", {"action": "store_true", "help": "the cases of reported.py instead"}),
        ("--missing", {"action": "store_true", "help": "those that the table lacks, beside it"}),
        ("--origins", {"action": "store_true", "help": "show where values first fail"}),
        ("--write", {"action": "store_true", "help": "write benchmarks/results/labels-*.md"}),
    )
    if options.origins:
        show_origins(options.only, options.policy, options.held_out)
        return
    policy = "cuda" if options.device == "cuda" else options.policy
    wanted = [case.name for case in cases(options.held_out) if options.only in case.name]
    whose = f"{policy}{'-native' * (options.device == 'cuda')}"
    table = f"labels-{'held-out-' * options.held_out}{whose}"
    kept = common.kept(table) if options.missing else common.Kept()
    lines, wanted = list(kept.rows), kept.lacks(wanted)
    judged = partial(rows, policy=policy, device=options.device)
    for found in common.spread(judged, wanted, options):
        lines += found
        for line in found:
            print(" ".join(f"{cell:<12}" for cell in line), flush=True)
    marks = [line[6] for line in lines]
    claimed, differ = sum(map(bool, marks)), marks.count("DIFFER")
    said = f"{marks.count('agree')} of {claimed} labels confirmed, {differ} differ"
    print(said)
    kernels = "a GPU's kernels" if options.device == "cuda" else f"{policy}'s autocast policy"
    common.write(
        table,
        f"Labels against the judge, {kernels}",
        f"{said}.",
        ("case", "precision", "label", "judge", "reference", "loss (points)", "", "note"),
        lines,
        kept.told,
        quick=not options.write,
    )


if __name__ == "__main__":
    main()
