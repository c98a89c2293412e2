"""The precisions by name: their format and how a model runs in each. Imports no torch.

Names are Lightning's (``16-true``, ``bf16-mixed``, …); Accelerate's are accepted as aliases.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from pytest_fp16.errors import PrecisionError

if TYPE_CHECKING:
    import torch

__tracebackhide__ = True  # misuse is shown at the user's own line


@dataclass(frozen=True)
class Precision:
    """How a model runs: the 16-bit format, and whether autocast or a cast of the module brings it.

    Attributes:
        name: the canonical name.
        dtype_name: ``"float16"``, ``"bfloat16"`` or ``"float32"``.
        mixed: True where parameters stay in float32 and autocast chooses per operation.
    """

    name: str
    dtype_name: str
    mixed: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype of the format."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype_name)
        return dtype

    @property
    def low(self) -> bool:
        """Whether its format has 16 bits."""
        return self.dtype_name != "float32"

    @property
    def casts(self) -> bool:
        """Whether the whole model is cast to 16 bits."""
        return self.low and not self.mixed


REFERENCE = Precision("32-true", "float32")

PRECISIONS = {
    p.name: p
    for p in (
        REFERENCE,
        Precision("16-true", "float16"),
        Precision("16-mixed", "float16", mixed=True),
        Precision("bf16-true", "bfloat16"),
        Precision("bf16-mixed", "bfloat16", mixed=True),
    )
}

ALIASES = {"no": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}


#: What people and libraries call the formats.
_FORMATS = {
    "float": "float32", "single": "float32", "fp32": "float32", "32": "float32",
    "half": "float16", "f16": "float16", "bf16": "bfloat16",
}  # fmt: skip


def _meant(text: str) -> str:
    """The precisions that a name of a format, or a misspelt one, may stand for; or nothing."""
    word = text.lower().removeprefix("torch.")
    word = _FORMATS.get(word, word)
    near = [p.name for p in PRECISIONS.values() if p.dtype_name == word]
    near = near or get_close_matches(word, [*PRECISIONS, *ALIASES], n=1, cutoff=0.7)
    return f"did you mean {' or '.join(map(repr, near))}? " if near else ""


def canonical_name(name: object) -> str:
    """The canonical name of a precision.

    Raises:
        PrecisionError: several names, an unknown one, or a bare ``16``, which means 16-mixed to
            some tools and 16-true to others.
    """
    if isinstance(name, (list, tuple, set, frozenset)):
        raise PrecisionError(
            f"a precision is one name (got {name!r}); several are checked by the decorator, or by "
            "examine(subject, Settings(precisions=[…])) of pytest_fp16.conformance"
        )
    text = str(name).strip()
    text = ALIASES.get(text, text)
    if text in PRECISIONS:
        return text
    if text == "16":
        raise PrecisionError("precision '16' is ambiguous; write '16-true' or '16-mixed'")
    raise PrecisionError(
        f"unknown precision {text!r}; {_meant(text)}known are {', '.join(PRECISIONS)} "
        f"(aliases: {', '.join(f'{a} = {b}' for a, b in ALIASES.items())})"
    )


def precision(name: object) -> Precision:
    """The precision of that name or alias.

    Raises:
        PrecisionError: see `canonical_name`.
    """
    return PRECISIONS[canonical_name(name)]
