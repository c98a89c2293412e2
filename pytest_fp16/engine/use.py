"""Whether a function of the user's uses the model it is given, or another that it knows of.

One that runs a model from outside runs the same one in every precision, and loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.emulation.operations import tensors
from pytest_fp16.engine.uncompiled import FollowingMode
from pytest_fp16.engine.untouched import memory

#: Where a model lies and how it is set: this may be asked of one that then computes nothing.
_FACTS = ("device", "dtype", "training")
#: Methods that return the model.
_ITSELF = ("eval", "train", "to", "cpu", "cuda", "float", "requires_grad_")
#: Methods that yield its tensors, which may be asked for their device alone.
_TENSORS = ("parameters", "named_parameters", "buffers", "named_buffers")

IGNORED = (
    "forward= never uses the model that it is given, so every precision would run another one, in "
    "float32; call its first argument: forward=lambda model, inputs: model(inputs)"
)


@contextmanager
def called(model: nn.Module) -> Iterator[list[None]]:
    """A list that holds something once the model has been called."""
    calls: list[None] = []
    # By the class: a scripted module refuses hooks by its own name.
    handle = nn.Module.register_forward_pre_hook(model, lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        handle.remove()


def ignores(model: nn.Module, run: Callable[[Any], Any]) -> bool:
    """Whether `run` of a model comes to its end without it.

    It is run with another object in the model's place, which computes nothing. Whoever asks that
    for more than a model's whereabouts, or stumbles over it, does use the model.
    """
    with ExitStack() as stack:
        state = _State(model, stack)
        try:
            run(_StandIn(state))
        except Exception:
            return False
    return not state.used


def reaches(loss: Tensor, parameters: list[nn.Parameter]) -> bool:
    """Whether a loss depends on one of the parameters.

    What its graph does not show (a reentrant checkpoint hides a part), a backward pass does.
    """
    own = {id(p) for p in parameters}
    seen, left = set(), [loss.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if id(getattr(node, "variable", None)) in own:
            return True
        seen.add(node)
        left += [earlier for earlier, _ in node.next_functions]
    try:
        loss.backward()
    except Exception:  # the training itself tells of it
        return True
    return any(p.grad is not None for p in parameters)


class _State(FollowingMode):
    """What became of a stand-in: watches for operations on the tensors it has handed out."""

    def __init__(self, model: nn.Module, stack: ExitStack) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.stack = model, stack
        self.used = False
        self.shown: dict[int, Tensor] = {}

    def show(self, item: Any) -> Any:
        """Another tensor like it (a program from outside may know this very one), or its pair."""
        if isinstance(item, tuple):
            return tuple(map(self.show, item))
        if not isinstance(item, Tensor):
            return item
        if not self.shown:
            self.stack.enter_context(self)
        like = torch.zeros((), dtype=item.dtype, device=item.device).expand(item.shape)
        self.shown[memory(like)] = like
        return like

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.used |= any(memory(t) in self.shown for t in tensors(args, kwargs or {}))
        return func(*args, **(kwargs or {}))


class _StandIn:
    """What is handed out in a model's place."""

    _state: _State

    def __init__(self, state: _State) -> None:
        object.__setattr__(self, "_state", state)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # it passes for a model of that class
        return type(self._state.model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__getattr__("forward")

    def __setattr__(self, name: str, value: Any) -> None:
        self.__getattr__(name)

    def __getattr__(self, name: str) -> Any:
        state = self._state
        if name in _FACTS:
            return getattr(state.model, name)
        if name in _ITSELF:
            return lambda *_, **__: self
        if name in _TENSORS:
            every = getattr(state.model, name)
            return lambda *args, **kwargs: map(state.show, every(*args, **kwargs))
        state.used = True
        raise RuntimeError(f"a model's stand-in was asked for {name}")
