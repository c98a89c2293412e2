"""What a case is, and the registers of them.

Labels say what numerical analysis and the judge (`benchmarks.cases.judge`) say. They are never
taken from, or fitted to, a verdict of pytest-fp16.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import models
from benchmarks.data import batches

ALL = ("16-true", "16-mixed", "bf16-true", "bf16-mixed")
TRUE = ("16-true", "bf16-true")
FP16 = ("16-true", "16-mixed")
MODULES = ("healthy", "planted", "reported")

Built = tuple[nn.Module, list[Any]]

#: Cures that would mend a mechanism, before those that fail in this very case are taken away.
CURES = {
    "overflow": ("keep_in_float32", "mixed", "bfloat16", "rescale", "upcast"),
    "underflow": ("keep_in_float32", "mixed", "bfloat16", "rescale", "upcast", "epsilon"),
    "cancellation": ("keep_in_float32", "mixed", "upcast"),
    "absorption": ("keep_in_float32", "mixed", "bfloat16", "upcast"),
    "precision-loss": ("keep_in_float32", "mixed", "bfloat16", "upcast"),
    "unsupported-op": ("keep_in_float32", "mixed", "upcast"),
    "mask-inf": ("keep_in_float32", "mixed", "bfloat16", "mask constant", "upcast"),
    "eps-underflow": ("keep_in_float32", "mixed", "bfloat16", "epsilon", "upcast"),
}


@dataclass(frozen=True)
class Case:
    """A trained model and the data to evaluate it on, built (and cached) when first asked for."""

    name: str
    build: Callable[[], Built]
    task: str = "auto"
    about: str = ""

    def evaluation(self, **changes: Any) -> Any:
        """What a user would hand in."""
        from pytest_fp16 import Evaluation

        model, data = self.build()
        given = {"model": model, "data": data, "task": self.task, "name": self.name}
        return Evaluation(**{**given, **changes})


@dataclass(frozen=True)
class Healthy(Case):
    """A case that is healthy in the precisions named.

    `cuda_only` names those that nothing is claimed of on a CPU: many have no float16 LSTM.
    """

    precisions: tuple[str, ...] = ALL
    cuda_only: tuple[str, ...] = ()

    def sound(self, target: str = "cuda") -> tuple[str, ...]:
        """The precisions that must pass on a target."""
        return tuple(p for p in self.precisions if target == "cuda" or p not in self.cuda_only)


@dataclass(frozen=True)
class Planted(Case):
    """A case that must fail, where, and why.

    Attributes:
        mechanism: what goes wrong.
        module: qualified name of the culprit.
        operations: ATen names, any of which is right: one defect can span a few of them.
        fails: precisions that must fail on every target; `fails_cuda` and `fails_cpu` are those
            that must fail on one of them only, because their autocast policies differ.
        also: other mechanisms that a careful reader would accept, where two names fit.
        moot: precisions whose label is not claimed (near the threshold, or it differs by kernel).
    """

    mechanism: str = ""
    module: str = ""
    operations: tuple[str, ...] = ()
    fails: tuple[str, ...] = ()
    fails_cuda: tuple[str, ...] = ()
    fails_cpu: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    moot: tuple[str, ...] = ()
    family: str = field(default="")

    def failing(self, target: str = "cuda") -> tuple[str, ...]:
        """The precisions that must fail on a target."""
        more = {"cuda": self.fails_cuda, "cpu": self.fails_cpu}[target]
        return tuple(p for p in ALL if p in self.fails or p in more)

    def sound(self, target: str = "cuda") -> tuple[str, ...]:
        """The precisions that must pass on a target."""
        return tuple(p for p in ALL if p not in self.failing(target) and p not in self.moot)

    def cures(self, precision: str, target: str = "cuda") -> tuple[str, ...]:
        """The kinds of cure that mend this case in that precision."""
        sound, kinds = self.sound(target), list(CURES[self.mechanism])
        format_name, _, mode = precision.partition("-")
        if mode == "mixed" or f"{format_name}-mixed" not in sound:
            kinds.remove("mixed")
        if "bfloat16" in kinds and (format_name == "bf16" or f"bf16-{mode}" not in sound):
            kinds.remove("bfloat16")
        return tuple(kinds)


HEALTHY: dict[str, Healthy] = {}
PLANTED: dict[str, Planted] = {}
#: Both kinds, written after the rules were, from public reports of others: `reported.py`.
HELD_OUT: dict[str, Case] = {}


def _register(case: Case, build: Callable[[], Built], usual: dict[str, Any]) -> None:
    held_out = build.__module__.rpartition(".")[2].startswith("reported")
    (HELD_OUT if held_out else usual)[case.name] = case


def healthy(
    task: str = "auto", precisions: tuple[str, ...] = ALL, cuda_only: tuple[str, ...] = ()
) -> Callable[..., Any]:
    """Register a function that builds a healthy case under its own name."""

    def register(build: Callable[[], Built]) -> Callable[[], Built]:
        name, about = build.__name__, build.__doc__ or ""
        case = Healthy(name, build, task, about, precisions, cuda_only)
        _register(case, build, HEALTHY)
        return build

    return register


def planted(mechanism: str, module: str, operations: str, **labels: Any) -> Callable[..., Any]:
    """Register a function that builds a planted failure under its own name."""

    def register(build: Callable[[], Built]) -> Callable[[], Built]:
        case = Planted(
            name=build.__name__,
            build=build,
            about=build.__doc__ or "",
            mechanism=mechanism,
            module=module,
            operations=tuple(operations.split()),
            **labels,
        )
        _register(case, build, PLANTED)
        return build

    return register


def load() -> None:
    """Fill the registers."""
    for name in MODULES:
        importlib.import_module(f"benchmarks.cases.{name}")


def named(name: str) -> Case:
    """The case of that name, whichever register it is in."""
    load()
    return {**HEALTHY, **PLANTED, **HELD_OUT}[name]


def _fingerprint(model: nn.Module, recipe: Any) -> str:
    own = {t for m in model.modules() for t in type(m).__mro__ if t.__module__[:10] == "benchmarks"}
    source = "".join(inspect.getsource(t) for t in sorted(own, key=lambda t: t.__qualname__))
    plain = (bool, int, float, str, tuple)
    for module in model.modules():
        held = vars(module).items()
        source += str([(k, v) for k, v in held if isinstance(v, plain) and k != "training"])
    return hashlib.sha256(f"{model}{source}{recipe}".encode()).hexdigest()[:10]


def fitted(
    make: Callable[[], nn.Module],
    train: tuple[Tensor, ...],
    *,
    epochs: int = 25,
    batch: int = 64,
    rate: float = 4e-3,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    seed: int = 0,
) -> nn.Module:
    """A fresh model trained on `train` (inputs…, labels), cached by its source and recipe."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
    recipe = (epochs, batch, rate, seed, getattr(loss, "__name__", ""))
    recipe += tuple(hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest() for t in train)

    def run(model: nn.Module) -> None:
        *inputs, labels = train
        keywords = {"epochs": epochs, "batch": batch, "rate": rate, "loss": loss, "seed": seed}
        models.fit(model, tuple(inputs), labels, **keywords)

    return models.cached(f"case-{_fingerprint(model, recipe)}", model, run)


def built(model: nn.Module, test: tuple[Tensor, ...], size: int = 128) -> Built:
    """A case's model in eval mode and its test batches."""
    return model.eval(), batches(*test, size=size)
