"""A model of our own: a copy of the user's module, or what the user's function makes."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_fp16.engine.containers import all_tensors
from pytest_fp16.engine.origins import note
from pytest_fp16.engine.rebinding import rebind
from pytest_fp16.engine.uncopyable import Uncopyable
from pytest_fp16.engine.untouched import memory
from pytest_fp16.errors import ModelError
from pytest_fp16.subject import of_trainer


def make_model(source: Any, weights: nn.Module | None = None) -> nn.Module:
    """A model of our own: a deep copy of a module, or what the user's function makes.

    Args:
        source: the module, or the function.
        weights: of a copy, a model of the same modules in whose memory its parameters lie, for two
            that only read it (one may cast its own); None for its own.

    Raises:
        ModelError: neither a module nor a function that makes one, one without weights yet, or a
            module that cannot be copied.
    """
    if isinstance(source, nn.Module):
        source = own_module(source)
        _require_weights(source)
        return _copy(source, weights)
    if not callable(source):
        raise ModelError(
            "model must be a torch.nn.Module or a function that makes one "
            f"(got {type(source).__name__}){of_trainer(source)}"
        )
    _require_no_arguments(source)
    made = source()
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"the model function returned {type(made).__name__}, not a torch.nn.Module"
        )
    made = own_module(made)
    _require_weights(made)
    return made


def own_model(source: Any) -> nn.Module:
    """`make_model`, and a copy of what a function makes: its user may hold that very one.

    Raises:
        ModelError: see `make_model`; or a function that gives out the same module each time, which
            cannot be copied.
    """
    made = make_model(source)
    if isinstance(source, nn.Module):
        return made
    try:
        copied = make_model(made)
        if "eval" in vars(made):  # which refuses, in an exported program, whose copy has another
            copied.training = False
        return copied
    except ModelError as error:
        if not shares_tensors(made, make_model(source)):
            return made
        raise ModelError(f"model= returns the same module each time, and {error}") from None


def shares_tensors(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules are one, or have weights or buffers in common."""

    def memories(model: nn.Module) -> set[int]:
        return {memory(t) for t in (*model.parameters(), *model.buffers()) if t.numel()}

    return one is other or not memories(one).isdisjoint(memories(other))


def own_module(module: nn.Module) -> nn.Module:
    """The module in a compiled one, or in one that spreads batches over devices or processes.

    Such wrappers compute what their module does. Some cannot be copied, and some run it in threads
    that no dispatch mode follows.
    """
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def _require_weights(model: nn.Module) -> None:
    """Refuse a model whose weights are not there yet; some of those cannot even be copied."""
    for name, module in model.named_modules():
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if any(map(is_lazy, own)):
            raise ModelError(
                f"{name or 'the model itself'} is a lazy module without weights yet; call the "
                "model on one batch first"
            )


def _copy(source: nn.Module, weights: nn.Module | None) -> nn.Module:
    memo = _shared(source) | _taken(source, weights)
    with warnings.catch_warnings():  # of torch about its own, as for an exported program
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return _deep(source, dict(memo))
        except Exception as error:
            refused = Uncopyable(source, memo)
            try:
                return _deep(source, memo | refused.shared)
            except Exception:
                raise _cannot(refused.names, error) from None


def _deep(source: nn.Module, memo: dict[int, Any]) -> nn.Module:
    made: nn.Module = copy.deepcopy(source, memo)
    rebind(made, memo)
    note(made, source)
    return made


def _cannot(names: dict[str, Exception], error: Exception) -> ModelError:
    """That a model cannot be copied, and for which attribute, where one can be named."""
    name, error = next(iter(names.items()), ("", error))
    at = f" for its attribute {name}" if name else ""
    return ModelError(
        f"the model cannot be copied{at} ({type(error).__name__}: {error}); pass a function "
        "that makes it instead, a new one in each call"
    )


def _require_no_arguments(source: Any) -> None:
    """Refuse a function that wants inputs: it is a model itself, and makes none."""
    try:
        inspect.signature(source).bind()
    except TypeError as error:
        name = getattr(source, "__name__", type(source).__name__)
        way = (
            "to call a module in a way of your own, pass it as model= and the function as forward="
        )
        if isinstance(source, type):
            way = f"give it what it needs: lambda: {name}(…)"
        raise ModelError(
            "model must be a torch.nn.Module or a function without arguments that makes one; "
            f"{name} cannot be called so ({error}); {way}"
        ) from None
    except ValueError:
        return  # a builtin that has no signature


def _shared(source: nn.Module) -> dict[int, Any]:
    """The memo of a copy, by id: what ``deepcopy`` itself has no way with.

    Scripted functions are shared: they have no state, and no copies. Sparse tensors have no storage
    of their own to copy, but clones. What a module computed and keeps, such as the weight that an
    old weight norm makes of its parts, is copied without its history.
    """
    held = [value for module in source.modules() for value in vars(module).values()]
    memo: dict[int, Any] = {
        id(value): value for value in held if isinstance(value, torch.jit.ScriptFunction)
    }
    computed = (t for t in all_tensors(held) if not t.is_leaf)
    memo |= {id(tensor): tensor.detach().clone() for tensor in computed}
    kept = (*held, *source.parameters(), *source.buffers())
    for tensor in (t for t in kept if isinstance(t, Tensor) and t.layout in _SPARSE):
        copied = tensor.detach().clone()
        parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if parameter else copied
    return memo


def _taken(source: nn.Module, weights: nn.Module | None) -> dict[int, Any]:
    """The memo of a copy, by id: parameters that lie where another model's lie.

    Not the other's themselves: a cast gives a parameter other memory, in place.
    """
    if weights is None:
        return {}
    theirs = dict(weights.named_parameters(remove_duplicate=False))
    mine = source.named_parameters(remove_duplicate=False)
    return {
        id(value): nn.Parameter(theirs[name].detach(), theirs[name].requires_grad)
        for name, value in mine
        if name in theirs and type(theirs[name]) is nn.Parameter
    }


_SPARSE = (
    *(torch.sparse_coo, torch.sparse_csr, torch.sparse_csc),
    *(torch.sparse_bsr, torch.sparse_bsc),
)
