"""Are the operations that CUDA has no 16-bit kernel for refused, and only these?

Torch's own tests hold, for each operation, the dtypes that it supports on each device. Every such
operation is called here in float16 and in bfloat16, on the inputs torch made for it, under an
emulation of CUDA, and must be refused where CUDA has no kernel and run where it has one. They hold
CUDA's autocast lists, too: each operation of these must give the dtype that it gives there. Needs
``expecttest``, which torch's tables are imported with; no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks import common
from pytest_fp16.engine.emulation.autocast import target_autocast
from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.emulation.refusal import UnsupportedOperation
from pytest_fp16.engine.emulation.wording import is_missing_kernel

FORMATS = (torch.float16, torch.bfloat16)
#: Of each operation: torch makes up to hundreds.
_SAMPLES = 12


def operations() -> list[Any]:
    """Torch's table, as it is on a GPU of today."""
    import torch.testing._internal.common_cuda as cuda

    for name in vars(cuda):  # asked of a GPU while the table is imported
        if name.startswith("SM") and name.endswith("OrLater"):
            setattr(cuda, name, True)
    from torch.testing._internal.common_methods_invocations import op_db

    return [op for op in op_db if torch.float32 in op.dtypesIfCUDA]


@dataclass(frozen=True)
class Called:
    """What became of the calls of an operation in one format.

    Attributes:
        supported: by CUDA, in torch's table.
        refused, ran: how many calls.
        said: the last refusal.
        other: an exception that has nothing to do with kernels.
    """

    name: str
    format: str
    supported: bool
    refused: int
    ran: int
    said: str
    other: str

    @property
    def judged(self) -> bool:
        """Whether some call came to something."""
        return bool(self.refused or self.ran)

    @property
    def right(self) -> bool:
        """Run where it is supported, refused where it is not."""
        return not self.refused if self.supported else not self.ran

    @property
    def line(self) -> tuple[Any, ...]:
        """As the table shows it."""
        has = "yes" if self.supported else "no"
        return (self.name, self.format, has, self.refused, self.ran, self.said[:90])


def calls(op: Any, dtype: torch.dtype) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Arguments with their floating tensors cast; none of samples that have no such tensor."""

    def low(value: Any) -> Any:
        real = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if real else value

    for sample in list(op.sample_inputs("cpu", torch.float32, requires_grad=False))[:_SAMPLES]:
        given = (sample.input, tuple(sample.args), dict(sample.kwargs))
        if any(isinstance(v, Tensor) and v.is_floating_point() for v in tree_leaves(given)):
            yield tree_map(low, given)


def called(op: Any, dtype: torch.dtype) -> Called:
    """Call an operation in a format, emulated."""
    refused = ran = 0
    said = other = ""
    for given, args, kwargs in calls(op, dtype):
        try:
            with torch.no_grad(), Emulation("cuda"):
                op(given, *args, **kwargs)
            ran += 1
        except Exception as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            if is_missing_kernel(error) or isinstance(error, UnsupportedOperation):
                refused, said = refused + 1, line
            else:
                other = line
    name = ".".join(filter(None, (op.name, op.variant_test_name)))
    supported = dtype in op.dtypesIfCUDA
    return Called(name, str(dtype).removeprefix("torch."), supported, refused, ran, said, other)


def cast() -> tuple[int, int, list[str]]:
    """How many operations of CUDA's autocast lists were called, gave their dtype, and the others.

    Those that only a GPU has, or that torch lists without their arguments, are not called.
    """
    from torch.testing._internal.autocast_test_lists import AutocastTestLists

    lists, nn = AutocastTestLists(torch.device("cpu")), torch._C._nn
    half, single = torch.float16, torch.float32
    wanted = [(torch, op, half) for op in lists.torch_fp16]
    wanted += [(torch, op, single) for op in lists.torch_fp32 + lists.torch_need_autocast_promote]
    wanted += [(nn, op, half) for op in lists.nn_fp16] + [(nn, op, single) for op in lists.nn_fp32]
    wanted += [(torch._C._linalg, op, half) for op in lists.linalg_fp16]
    wanted += [(Tensor, op, half) for op in lists.methods_fp16]
    wanted += [(Tensor, op, single) for op in lists.methods_fp32]
    wanted += [(torch, op, op[2]) for op in lists.torch_expect_builtin_promote]
    asked, wrong = 0, []
    for home, (name, args, *more), dtype in wanted:
        if name.startswith("cudnn") or name in ("einsum", "equal"):
            continue
        kwargs = more[0] if more and isinstance(more[0], dict) else {}
        with torch.no_grad(), target_autocast("cpu", half, "cuda"), Emulation("cuda", mixed=True):
            out = next(t for t in tree_leaves(getattr(home, name)(*args, **kwargs)))
        asked += 1
        if out.dtype != dtype:
            wrong.append(f"{name} gives {out.dtype}, there {dtype}")
    return asked, asked - len(wrong), wrong


def main() -> None:
    """Call every operation and list those that are not as torch's table has them."""
    options = common.options(__doc__, ("--only", {"default": ""}))
    table = [op for op in operations() if options.only in op.name]
    table = table[::20] if options.quick else table
    every = [called(op, dtype) for op in table for dtype in FORMATS]
    judged = [one for one in every if one.judged]
    lacking = [one for one in judged if not one.supported]
    having = [one for one in judged if one.supported]
    share = common.share
    summary = (
        f"{len(judged)} pairs of operation and format of {len(table)} operations. Refused where "
        f"CUDA has no kernel: {share(sum(one.right for one in lacking), len(lacking))}. Run where "
        f"it has one: {share(sum(one.right for one in having), len(having))}. "
    )
    asked, agree, wrong = cast()
    summary += (
        f"Of CUDA's autocast lists {share(agree, asked)} operations give the dtype they do there"
    )
    summary += f": not {'; '.join(wrong)}." if wrong else "."
    summary += "\n\nKernels that differ:"
    common.write(
        *("kernels", "Kernels that CUDA lacks, against torch's own table", summary),
        ("operation", "format", "CUDA has it", "calls refused", "ran", "refusal"),
        [one.line for one in judged if not one.right],
        "A Fourier transform runs on CUDA in float16 where sizes are powers of two, which a CPU "
        "cannot emulate. `matrix_power` inverts for negative powers alone; `matrix_norm` and "
        "`matrix_rank` are refused, there too, where they take singular values.",
        quick=options.quick or bool(options.only),
    )


if __name__ == "__main__":
    main()
