"""Batches as users hand them in: split into inputs and labels, moved, cast, and cut into chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from pytest_fp16.engine.containers import (
    all_tensors,
    leaves,
    map_tensors,
    mapping_like,
    named_parts,
    with_parts,
)
from pytest_fp16.errors import DataError, ModelError, SettingError

_LABEL_KEYS = ("labels", "label", "targets", "target")

#: Chunk sizes of the theory pass: primes, so that the batch dimension can be told from the others.
#: Some lie just above the powers of two that batches have.
PRIMES = (1, 5, 7, 11, 13, 17, 23, 31, 37, 43, 53, 61, 67, 79, 89, 101, 113, 127, 131, 179, 257)
#: Inputs in a part of a batch, at least: alone, one may lose its dimension (``squeeze()``).
FEWEST = PRIMES[1]


def first_batch(data: Iterable[Any], name: str) -> Any:
    """The first batch that data of that name yields.

    Raises:
        DataError: there is none.
    """
    for batch in data:
        return batch
    raise DataError(f"{name} is empty: it yielded no batch")


def split_batch(batch: Any, labelled: bool | None) -> tuple[Any, Any]:
    """(inputs, labels) of a batch; labels is None where there are none.

    Raises:
        DataError: `labelled` is True and the batch has no second part.
    """
    if isinstance(batch, Mapping):
        for key in _LABEL_KEYS:
            if key in batch and labelled is not False:
                rest = {k: v for k, v in batch.items() if k != key}
                return mapping_like(batch, rest), batch[key]
    elif isinstance(batch, (list, tuple)) and len(batch) == 2 and labelled is not False:
        inputs, labels = batch
        if labels is None and not labelled:
            return inputs, None  # a place for labels that is empty, and no second input
        if labelled or isinstance(labels, Tensor) or _is_labels(labels):
            return inputs, labels
    if labelled:
        several = isinstance(batch, (list, tuple)) and len(batch) > 2
        what = f" of {len(batch)}: yield a pair, ((a, b), labels)" if several else ""
        if not isinstance(batch, (Tensor, Mapping, list, tuple)):
            what = (
                ": yield a pair of it and its labels, such as (data, data.y), and the model gets "
                "it whole; labels that do not count (outside of a mask) are -100, or ignore_index="
            )
        raise DataError(
            "labels are needed (labelled=True, a metric= that needs labels, or a training), but a "
            f"batch is not (inputs, labels) nor a dict with 'labels'; it is {type(batch).__name__}"
            + what
        )
    if isinstance(batch, (list, tuple)) and len(batch) == 1:
        return batch[0], None
    return batch, None


def _is_labels(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    return isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value)


def to_device(value: Any, device: torch.device) -> Any:
    """Every tensor moved to `device`."""
    return map_tensors(value, lambda t: t.to(device))


def copied(value: Any) -> Any:
    """Tensors of one's own: a model may write into its inputs, and the next run reads them."""
    return map_tensors(value, lambda t: t.clone())


def cast_floating(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors converted to `dtype`, integer and bool tensors untouched."""
    return map_tensors(value, lambda t: t.to(dtype) if t.is_floating_point() else t)


def cast_inputs(inputs: Any, dtype: torch.dtype, keep: Sequence[int | str]) -> Any:
    """The same of a model's inputs, but for those that `keep_inputs` names."""
    return map_inputs(inputs, lambda t, kept: t if kept else cast_floating(t, dtype), keep)


def cast_batch(batch: Any, dtype: torch.dtype, keep: Sequence[int | str], whole: bool) -> Any:
    """The same of a training's batch: of its inputs, or of the batch itself if `whole`."""
    if not keep or whole or isinstance(batch, Mapping):
        return cast_inputs(batch, dtype, keep)
    inputs, *targets = batch
    cast = [cast_inputs(inputs, dtype, keep), *(cast_floating(t, dtype) for t in targets)]
    return with_parts(batch, dict(enumerate(cast)))


def map_inputs(
    inputs: Any, change: Callable[[Tensor, bool], Any], keep: Sequence[int | str]
) -> Any:
    """Inputs with every tensor changed.

    Args:
        inputs: as a batch has them.
        change: what becomes of a tensor, and whether it belongs to those that are kept.
        keep: places in a tuple or list, keys of a mapping, or names of an object's fields.
    """
    if not keep:
        return map_tensors(inputs, lambda t: change(t, False))
    parts = {}
    for key, part in named_parts(inputs).items():
        parts[key] = map_tensors(part, partial(_changed, change, key in keep))
    return with_parts(inputs, parts)


def _changed(change: Callable[[Tensor, bool], Any], kept: bool, tensor: Tensor) -> Any:
    return change(tensor, kept)


def require_kept(inputs: Any, keep: Sequence[int | str]) -> None:
    """Refuse what `keep_inputs` names and the inputs do not have.

    Raises:
        SettingError: they do not.
    """
    has = named_parts(inputs) if keep else {}
    for key in keep:
        if key not in has:
            known = ", ".join(map(repr, has))
            raise SettingError(f"keep_inputs names {key!r}; the inputs have {known}")


def cast_module(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Floating parameters and buffers converted, as ``model.half()`` does; changed in place.

    ``model.to(torch.float16)`` would make complex ones real, and lose their imaginary part.

    Args:
        model: any module.
        dtype: torch.float16 or torch.bfloat16.

    Raises:
        ModelError: the model does not let itself be cast.
    """
    ways: list[Callable[[], nn.Module]] = [lambda: model.to(dtype)]  # where the other is refused
    if dtype is torch.float16:
        ways.insert(0, model.half)
    elif not isinstance(model, torch.jit.ScriptModule):  # which has no bfloat16()
        ways.insert(0, model.bfloat16)
    refused: Exception | None = None
    for cast in ways:
        try:
            return cast()
        except Exception as error:
            refused = refused or error
    raise ModelError(
        f"the model refuses to be cast to {str(dtype).removeprefix('torch.')} "
        f"({type(refused).__name__}: {refused}); check its mixed precisions alone"
    )


def count_inputs(inputs: Any, labels: Any) -> int:
    """Number of inputs in a batch: the length of the labels, else of the first tensor.

    No labels at all are no count: pictures without a box are pictures.

    Raises:
        DataError: there is no tensor, or it has no dimension.
    """
    if isinstance(labels, Tensor) and labels.dim() > 0 and len(labels):
        return int(labels.shape[0])
    for leaf in leaves(inputs):
        if isinstance(leaf, PackedSequence):
            return int(leaf.batch_sizes[0])
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            return int(leaf.shape[0])
    held = ", ".join(sorted({type(leaf).__name__ for leaf in leaves(inputs)})) or "nothing"
    raise DataError(
        f"a batch holds no tensor with a batch dimension (it holds {held}); yield tensors, or "
        "tuples, dicts or dataclasses of them"
    )


def holds(inputs: Any, n: int) -> bool:
    """Whether a batch says in another way that it holds n inputs: its list, or its own count.

    Graphs that are merged into one (of PyG, of DGL) say how many they were.
    """
    if one_by_one(inputs, n):
        return True
    return any(getattr(inputs, name, None) == n for name in ("num_graphs", "batch_size"))


def batch_dim(tensor: Tensor, n: int) -> int | None:
    """The dimension that runs over the n inputs: the first or (time first) the second; or None."""
    for dim in range(min(2, tensor.dim())):
        if tensor.shape[dim] == n:
            return dim
    return None


def one_by_one(inputs: Any, n: int) -> bool:
    """Whether a batch is a list with something of its own for each of its n inputs: graphs, say.

    Where all that is in it runs over n inputs, it is as many arguments: the texts and the summaries
    of a batch of two.
    """
    if not isinstance(inputs, (list, tuple)) or hasattr(inputs, "_make") or len(inputs) != n:
        return False
    kinds = {type(item) for item in inputs}
    if len(kinds) != 1 or issubclass(kinds.pop(), (Tensor, list, tuple)):
        return False
    held = all_tensors(inputs)
    return not held or any(not t.dim() or t.shape[0] != n for t in held)


def take(inputs: Any, n: int, indices: list[int]) -> Any:
    """The inputs at `indices`, repeated where an index is; tensors without a batch stay whole."""
    if one_by_one(inputs, n):
        return type(inputs)([inputs[i] for i in indices])

    def pick(tensor: Tensor) -> Tensor:
        dim = batch_dim(tensor, n)
        if dim is None:
            return tensor
        return tensor.index_select(dim, torch.tensor(indices, device=tensor.device))

    return map_tensors(inputs, pick, lambda packed: _taken(packed, indices))


def _taken(packed: PackedSequence, indices: list[int]) -> PackedSequence:
    """Sequences of a packed batch, packed anew."""
    padded, lengths = pad_packed_sequence(packed, batch_first=True)
    chosen = padded[torch.tensor(indices, device=padded.device)]
    return pack_padded_sequence(chosen, lengths[indices], batch_first=True, enforce_sorted=False)


def chunks(n: int, size: int, least: int = 1) -> list[tuple[list[int], int]]:
    """Index lists of about one length that cover 0…n−1, each padded by repeating an input.

    As few as can be, for every one costs calls of kernels, and a small one little but these.

    Args:
        n: inputs.
        size: of a list, at most; one of `PRIMES`.
        least: of the last one, unless `size` is smaller.

    Returns:
        Pairs of (indices, how many of them count).
    """
    result = []
    step = -(-n // max(1, -(-n // size)))  # rounded up, both
    for start in range(0, n, step or 1):
        indices = list(range(start, min(start + step, n)))
        kept = len(indices)
        prime = next((p for p in PRIMES if p >= max(kept, min(least, size))), size)
        result.append((indices + [indices[-1]] * (prime - kept), kept))
    return result
