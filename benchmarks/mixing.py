"""What `keep_in_float32` gives and costs on real models, against the same casts written by hand.

Claimed: the outputs are bit-identical to those of the model cast by hand, in float16 and in
bfloat16, under autocast too. Measured: the time of one bfloat16 pass with kept modules over one
without, and over the casts by hand (ratios of interleaved passes in one process).
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import common, data, models, pretrained

BATCH = 64
LOW = (torch.float16, torch.bfloat16)


class ByHand(nn.Module):
    """What a person writes around a module that must stay in float32."""

    def __init__(self, module: nn.Module, back: torch.dtype | None) -> None:
        super().__init__()
        self.module, self.back = module, back

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        args = [_wide(a) for a in args]
        kwargs = {name: _wide(a) for name, a in kwargs.items()}
        with torch.autocast("cpu", enabled=False) if self.back is None else nullcontext():
            out = self.module(*args, **kwargs)
        if self.back is None:
            return out
        return (
            tuple(_narrow(o, self.back) for o in out)
            if isinstance(out, tuple)
            else _narrow(out, self.back)
        )


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in LOW else value


def _narrow(value: Any, dtype: torch.dtype) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value


def by_hand(model: nn.Module, dtype: torch.dtype | None, names: list[str]) -> nn.Module:
    """The model in `dtype` (None: under autocast), a wrapper around each named module."""
    kept = {name: copy.deepcopy(model.get_submodule(name)) for name in names}
    model = copy.deepcopy(model)
    if dtype is not None:
        model = model.to(dtype)
    for name, module in kept.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, ByHand(module, dtype))
    return model


def subjects() -> Iterator[tuple[str, nn.Module, Any, dict[str, list[str]]]]:
    """Name, model, inputs, and sets of modules to keep."""
    inputs = pretrained.minilm_data(BATCH, BATCH)[0][0]
    layers = [f"encoder.encoder.layer.{i}" for i in range(6)]
    yield (
        "minilm",
        pretrained.minilm(),
        inputs,
        {
            "one layer norm": [f"{layers[2]}.output.LayerNorm"],
            "every layer norm": [
                "encoder.embeddings.LayerNorm",
                *(f"{at}.{part}.output.LayerNorm" for at in layers for part in ("attention",)),
                *(f"{at}.output.LayerNorm" for at in layers),
            ],
            "one layer": [layers[3]],
            "embeddings and head": ["encoder.embeddings", "head"],
        },
    )
    model = models.trained("resnet20")
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    yield (
        "resnet20",
        model,
        data.fashion("test")[0][:BATCH],
        {
            "one batch norm": norms[3:4],
            "every batch norm": norms,
            "first convolution": convolutions[:1],
        },
    )


@torch.no_grad()
def outputs(model: nn.Module, inputs: Any, dtype: torch.dtype | None, mixed: torch.dtype) -> Tensor:
    """Logits of one pass."""
    with torch.autocast("cpu", dtype=mixed) if dtype is None else nullcontext():
        if isinstance(inputs, dict):
            return model(**inputs)
        return model(inputs if dtype is None else inputs.to(dtype))


def identical(model: nn.Module, inputs: Any, names: list[str]) -> tuple[int, int, int]:
    """(bit-identical to by hand, ways tried, ways in which keeping the modules changed a bit)."""
    from pytest_fp16.mixing import keep_in_float32

    same = changed = 0
    ways = [(low, low) for low in LOW] + [(None, low) for low in LOW]
    for dtype, low in ways:
        ours = keep_in_float32(copy.deepcopy(model), names)
        plain = copy.deepcopy(model)
        if dtype is not None:
            ours, plain = ours.to(dtype), plain.to(dtype)
        out = outputs(ours, inputs, dtype, low)
        same += torch.equal(out, outputs(by_hand(model, dtype, names), inputs, dtype, low))
        changed += not torch.equal(out, outputs(plain, inputs, dtype, low))
    return same, len(ways), changed


def interleaved(runs: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of each run, taken in turns so that a busy machine slows all of them alike."""
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for run, taken in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            if number:
                taken.append(time.perf_counter() - start)
    return seconds


def overhead(model: nn.Module, inputs: Any, names: list[str], rounds: int) -> tuple[float, float]:
    """Median time in bfloat16 over that of the plain bfloat16 model, and over by hand."""
    from pytest_fp16.mixing import cast_except

    low = torch.bfloat16
    variants = [
        cast_except(copy.deepcopy(model), low, names),
        copy.deepcopy(model).to(low),
        by_hand(model, low, names),
    ]
    runs = [lambda m=m: outputs(m, inputs, low, low) for m in variants]
    ours, plain, hand = (statistics.median(taken) for taken in interleaved(runs, rounds))
    return ours / plain, ours / hand


def untouched(model: nn.Module, inputs: Any, names: list[str], rounds: int) -> float:
    """Median time of a float32 model with kept modules over that without: nothing to cast."""
    from pytest_fp16.mixing import keep_in_float32

    variants = [keep_in_float32(copy.deepcopy(model), names), model]
    runs = [lambda m=m: outputs(m, inputs, torch.float32, torch.bfloat16) for m in variants]
    ours, plain = (statistics.median(taken) for taken in interleaved(runs, rounds))
    return ours / plain


def main() -> None:
    """Bit-identity and overhead of every set of modules."""
    options = common.options(__doc__)
    rounds = 3 if options.quick else 11
    rows, same, ways = [], 0, 0
    for name, model, inputs, sets in subjects():
        for what, names in sets.items():
            equal, tried, changed = identical(model, inputs, names)
            same, ways = same + equal, ways + tried
            over_plain, over_hand = overhead(model, inputs, names, rounds)
            idle = untouched(model, inputs, names, rounds)
            kept = f"{what} ({len(names)})"
            ratios = (f"{over_plain:.2f}", f"{over_hand:.2f}", f"{idle:.2f}")
            rows.append((name, kept, f"{equal} of {tried}", f"{changed} of {tried}", *ratios))
            print(*rows[-1], sep=" | ", flush=True)
    common.write(
        "mixing",
        "keep_in_float32",
        f"Bit-identical to casts by hand: {common.share(same, ways)} (claimed: all).",
        (
            "model",
            "kept modules",
            "bit-identical to by hand",
            "outputs changed by keeping",
            "time over plain bfloat16",
            "time over by hand",
            "time over plain, all float32",
        ),
        rows,
        "Ways tried: float16, bfloat16, and autocast to each. Times are medians of "
        f"{rounds} interleaved passes over {BATCH} inputs, in eager mode.",
        options.quick,
    )


if __name__ == "__main__":
    main()
