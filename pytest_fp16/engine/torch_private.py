"""What the engine needs of torch beyond its public interface: a torch that lacks it is refused.

There is no public way to follow a program operation by operation, or to take part in autocast.
What can be done without is asked for where it is used, by ``getattr``, and not listed here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from pytest_fp16.errors import TorchError

#: The versions that the tests were run with.
TESTED = "2.6 to 2.15"

#: By what each is for, so that the refusal says what would be lost.
NEEDED = {
    "following a program operation by operation": (
        "torch._ops.OpOverload",
        "torch.ops.aten.add.Tensor._schema",
        "torch.utils._python_dispatch.TorchDispatchMode",
        "torch.utils._python_dispatch._disable_current_modes",
        "torch.utils._python_dispatch._get_current_dispatch_mode",
        "torch.utils._pytree.tree_leaves",
        "torch.utils._pytree.tree_map_only",
        "torch._C._DisableTorchDispatch",
        "torch._C._disabled_torch_function_impl",
        "torch.Tensor._make_wrapper_subclass",
        "torch.Tensor._values",
    ),
    "taking recurrent layers apart": ("torch._VF._pad_packed_sequence",),
    "autocast by a target's lists": (
        "torch._C.DispatchKey",
        "torch._C.DispatchKeySet",
        "torch._C._ExcludeDispatchKeyGuard",
        "torch.library.Library._destroy",
        "torch.Tensor._is_view",
        "torch.autocast()._enabled",
        "torch.autocast().device",
        "torch.autocast().fast_dtype",
    ),
    "following what a layer keeps": (
        "torch.Tensor._version",
        "torch.nn.Module()._buffers",
        "torch.nn.Module()._non_persistent_buffers_set",
        "torch.nn.modules.batchnorm._BatchNorm",
        "torch.nn.modules.batchnorm._NormBase",
        "torch.nn.modules.dropout._DropoutNd",
        "torch.nn.modules.instancenorm._InstanceNorm",
    ),
}

#: How the objects are made whose attributes stand behind "()".
_MADE: dict[str, Callable[[], object]] = {
    "autocast": lambda: torch.autocast("cpu", enabled=False),
    "Module": torch.nn.Module,
}


def require_private() -> None:
    """Refuse a torch that lacks something the engine needs, before any work.

    Raises:
        TorchError: it does.
    """
    for purpose, names in NEEDED.items():
        for name in names:
            if not _is_there(name):
                raise TorchError(
                    f"torch {torch.__version__} has no {name}, which {purpose} needs; install a "
                    f"torch of {TESTED}, with which this version was tested, or a newer pytest-fp16"
                )


def _is_there(name: str) -> bool:
    found: Any = torch
    path = "torch"
    for part in name.split(".")[1:]:
        key = part.removesuffix("()")
        path = f"{path}.{key}"
        if not hasattr(found, key):
            try:  # a module of torch's that nobody has imported yet
                found = importlib.import_module(path)
            except ImportError:
                return False
        else:
            found = getattr(found, key)
        if part.endswith("()"):
            found = _MADE[key]()
    return True
