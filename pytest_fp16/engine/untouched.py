"""What a model keeps, left as it was.

Averages live in buffers, frozen weights or plain attributes, and a count of steps is a number. A
forward pass that is no step of the training must leave no trace in them.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import is_
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.containers import Met, held_tensors

_CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict, Counter)
#: Types that hold nothing: most of what a module has.
_BARE = (bool, int, float, str, type(None), FunctionType, MethodType)
#: Where torch keeps tensors and modules, which are looked at as such.
_PARTS = ("_parameters", "_buffers", "_modules")
#: What torch itself keeps in a module.
TORCHS_OWN = frozenset(vars(nn.Module()))


@dataclass
class Habits:
    """What a model was seen to do to itself; one for all that run it, as it may begin at any batch.

    Attributes:
        carries: it carries something from one batch to the next.
        writes: it writes to its weights while it is evaluated.
    """

    carries: bool = False
    writes: bool = False

    @property
    def lasting(self) -> bool:
        """Whether one pass leaves something to the next, if only the same again."""
        return self.carries or self.writes


class State:
    """What a model keeps, as it is now.

    Args:
        model: the model.
        weights: its weights too. A training step that has an optimizer of its own (a
            discriminator's) moves some of them; an evaluation moves few models' (see `Habits`).
        values: what its tensors hold, too. Without, only which ones it keeps: enough to forget a
            cache, and much cheaper.
    """

    def __init__(self, model: nn.Module, weights: bool = True, values: bool = True) -> None:
        modules = list(model.modules())
        self._empty, full = _contents([vars(m) for m in modules])
        helpers = [k for name, v in full if name not in _PARTS for k in _helpers(v)]
        empty, more = _contents([vars(k) for k in helpers])
        self._empty += empty
        self._held = [(keeper, dict(vars(keeper))) for keeper in (*modules, *helpers)]
        every = [v for _, v in (*full, *more) if type(v) in _CONTAINERS]
        self._contents = [(c, c.copy()) for v in every for c in _containers(v)]
        self._model = model
        tensors = _kept(modules, full, weights) if values else []
        self._tensors = [(t, t.detach().clone()) for t in tensors]
        optimizers = (v for _, v in full if isinstance(v, torch.optim.Optimizer))
        self._optimizers = [(o, copy.deepcopy(o.state_dict())) for o in optimizers]

    def remember(self, source: nn.Module) -> None:
        """Restore its weights as well, to those of a model that still has them."""
        had, own = (dict(m.named_parameters(remove_duplicate=False)) for m in (source, self._model))
        held = ((w, had[n].detach()) for n, w in own.items() if n in had)
        self._tensors += [(w, value.to(w.device, w.dtype, copy=True)) for w, value in held]

    @property
    def moved(self) -> bool:
        """Whether the model keeps something else by now, or other values."""
        changed = any(not _same(tensor, value) for tensor, value in self._tensors)
        return changed or any(not _holds(vars(keeper), own) for keeper, own in self._held)

    def restore(self) -> None:
        """Give it back to the model."""
        for container in self._empty:
            if container:
                container.clear()
        held = [(vars(keeper), own) for keeper, own in self._held]
        for container, before in (*held, *self._contents):
            if not _holds(container, before):  # few change, and a pass is often followed by this
                container.clear()
                (container.update if isinstance(before, (dict, set)) else container.extend)(before)
        with torch.no_grad():
            for tensor, value in self._tensors:
                if not _same(tensor, value):  # what was expanded cannot be written to
                    tensor.copy_(value)
        for optimizer, state in self._optimizers:
            optimizer.load_state_dict(state)


@contextmanager
def untouched(
    model: nn.Module, weights: bool = True, values: bool = True, since: State | None = None
) -> Iterator[None]:
    """Afterwards everything but gradients is as it was before.

    Args:
        model: the model.
        weights, values: whether its weights, and its tensors at all, could change; see `State`.
        since: what it keeps meanwhile, in place of what it keeps now.
    """
    before = State(model, weights, values)
    try:
        if since is not None:
            since.restore()
        yield
    finally:
        before.restore()


def _contents(spaces: list[dict[str, Any]]) -> tuple[list[Any], list[tuple[str, Any]]]:
    """Attributes of some objects: containers that are empty, and what may hold anything."""
    empty, full = [], []
    for space in spaces:
        for name, value in space.items():
            kind = type(value)
            if kind in _BARE:
                continue
            if kind in _CONTAINERS and not value:
                empty.append(value)
            else:
                full.append((name, value))
    return empty, full


def _holds(container: Any, before: Any) -> bool:
    """Whether a container holds the very objects it held, in their order."""
    if len(container) != len(before):
        return False
    if isinstance(before, dict):
        return all(map(is_, container, before)) and all(
            map(is_, container.values(), before.values())
        )
    return not isinstance(before, set) and all(map(is_, container, before))


def _same(tensor: Tensor, value: Tensor) -> bool:
    try:
        return torch.equal(tensor, value)
    except RuntimeError:  # no kernel for this dtype, or layout
        return False


def _kept(modules: list[nn.Module], held: list[tuple[str, Any]], weights: bool) -> list[Tensor]:
    """Buffers, tensors that are plain attributes (`held`, see `_contents`), and weights."""
    found = _own(modules, "_buffers")
    plain = [t for name, v in held if name not in TORCHS_OWN for _, t in _named("", v)]
    if plain or weights:  # every pass asks for this, and most models have neither
        parameters = _own(modules, "_parameters")
        found += _without(parameters, plain)
        found += parameters if weights else []
    return found


def _own(modules: list[nn.Module], part: str) -> list[Tensor]:
    """Parameters or buffers of modules, each once."""
    every = (t for m in modules for t in getattr(m, part).values() if t is not None)
    return list({id(t): t for t in every}.values())


def _without(parameters: Iterable[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Tensors that are no weights, nor such under another name."""
    owned = {memory(p) for p in parameters} if tensors else set()
    return [t for t in tensors if not t.requires_grad and memory(t) not in owned]


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors in plain attributes, and in lists, dicts and objects there, by name.

    Such as ``"shadow[0]"``, or ``"ema[kept][weight]"`` of an object that is no module.
    """
    found: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in TORCHS_OWN and type(value) not in _BARE:
                found.update(_named(f"{prefix}.{key}".lstrip("."), value))
    apart = set(map(id, _without(model.parameters(), list(found.values()))))
    return {n: t for n, t in found.items() if id(t) in apart}


def _named(name: str, value: Any, met: Met | None = None) -> Iterator[tuple[str, Tensor]]:
    met = {} if met is None else met
    if isinstance(value, Tensor):
        yield name, value
        return
    if id(value) in met:
        return
    met[id(value)] = value
    if isinstance(value, Mapping):
        parts: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple, deque)):
        parts = enumerate(value)
    else:
        parts = held_tensors(value).items()
    for key, part in parts:
        if type(part) not in _BARE:
            yield from _named(f"{name}[{key}]", part, met)


def _helpers(value: Any, met: Met | None = None) -> Iterator[Any]:
    """It, where it is an object of a program's own that keeps tensors; those in a container."""
    met = {} if met is None else met
    kind = type(value)
    if id(value) in met:
        return
    if kind in _CONTAINERS:
        met[id(value)] = value
        for part in value.values() if isinstance(value, dict) else value:
            yield from _helpers(part, met)
    elif kind not in _BARE and not isinstance(value, Tensor) and held_tensors(value):
        yield value


def _containers(value: Any, met: Met | None = None) -> Iterator[Any]:
    """It and the containers in it, where it is one."""
    met = {} if met is None else met
    if type(value) in _CONTAINERS and id(value) not in met:
        met[id(value)] = value
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            if type(part) in _CONTAINERS:
                yield from _containers(part, met)


def formats_of(model: nn.Module) -> dict[str, torch.dtype]:
    """Of the floating tensors in plain attributes, by name, as `plain_tensors` tells them.

    An attribute that holds several of one format has it under its own name, too: more of them may
    come.
    """
    found = {n: t.dtype for n, t in plain_tensors(model).items() if t.is_floating_point()}
    whole: dict[str, set[torch.dtype]] = defaultdict(set)
    for name, dtype in found.items():
        whole[attribute(name)].add(dtype)
    return {n: next(iter(held)) for n, held in whole.items() if len(held) == 1} | found


def attribute(name: str) -> str:
    """The attribute a tensor lies in: ``"shadow"`` of ``"shadow[0]"``."""
    return name.partition("[")[0]


def memory(tensor: Tensor) -> int:
    """Which memory it lies in."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a sparse one, or one without memory
        return id(tensor)
