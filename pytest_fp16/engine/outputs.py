"""What a model returns: its predictions, and what is beside them, which no check judges."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pytest_fp16.engine.containers import dataclass_fields
from pytest_fp16.errors import ModelError

#: Containers in containers that are looked into: hidden states by layer, and no caches.
_DEPTH = 3
#: Names of what ``generate`` returns for each step.
_OF_STEPS = ("logits", "scores")
#: Names that predictions go by.
_PREDICTIONS = ("logits", "out", "output", "pred")


def main_output(output: Any) -> Tensor:
    """The tensor of predictions in what a model returns: itself, `.logits`, a dict's or a tuple's.

    Logits of several steps ([N, C] each, as ``generate`` returns them) are those of all: [N, T, C].

    Raises:
        ModelError: there is no floating tensor in it.
    """
    if (steps := _steps(output)) is not None:
        return steps
    if isinstance(output, Tensor):
        candidates = [output]
    elif isinstance(getattr(output, "logits", None), Tensor):
        candidates = [output.logits]
    elif isinstance(output, Mapping):
        named = [output[k] for k in _PREDICTIONS if k in output]
        candidates = named or list(output.values())
    elif isinstance(output, (list, tuple)):
        candidates = list(output)
    else:
        candidates = list(vars(output).values()) if hasattr(output, "__dict__") else []
    # A loss beside the logits, first or not, is no prediction; alone it may be refused as one.
    candidates.sort(key=lambda c: isinstance(c, Tensor) and c.dim() == 0)
    for candidate in candidates:
        if isinstance(candidate, Tensor) and candidate.is_floating_point():
            return candidate
        if isinstance(candidate, (list, tuple)) and candidate and isinstance(candidate[0], Tensor):
            return candidate[0]
    raise ModelError(f"the model returned no logits: {_described(output)}")


def _steps(output: Any) -> Tensor | None:
    """The logits of all steps, where an output holds those of each; None elsewhere."""
    for name in _OF_STEPS:
        logits = getattr(output, name, None)
        if not isinstance(logits, (list, tuple)) or not logits:
            continue
        if not all(isinstance(t, Tensor) and t.is_floating_point() for t in logits):
            continue
        shape = logits[0].shape
        if len(shape) == 2 and all(t.shape == shape for t in logits):
            return torch.stack(list(logits), 1)
    return None


def _described(output: Any) -> str:
    """What came in place of logits, and what to do."""
    if isinstance(output, Tensor) and not output.is_floating_point() and not output.is_complex():
        return (
            f"a tensor of {output.dtype}, which hides how near its decisions were; return the "
            "scores they were taken from, or pass forward= that does"
        )
    kind = f"an object of type {type(output).__name__}"
    if isinstance(output, Tensor):
        kind = f"a tensor of {output.dtype}"
    elif isinstance(output, (list, tuple)) and output:
        kind = f"a {type(output).__name__} of {type(output[0]).__name__}"
        if not isinstance(output[0], (int, float)):
            return (
                f"{kind}, one for each input or part; pass forward= that returns one tensor of a "
                "batch's scores, of one shape for every input"
            )
    return (
        f"{kind}; return a floating tensor, a tuple or dict that holds one, or an object with "
        ".logits, or pass forward="
    )


@dataclass(frozen=True)
class Others:
    """What a model returns beside its predictions.

    Attributes:
        not_finite: how many values of each tensor are NaN or infinite, by its name.
        values: the tensors themselves that are returned as such and not in a container (hidden
            states by layer, a cache), float32 [N, …], by name.
        predictions: what the predictions are called; empty where they are not in a container.
    """

    not_finite: Counter[str] = field(default_factory=Counter)
    values: dict[str, Tensor] = field(default_factory=dict)
    predictions: str = ""

    def judged(self, shape: torch.Size) -> str:
        """Which of several outputs is judged, that of `shape`; empty where there is one."""
        if not self.values or not self.predictions:
            return ""
        beside = ", ".join(map(repr, self.values))
        return f"{self.predictions!r} of shape {tuple(shape)}, and not {beside}"

    def unsure(self, shape: torch.Size, labelled: bool) -> list[str]:
        """The warning of that, where neither a name nor labels say that it is the predictions.

        Labels do where no other output has its shape, which they would fit as well.
        """
        said = self.judged(shape)
        if not said or self.predictions in _PREDICTIONS:
            return []
        if labelled and not any(value.shape == shape for value in self.values.values()):
            return []
        return [
            f"one of several outputs is judged, {said}; to judge another, return it by forward="
        ]


def others(output: Any, predictions: Tensor) -> Others:
    """What is in an output beside the predictions."""
    found = [(n, t) for n, t in _named(output, "", _DEPTH) if t.is_floating_point()]
    if _steps(output) is not None:  # they are the predictions
        found = [(n, t) for n, t in found if n.partition(".")[0] not in _OF_STEPS]
    name = next((name for name, tensor in found if tensor is predictions), "")
    return _beside(Others(predictions=name), [(n, t) for n, t in found if t is not predictions])


def _beside(found: Others, tensors: list[tuple[str, Tensor]]) -> Others:
    for name, tensor in tensors:
        lost = tensor.numel() - int(tensor.isfinite().sum())
        if lost:
            found.not_finite[name] += lost
        if tensor.dim() and "." not in name:
            found.values[name] = tensor.detach().to(torch.float32)
    return found


def joined(parts: list[Others]) -> Others:
    """What is beside the predictions of a batch, from that of its parts, in order."""
    if len(parts) == 1:
        return parts[0]
    lost = sum((part.not_finite for part in parts), Counter[str]())
    found = Others(lost, predictions=parts[0].predictions)
    for name, value in parts[0].values.items():
        values = [part.values.get(name) for part in parts]
        alike = [v for v in values if v is not None and v.shape[1:] == value.shape[1:]]
        if len(alike) == len(parts):
            found.values[name] = torch.cat(alike)
    return found


def _named(value: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif depth:
        for key, part in _parts(value, depth == _DEPTH):
            yield from _named(part, f"{name}.{key}" if name else str(key), depth - 1)


def _parts(value: Any, whole: bool) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)
    elif dataclasses.is_dataclass(value):
        yield from dataclass_fields(value).items()
    elif whole and hasattr(value, "__dict__"):  # of objects within, such as caches, nobody asked
        yield from vars(value).items()
