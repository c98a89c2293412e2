"""Keep named modules in float32 inside a model that runs in 16 bits.

A kept module becomes an *island*: its class is replaced by a subclass that casts on entry and on
exit. The keys of the state dict stay as they are.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.engine.batching import cast_module
from pytest_fp16.engine.copies import own_module
from pytest_fp16.engine.fast_path import without_fast_path
from pytest_fp16.errors import ModelError
from pytest_fp16.module_names import module_named
from pytest_fp16.variants import Variant, variant

_LOW = (torch.float16, torch.bfloat16)


def keep_in_float32(model: nn.Module, modules: Iterable[str], *, quiet: bool = False) -> nn.Module:
    """Make the named submodules run in float32, whatever 16-bit format the rest runs in.

    Their parameters and buffers are float32 and stay so when the model is cast later
    (``model.half()``, ``model.to(torch.bfloat16)``); call this *before* such a cast, because
    parameters that were 16-bit already have lost their digits. Where the inputs of a kept module
    are 16-bit, they are cast to float32 and its outputs back to what came in; a module that is
    given no floating input (an embedding) returns the format the model was cast to. Under
    autocast it is off inside, and outputs stay float32: the operations that follow cast them as
    autocast's policy says. In a model that is float32 throughout nothing changes.

    A parameter that a kept module shares with another (tied weights) can only have one dtype, so
    the other module is kept as well; so is a part of a kept module that is also used elsewhere.
    Containers that are never called (ModuleList, ModuleDict) stand for their members. Only calls
    of a kept module are cast: code that reads its weights itself, or calls another of its
    methods, finds float32 there.

    Args:
        model: changed in place.
        modules: qualified names as in ``model.named_modules()``; ``""`` is the whole model. What a
            wrapper adds to them (``module.``, ``_orig_mod.``) may be left out.
        quiet: do not warn of weights that are in 16 bits already.

    Returns:
        The same model.

    Raises:
        ModelError: no such module, or one that cannot be kept apart from its parent.
    """
    own = own_module(model)
    names = [modules] if isinstance(modules, str) else modules
    if not isinstance(names, Iterable):
        raise ModelError(
            "modules must be names of submodules, such as ['head'], as model.named_modules() has "
            f"them (got {type(modules).__name__})"
        )
    islands = _islands(own, [module_named(model, name) for name in names]).keys()
    for module in islands:
        _refuse(own, module)
    fresh = [module for module in islands if not isinstance(module, Float32Island)]
    narrow = [name for name, m in own.named_modules() if m in fresh and _is_narrow(m)]
    if narrow and not quiet:
        warnings.warn(
            f"{', '.join(map(repr, narrow[:3]))} in 16 bits already: the digits that a cast has "
            "taken do not come back; call keep_in_float32 on the float32 model, before the cast",
            stacklevel=2,
        )
    around = next((p.dtype for p in own.parameters() if p.dtype in _LOW), None)
    for module in fresh:
        module.float()
        module.__class__ = variant(Float32Island, type(module))
        vars(module)["_fp16_around"] = around
        module.register_forward_pre_hook(_mark)
        module.register_load_state_dict_post_hook(_restore)
    for module in own.modules():
        if isinstance(module, nn.TransformerEncoder) and not islands.isdisjoint(module.modules()):
            without_fast_path(module)  # which reads weights past their modules
    return model


def cast_except(model: nn.Module, dtype: torch.dtype, modules: Iterable[str]) -> nn.Module:
    """The model in `dtype`, its named submodules in float32; changed in place.

    Complex parameters and buffers stay as they are, as with ``model.half()``.

    Raises:
        ModelError: see `keep_in_float32`.
    """
    kept = keep_in_float32(model, modules)
    return cast_module(kept, dtype) if dtype in _LOW else kept.to(dtype)


class Float32Island(Variant):
    """A module that is kept in float32."""

    _fp16_prefix = "Float32"
    _fp16_around: torch.dtype | None

    def _fp16_apply(
        self, own: Callable[..., Any], fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any
    ) -> Any:
        """Every cast and move of a module goes through here: follow all but a cast to 16 bits."""
        fn = getattr(fn, "fp16_whole", fn)

        def keep(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            if changed.dtype not in _LOW:
                return changed
            self._fp16_around = changed.dtype
            return tensor.to(changed.device, torch.float32)

        if self._fp16_around is not None:  # is this a cast, or a move that leaves 16 bits alone?
            after = fn(torch.zeros(1, dtype=self._fp16_around)).dtype
            self._fp16_around = after if after in _LOW else None
        keep.fp16_whole = fn  # type: ignore[attr-defined]
        return own(self, keep, *args, **kwargs)

    def _fp16_run(self, own: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        return _run(own, self, args, kwargs)

    def _fp16_method(  # type: ignore[override]
        self, own: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """An encoder's `decode`, say: from outside it is entered as `forward` is."""
        given = list(_tensors((args, kwargs)))
        device = _device_type(given, self)
        outside = any(t.dtype in _LOW for t in given) or (device is not None and autocasts(device))
        return _run(own, self, args, kwargs) if given and outside else own(self, *args, **kwargs)


def _run(forward: Callable[..., Any], module: Any, args: Any, kwargs: Any) -> Any:
    """`forward` in float32: inputs widened, autocast off, outputs narrowed where that is due."""
    inputs = list(_tensors((args, kwargs)))
    floating = [tensor.dtype for tensor in inputs if tensor.is_floating_point()]
    device = _device_type(inputs, module)
    if device is not None and autocasts(device):
        with torch.autocast(device, enabled=False):
            args, kwargs = _widened((args, kwargs))
            return forward(module, *args, **kwargs)
    low = [dtype for dtype in floating if dtype in _LOW]
    back = low[0] if low else (None if floating else module._fp16_around)
    if low:
        args, kwargs = _widened((args, kwargs))
    output = forward(module, *args, **kwargs)
    if back is None:
        return output
    return _changed(output, lambda t: t.to(back) if t.dtype == torch.float32 else t)


def autocasts(device: str) -> bool:
    """Whether autocast is on for a type of device; some have none."""
    if device == "meta":  # torch.compile can trace this, but not the error below
        return False
    try:  # nor is_autocast_available, up to torch 2.11
        return torch.is_autocast_enabled(device)
    except RuntimeError:  # another type of device without autocast
        return False


def _device_type(inputs: list[Tensor], module: Any) -> str | None:
    if inputs:
        return inputs[0].device.type
    parameter = next(module.parameters(), None)
    return None if parameter is None else parameter.device.type


def _widened(value: Any) -> Any:
    """16-bit tensors in float32; one given twice (query, key and value) stays one."""
    done: dict[Tensor, Tensor] = {}

    def widen(tensor: Tensor) -> Tensor:
        if tensor.dtype not in _LOW:
            return tensor
        if tensor not in done:
            done[tensor] = tensor.float()
        return done[tensor]

    return _changed(value, widen)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with the tensors in it changed, containers of the same type; anything else as is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        items = [_changed(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [_changed(item, change) for item in value]
    if type(value) is dict:
        return {key: _changed(item, change) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(
            value, **{name: _changed(getattr(value, name), change) for name in fields}
        )
    if isinstance(value, Mapping):
        return type(value)({key: _changed(item, change) for key, item in value.items()})  # type: ignore[call-arg]
    return value


def _mark(module: nn.Module, args: Any) -> None:
    """A hook that does nothing: torch's fused attention paths, which read weights past the

    modules that hold them, stand back from a module that has hooks.
    """


def _restore(module: nn.Module, keys: Any) -> None:
    """After ``load_state_dict(assign=True)`` of a 16-bit checkpoint."""
    if any(parameter.dtype in _LOW for parameter in module.parameters()):
        around = getattr(module, "_fp16_around", None)
        module.float()
        vars(module)["_fp16_around"] = around


def _is_narrow(module: nn.Module) -> bool:
    tensors = [*module.parameters(), *module.buffers()]
    return any(t.dtype in _LOW and not t.is_meta for t in tensors)  # those are still to come


def _islands(model: nn.Module, wanted: list[nn.Module]) -> dict[nn.Module, None]:
    """The modules whose borders need casts: the wanted ones, and what is shared with them."""
    islands: dict[nn.Module, None] = {}
    fresh = [called for module in wanted for called in _called(module)]
    while fresh:
        islands.update(dict.fromkeys(fresh))
        inside = {part for island in islands for part in island.modules()}
        tensors = {id(t) for part in inside for t in _own(part)}
        outside = set(_outside(model, islands, set()))
        fresh = [
            module
            for module in outside
            if module in inside or any(id(t) in tensors for t in _own(module))
        ]
    return islands


def _called(module: nn.Module) -> list[nn.Module]:
    """The module itself, or the members of a container that is never called."""
    scripted = isinstance(module, torch.jit.ScriptModule)
    if scripted or type(module).forward is not nn.Module.forward:
        return [module]
    return [called for child in module.children() for called in _called(child)]


def _own(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _outside(
    module: nn.Module, islands: Mapping[nn.Module, None], seen: set[nn.Module]
) -> Iterator[nn.Module]:
    """Modules that can be reached without entering an island."""
    if module in islands or module in seen:
        return
    seen.add(module)
    yield module
    for child in module.children():
        yield from _outside(child, islands, seen)


def _refuse(model: nn.Module, module: nn.Module) -> None:
    """Refuse what cannot be an island, before anything is changed."""
    name = next(name for name, known in model.named_modules() if known is module)
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(f"{name!r} is scripted; keep the module it was made from, and trace that")
    if "forward" in vars(module):
        raise ModelError(
            f"the forward of {name!r} was replaced on the module itself; keep it in float32 before "
            "that, or keep its parent"
        )
    parent = name.rpartition(".")[0]
    if name and isinstance(model.get_submodule(parent), nn.MultiheadAttention):
        raise ModelError(
            f"{name!r} is never called: nn.MultiheadAttention reads its weights directly; keep "
            f"{parent!r} instead"
        )
