"""A fingerprint of a training: it changes when anything changes that its runs depend on.

Functions are told by their bytecode, the values they close over and the globals they name; classes
by their functions; data by its tensors. Code of installed packages is told by the package's
version. What has no meaning of its own (addresses, paths, generators) is left out, or every session
would look different.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import re
import sys
import sysconfig
import types
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_LIBRARIES = tuple(
    path
    for path in (sysconfig.get_paths().get(k) for k in ("purelib", "platlib", "stdlib"))
    if path
)
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
_DEEPEST = 8
#: Bytes of one tensor that are hashed whole; of a larger one, evenly spaced rows are.
_WHOLE = 2**28
_ITEMS = 64


class Fingerprint:
    """Feed it values; `hexdigest` tells two sequences of values apart."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=20)
        self._seen: set[int] = set()
        self._alive: list[Any] = []  # an id is a value's own only while the value lives

    def hexdigest(self) -> str:
        """The fingerprint of all that was fed."""
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
            self.text("module", value.__name__)
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

    def _function(self, value: types.FunctionType, depth: int) -> None:
        if _is_library(value):
            self.text("library", value.__module__, value.__qualname__, _version(value))
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
        for name in code.co_names:
            if name in scope and not name.startswith("@"):
                self.text(name).feed(scope[name], depth)

    def _class(self, value: type, depth: int) -> None:
        if _is_library(value):
            self.text("library", value.__module__, value.__qualname__, _version(value))
            return
        self.text("class", value.__qualname__)
        for base in value.__bases__:
            self.feed(base, depth)
        for name, item in vars(value).items():
            item = getattr(item, "__func__", getattr(item, "fget", item))
            simple = isinstance(item, (bool, int, float, str, tuple, types.FunctionType))
            if simple and name not in ("__module__", "__doc__", "__firstlineno__"):
                self.text(name).feed(item, depth)

    def _object(self, value: Any, depth: int) -> None:
        self.feed(type(value), depth)
        if isinstance(value, nn.Module):
            self.text(repr(value)).feed(dict(value.state_dict()), depth)
            for module in value.modules():
                self.feed(type(module), depth)
                self._attributes(module, depth)
        elif dataclasses.is_dataclass(value):
            for item in dataclasses.fields(value):
                self.text(item.name).feed(getattr(value, item.name, None), depth)
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
    name = getattr(value, "__module__", None) or ""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names and top != "__main__":
        return True
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None or top == "__main__":
        return False
    return file is None or file.startswith(_LIBRARIES) or top in ("pytest_fp16", "torch")


@functools.cache
def _package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(name), "__version__", ""))


def _version(value: Any) -> str:
    return _package_version((value.__module__ or "").partition(".")[0])


def feed_data(into: Fingerprint, data: Any, first: list[Any]) -> None:
    """Feed a user's data: all of a list or TensorDataset; of any other, evenly spaced items.

    Args:
        data: a list of batches, a DataLoader, or anything that yields batches.
        first: its first batches under a fixed seed, which show transforms and batching.
    """
    into.text("data", type(data).__qualname__, _length(data)).feed(first)
    if isinstance(data, (list, tuple)):
        into.feed(data)
        return
    for name in ("batch_size", "drop_last"):
        into.text(name, getattr(data, name, None))
    into.text(type(getattr(data, "sampler", None)).__qualname__)
    dataset = getattr(data, "dataset", None)
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
