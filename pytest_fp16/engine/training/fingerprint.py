"""A fingerprint of a training: it changes when anything changes that its runs depend on.

Functions are told by their bytecode, the values they close over, and the globals and attributes of
modules they name; classes by what they hold; data by its tensors. Code of installed packages is
told by the package's version. What has no meaning of its own (addresses, paths, generators) is left
out, or every session would look different.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pytest_fp16.engine.containers import dataclass_fields
from pytest_fp16.engine.training.reached import is_library, reached

_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
_DEEPEST = 8
#: What a class holds beside what its author wrote into it; Python 3.14 remembers annotations that
#: somebody has asked for.
_NOT_HELD = (
    *("__module__", "__doc__", "__firstlineno__", "__static_attributes__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
)
#: What of a class is told by its value; anything else (a descriptor) is part of its bases.
_HELD = (
    *(bool, int, float, complex, str, bytes, tuple, list, set, frozenset, Mapping, type),
    *(Tensor, np.ndarray, types.FunctionType, functools.partial, types.NoneType),
)
#: Bytes of one tensor that are hashed whole; of a larger one, evenly spaced rows are.
_WHOLE = 2**28
_ITEMS = 64


class Fingerprint:
    """Feed it values; `hexdigest` tells two sequences of values apart."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=20)
        self._seen: set[int] = set()
        self._alive: list[Any] = []  # an id is a value's own only while the value lives
        self._reached: list[tuple[str, Any]] = []  # fed one after the other: chains may be long

    def hexdigest(self) -> str:
        """The fingerprint of all that was fed, and of what its code reaches."""
        while self._reached:
            name, found = self._reached.pop(0)
            self.text(name).feed(found, 1)
        return self._hash.hexdigest()

    def text(self, *words: object) -> Fingerprint:
        """Feed words, each delimited."""
        for word in words:
            raw = _ADDRESS.sub("0x", str(word)).encode()
            self._hash.update(len(raw).to_bytes(8, "little") + raw)
        return self

    def feed(self, value: Any, depth: int = 0) -> Fingerprint:
        """Feed any value."""
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            return self.text(type(value).__name__, repr(value))
        if isinstance(value, (PurePath, torch.Generator, np.random.Generator)):
            return self.text(type(value).__name__)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray):
            return self._array(value)
        if id(value) in self._seen or depth > _DEEPEST:
            return self.text("again", type(value).__qualname__)
        self._seen.add(id(value))
        self._alive.append(value)
        return self._compound(value, depth + 1)

    def _compound(self, value: Any, depth: int) -> Fingerprint:
        if isinstance(value, Mapping):
            self.text("mapping", len(value))
            for key, item in value.items():
                self.feed(key, depth).feed(item, depth)
        elif isinstance(value, (list, tuple)):
            self.text("sequence", len(value))
            for item in value:
                self.feed(item, depth)
        elif isinstance(value, (set, frozenset)):
            self.text("set", *sorted(map(repr, value)))
        elif isinstance(value, types.ModuleType):
            self._module(value)
        elif isinstance(value, functools.partial):
            self.text("partial").feed(value.func, depth).feed(value.args, depth)
            self.feed(value.keywords, depth)
        elif isinstance(value, types.MethodType):
            self.text("method").feed(value.__func__, depth).feed(value.__self__, depth)
        elif isinstance(value, types.FunctionType):
            self._function(value, depth)
        elif isinstance(value, type):
            self._class(value, depth)
        else:
            self._object(value, depth)
        return self

    def _tensor(self, value: Tensor) -> Fingerprint:
        value = value.detach()
        self.text("tensor", value.dtype, tuple(value.shape))
        if value.is_sparse or value.is_quantized or value.device.type == "meta":
            return self.text(repr(value))
        if value.numel() * value.element_size() > _WHOLE and value.dim():
            rows = torch.linspace(0, value.shape[0] - 1, _ITEMS).long().unique()
            value = value[rows.to(value.device)]
        flat = value.cpu().contiguous().reshape(-1).view(torch.uint8)
        self._hash.update(flat.numpy().tobytes())
        return self

    def _array(self, value: np.ndarray) -> Fingerprint:
        if value.dtype == object:
            return self.feed(value.tolist())
        self.text("array", value.dtype, value.shape)
        if value.nbytes > _WHOLE:
            value = value[np.unique(np.linspace(0, len(value) - 1, _ITEMS).astype(int))]
        self._hash.update(np.ascontiguousarray(value).tobytes())
        return self

    def _module(self, value: types.ModuleType) -> None:
        """One that is handed about: what is asked of it is not known, so its whole text counts."""
        self.text("module", value.__name__)
        if is_library(value.__name__):
            self.text(_version(value.__name__))
        elif file := getattr(value, "__file__", None):
            with contextlib.suppress(OSError):
                self._hash.update(Path(file).read_bytes())

    def _function(self, value: types.FunctionType, depth: int) -> None:
        if _is_library(value):
            self.text("library", value.__module__, value.__qualname__, _version(value.__module__))
            return
        self.text("function").feed(value.__defaults__, depth).feed(value.__kwdefaults__, depth)
        for cell in value.__closure__ or ():
            try:
                self.feed(cell.cell_contents, depth)
            except ValueError:
                self.text("empty cell")
        self._code(value.__code__, value.__globals__, depth)

    def _code(self, code: types.CodeType, scope: dict[str, Any], depth: int) -> None:
        self.text("code", code.co_code.hex(), *code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant, scope, depth)
            else:
                self.feed(constant, depth)
        self._reached += reached(code, scope)

    def _class(self, value: type, depth: int) -> None:
        if _is_library(value):
            self.text("library", value.__module__, value.__qualname__, _version(value.__module__))
            return
        self.text("class", value.__qualname__)
        for base in value.__bases__:
            self.feed(base, depth)
        for name, item in vars(value).items():
            for holder in ("__func__", "fget", "func", "__wrapped__"):
                item = item if isinstance(item, _HELD) else getattr(item, holder, item)
            if isinstance(item, _HELD) and name not in _NOT_HELD:
                self.text(name).feed(item, depth)

    def _object(self, value: Any, depth: int) -> None:
        self.feed(type(value), depth)
        self.feed(getattr(value, "__dict__", {}).get("__wrapped__"), depth)  # lru_cache
        if isinstance(value, nn.Module):
            self.text(repr(value)).feed(dict(value.state_dict()), depth)
            for module in value.modules():
                self.feed(type(module), depth)
                self._attributes(module, depth)
        elif dataclasses.is_dataclass(value):
            for name, item in dataclass_fields(value).items():
                self.text(name).feed(item, depth)
        elif hasattr(value, "__dict__"):
            self._attributes(value, depth)
        else:
            self.text(repr(value))

    def _attributes(self, value: Any, depth: int) -> None:
        """What an object of a user's class holds; of a library's class, its plain settings."""
        library = _is_library(type(value))
        for name, item in vars(value).items():
            plain = isinstance(item, (bool, int, float, str, type(None)))
            if name.startswith("_") and (library or isinstance(value, nn.Module)):
                continue
            if plain or not library:
                self.text(name).feed(item, depth)


def _is_library(value: Any) -> bool:
    return is_library(getattr(value, "__module__", None) or "")


@functools.cache
def _package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(name), "__version__", ""))


def _version(module: str | None) -> str:
    return _package_version((module or "").partition(".")[0])


def feed_data(into: Fingerprint, data: Any, first: list[Any]) -> None:
    """Feed a user's data: all of a list or TensorDataset; of any other, evenly spaced items.

    Args:
        data: a list of batches, a DataLoader, or anything that yields batches.
        first: its first batches under a fixed seed, which show transforms and batching.
    """
    into.text("data", type(data).__qualname__, _length(data)).feed(first)
    dataset = getattr(data, "dataset", None)
    into.feed((type(data), type(dataset), getattr(data, "collate_fn", None)))
    if isinstance(data, (list, tuple)):
        into.feed(data)
        return
    for name in ("batch_size", "drop_last"):
        into.text(name, getattr(data, name, None))
    into.text(type(getattr(data, "sampler", None)).__qualname__)
    tensors = getattr(dataset, "tensors", None)
    if tensors is not None:
        into.feed(tuple(tensors))
    elif dataset is None:
        into._attributes(data, 1)
    elif (n := _length(dataset)) and hasattr(dataset, "__getitem__"):
        for index in sorted({round(i * (n - 1) / (_ITEMS - 1)) for i in range(_ITEMS)}):
            into.feed(dataset[index])


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None
