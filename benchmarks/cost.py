"""What a check costs: the theory pass, four precisions together, and memory.

Claimed: the theory pass at most 2 times a plain forward plus backward of the same batch, summed
over the models; four precisions together at most 20 plain forward passes over 10,000 images with
ResNet-20; peak memory from 10,000 to 60,000 inputs grows by less than 5 %. What is checked by runs
that are rounded at random (decisions per token, embeddings) is measured, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import common, data, models, pretrained
from benchmarks.cases.base import ALL

BATCH = 128
#: Of processes whose peak memory is measured.
PAIRS = 5
#: Of layers that hold 4 million weights each, and little else.
WIDTH = 2048


def subjects() -> Iterator[tuple[str, nn.Module, list]]:
    """The models of the calibration, one batch each."""
    x, y = data.fashion("test")
    for name in ("mlp", "resnet20", "vit"):
        yield name, models.trained(name), [(x[:BATCH], y[:BATCH])]
    yield "minilm", pretrained.minilm(), pretrained.minilm_data(BATCH, BATCH)
    yield "crepe", pretrained.crepe("full"), pretrained.crepe_data(32, 32)


def forward_backward(model: nn.Module, inputs: Any, labels: torch.Tensor) -> None:
    """What training does on the batch, less the optimizer's step."""
    out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    F.cross_entropy(out, labels).backward()
    model.zero_grad()


def theory_seconds(model: nn.Module, batch: tuple, precision: str) -> float:
    """One batch through the theory pass, its one-off set-up not counted."""
    from pytest_fp16 import Evaluation
    from pytest_fp16.engine.copies import make_model
    from pytest_fp16.engine.models import prepare
    from pytest_fp16.engine.prediction.theory_pass import TheoryPass
    from pytest_fp16.precision import precision as named
    from pytest_fp16.telling import infer_task

    inputs, labels = batch
    with torch.no_grad():
        out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    task = infer_task("auto", out, labels, len(labels), -100)
    device, wanted = torch.device("cpu"), named(precision)
    own = prepare(make_model(model), wanted, device)
    subject = Evaluation(model=model, data=[batch])
    theory = TheoryPass(own, wanted, "cuda", device, subject, task)
    reference = task.canonical(out)
    run = lambda: theory.run(inputs, len(labels), reference, 0)  # noqa: E731
    run()
    return common.clock(run, 2)


def theory(quick: bool) -> tuple[list, str]:
    """The theory pass against forward plus backward."""
    rows, total, plain_total = [], 0.0, 0.0
    for name, model, batches in subjects():
        if quick and name not in ("mlp", "resnet20"):
            continue
        plain = common.clock(lambda m=model, b=batches[0]: forward_backward(m, *b), 3)
        for precision in ("16-true", "16-mixed"):
            seconds = theory_seconds(model, batches[0], precision)
            total, plain_total = total + seconds, plain_total + plain
            row = (f"theory pass, {name}, {precision}", f"{seconds:.2f} s", f"{plain:.2f} s")
            rows.append((*row, f"{seconds / plain:.2f}"))
            print(*rows[-1], sep=" | ", flush=True)
    ratio = total / plain_total
    return rows, f"Theory pass over forward plus backward, all models: {ratio:.2f} (claimed: 2)."


class Stream:
    """Test images again and again, made as they are asked for, so that data adds no memory."""

    def __init__(self, count: int, size: int = 250) -> None:
        self.count, self.size = count, size

    def __iter__(self) -> Iterator[tuple]:
        x, y = data.fashion("test")
        for start in range(0, self.count, self.size):
            place = slice(start % len(y), start % len(y) + self.size)
            yield x[place], y[place]


def all_four(count: int, name: str = "resnet20") -> float:
    """Seconds for one subject in all four precisions, data drawn once."""
    from pytest_fp16 import Evaluation, Settings
    from pytest_fp16.conformance import examine

    subject = Evaluation(model=models.trained(name), data=Stream(count), name=name)
    start = time.perf_counter()
    examine(subject, Settings(precisions=ALL))
    return time.perf_counter() - start


def together(quick: bool) -> tuple[list, str]:
    """Four precisions against plain forward passes."""
    count = 500 if quick else 10_000
    model = models.trained("resnet20")

    def forward() -> None:
        with torch.no_grad():
            for x, _ in Stream(count):
                model(x)

    before, seconds = common.clock(forward, 2), all_four(count)
    plain = (before + common.clock(forward, 2)) / 2  # the machine may be slower by then
    row = (f"four precisions, ResNet-20, {count} images", f"{seconds:.1f} s", f"{plain:.1f} s")
    ratio = seconds / plain
    return [(*row, f"{ratio:.1f}")], (
        f"Four precisions together: {ratio:.1f} plain forward passes (claimed: 20)."
    )


class Tokens(nn.Module):
    """MiniLM, and how alike each of its states is to every word of its vocabulary."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states @ self.encoder.embeddings.word_embeddings.weight.T


def at_random(quick: bool) -> tuple[list, str]:
    """Checks whose theory is a number of runs rounded at random, against plain passes."""
    from pytest_fp16 import Evaluation, check

    minilm = pretrained.minilm()
    batches = [inputs for inputs, _ in pretrained.minilm_data(*((64, 16) if quick else (256, 32)))]
    rows, ratios = [], []
    for name, model, forward in (
        ("30,522 classes per token", Tokens(minilm.encoder).eval(), None),
        ("embeddings", minilm, lambda model, inputs: model.embed(**inputs)),
    ):
        subject = Evaluation(model=model, data=batches, labelled=False, forward=forward)
        if forward is not None:
            subject = replace(subject, task="embedding")

        def plain(model: nn.Module = model, forward: Any = forward) -> None:
            with torch.no_grad():
                for inputs in batches:
                    forward(model, inputs) if forward else model(**inputs)

        def run(subject: Evaluation = subject) -> None:
            check(subject, precision="16-true")

        before, seconds = common.clock(plain, 2), common.clock(run, 1)
        passes = (before + common.clock(plain, 2)) / 2
        ratios.append(seconds / passes)
        row = (f"16-true, MiniLM, {name}", f"{seconds:.1f} s", f"{passes:.1f} s")
        rows.append((*row, f"{ratios[-1]:.1f}"))
    return rows, (
        f"Where the theory is runs rounded at random, one precision takes {ratios[0]:.0f} plain "
        f"passes ({rows[0][0]}) and {ratios[1]:.0f} ({rows[1][0]})."
    )


#: glibc gives large blocks back, rather than keep them for what may fit into their holes.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072"}


def memory(quick: bool) -> tuple[list, str]:
    """Peak resident memory of a process that checks 10,000 and one that checks 60,000 inputs.

    It is another in each process, by a few per cent, so several pairs are measured in turn; and
    once more where the allocator has no holes to fill, which shows what a check itself keeps.
    """
    sizes = (1000, 6000) if quick else (10_000, 60_000)
    rows, said = [], []
    for how, environment in (("", {}), (", large blocks given back", GIVEN_BACK)):
        count = 1 if quick else PAIRS
        pairs = [[_peak_of(size, environment) for size in sizes] for _ in range(count)]
        ratios = sorted(large / small for small, large in pairs)
        small, large = (median(each) for each in zip(*pairs, strict=True))
        what = f"peak memory, MLP, {sizes[1]} over {sizes[0]} inputs, median of {len(pairs)}{how}"
        every = ", ".join(f"{ratio - 1:.1%}" for ratio in ratios)
        rows.append((what, f"{large:.0f} MiB", f"{small:.0f} MiB", f"{median(ratios):.3f}"))
        said.append(f"{median(ratios) - 1:.1%} ({every})")
    return rows, (
        f"Peak memory grows by {said[0]}, the median of {len(pairs)} pairs of processes (claimed: "
        f"less than 5 %); with an allocator that gives large blocks back by {said[1]}."
    )


def _peak_of(inputs: int, environment: dict[str, str]) -> float:
    """Of a process of its own, in MiB."""
    command = [sys.executable, "-m", "benchmarks.cost", "--worker", str(inputs)]
    out = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **environment}
    ).stdout
    return int(out.split()[-1]) / 1024


def check_wide(precisions: tuple[str, ...], layers: int) -> None:
    """Print what checking wide layers adds to the peak of this process, in bytes per weight."""
    from pytest_fp16 import Evaluation, Settings
    from pytest_fp16.conformance import examine

    torch.manual_seed(0)
    blocks = (nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)) for _ in range(layers))
    model = nn.Sequential(*blocks).eval()
    x = torch.randn(16, WIDTH)
    subject = Evaluation(model=model, data=[(x, model(x).detach())], task="regression")
    before = peak()
    examine(subject, Settings(precisions=precisions))
    print((peak() - before) / sum(p.numel() for p in model.parameters()))


def peak() -> int:
    """Most bytes that were resident so far: of this program alone, not of what started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def weights(quick: bool) -> tuple[list, str]:
    """Bytes per weight, beside the user's own model of four."""
    rows, found = [], []
    for precisions in (("16-true",), ("bf16-mixed",), ALL):
        what = (",".join(precisions), "--layers", "4" if quick else "40")
        command = [sys.executable, "-m", "benchmarks.cost", "--wide", *what]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found.append(float(out.split()[-1]))
        label = ", ".join(precisions) if precisions != ALL else "four precisions"
        row = (f"memory per weight, {label}", f"{found[-1]:.1f} bytes", "4 bytes")
        rows.append((*row, f"{found[-1] / 4:.2f}"))
    one, mixed, four = found
    return rows, (
        f"A check takes {one:.0f} bytes of memory per weight in 16-true, {mixed:.0f} in bf16-mixed "
        f"and {four:.0f} in four precisions together, beside the user's own model."
    )


def main() -> None:
    """Measure all of it."""
    options = common.options(
        __doc__,
        ("--worker", {"type": int, "default": 0}),
        ("--wide", {"default": ""}),
        ("--layers", {"type": int, "default": 40}),
    )
    if options.wide:
        check_wide(tuple(options.wide.split(",")), options.layers)
        return
    if options.worker:
        all_four(options.worker, "mlp")
        print(peak() // 1024)
        return
    rows, said = [], []
    for measure in (theory, together, at_random, memory, weights):
        more, sentence = measure(options.quick)
        rows += more
        said.append(sentence)
    common.write(
        "cost", "Cost", " ".join(said), ("what", "", "against", "ratio"), rows, quick=options.quick
    )


if __name__ == "__main__":
    main()
