"""A cure: buffers that stay in float32 when the model is cast.

A count or a schedule that stands still in 16 bits, or a table whose numbers are too small for them,
is no weight and no state of the optimizer: mixed precision, which keeps all three, does not tell
them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pytest_fp16.diagnosis.proposal import Proposal
from pytest_fp16.engine.emulation.operations import LOW
from pytest_fp16.engine.gradients.finding import leaf_of, module_of
from pytest_fp16.engine.training.place import Amendment
from pytest_fp16.precision import Precision
from pytest_fp16.report.model import Culprit
from pytest_fp16.variants import Variant, variant

#: Layers that divide by a spread, of which some keep running statistics in buffers.
NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
)
_SHOWN = 3


class Float32Buffers(Variant):
    """A module some of whose buffers are not cast; or are of float32, with rounded values."""

    _fp16_prefix = "Float32Buffers"
    _fp16_kept: tuple[str, ...]
    _fp16_rounded: torch.dtype | None

    def _fp16_apply(self, own: Callable[..., Any], fn: Any, *args: Any, **kwargs: Any) -> Any:
        buffers: dict[str, Tensor] = self._buffers  # type: ignore[attr-defined]
        held = {name: buffers[name] for name in self._fp16_kept}
        out = own(self, fn, *args, **kwargs)
        for name, buffer in held.items():
            buffers[name] = buffer.to(buffers[name].device)
        self._round()
        return out

    def _fp16_run(self, own: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        out = own(self, *args, **kwargs)
        self._round()
        return out

    def _round(self) -> None:
        if self._fp16_rounded is None:
            return
        buffers: dict[str, Tensor] = self._buffers  # type: ignore[attr-defined]
        with torch.no_grad():
            for name in self._fp16_kept:
                buffers[name] = buffers[name].to(self._fp16_rounded).float()


def keep_buffers(
    model: nn.Module, names: Sequence[str], rounded: torch.dtype | None = None
) -> nn.Module:
    """The model, changed in place: a cast leaves the named buffers in float32.

    Args:
        model: whose buffers they are.
        names: of the buffers.
        rounded: a format whose numbers they hold nevertheless, from the cast and each pass on.
    """
    for owner in dict.fromkeys(map(module_of, names)):
        module = model.get_submodule(owner)
        module.__class__ = variant(Float32Buffers, type(module))
        vars(module)["_fp16_kept"] = tuple(leaf_of(n) for n in names if module_of(n) == owner)
        vars(module)["_fp16_rounded"] = rounded
    return model


def _keep_in_training(
    model: nn.Module, names: Sequence[str], rounded: torch.dtype | None = None
) -> nn.Module:
    """The same, and layers whose weights are cast take what float32 makes of their inputs."""
    keep_buffers(model, names, rounded)
    for module in model.modules():
        if next(module.children(), None) is None and next(module.parameters(), None) is not None:
            module.register_forward_pre_hook(_cast_back)
    return model


def _cast_back(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters()).dtype
    if dtype not in LOW:
        return args
    wide = (isinstance(a, Tensor) and a.dtype is torch.float32 for a in args)
    return tuple(a.to(dtype) if w else a for a, w in zip(args, wide, strict=True))


def kept_buffers(model: nn.Module, precision: Precision, culprit: Culprit | None) -> list[Proposal]:
    """Keep the buffer that is at fault in float32; where nothing is known to be, all of them.

    Statistics of a norm stay with their module.
    """
    if precision.mixed or any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
        return []
    modules = dict(model.named_modules())
    names = [
        name
        for name, buffer in model.named_buffers()
        if buffer.is_floating_point() and not isinstance(modules[module_of(name)], NORMS)
    ]
    if culprit is not None:
        wanted = f"{culprit.module}.{culprit.operation}".lstrip(".")
        names = [name for name in names if name == wanted]
    return [_keep(names, culprit, precision.dtype)] if names else []


def _keep(names: list[str], culprit: Culprit | None, dtype: torch.dtype) -> Proposal:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    which = f"the buffer{'s' * (len(names) > 1)} {', '.join(names[:_SHOWN])}{more}"
    them = "them" if len(names) > 1 else "it"
    counts = culprit is None or culprit.mechanism == "absorption"
    whole = "; a count may be a whole number instead (torch.long)" if counts else ""
    return Proposal(
        kind="upcast",
        description=f"keep {which} in float32: set {them} again once the model is cast, and cast "
        f"back (.to(x.dtype)) where a layer takes a result of {them}{whole}",
        amendment=Amendment(model=lambda model: _keep_in_training(model, names)),
        # A float32 constant makes float32 of all that it meets, which may be what helps.
        control=Amendment(model=lambda model: _keep_in_training(model, names, dtype))
        if culprit is None
        else None,
        points_to=module_of(names[0]),
        operation=leaf_of(names[0]) if len(names) == 1 else "",
        mechanism=culprit.mechanism if culprit is not None else "precision-loss",
    )
