"""Numbers of a report in JSON, which has no NaN and no infinity."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer


def _jsonable(value: float) -> float | str:
    """JSON has no NaN or infinity: write them as the words Python's float() reads back."""
    return value if math.isfinite(value) else str(value)


Real = Annotated[float, PlainSerializer(_jsonable, when_used="json")]

_WORDS = {"nan", "inf", "-inf"}


def _words(value: Any) -> Any:
    """`_jsonable` for every number in nested lists and dicts."""
    if isinstance(value, float):
        return _jsonable(value)
    if isinstance(value, dict):
        return {key: _words(item) for key, item in value.items()}
    return [_words(item) for item in value] if isinstance(value, (list, tuple)) else value


def _numbers(value: Any) -> Any:
    """Undo `_words`."""
    if isinstance(value, str) and value in _WORDS:
        return float(value)
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    return [_numbers(item) for item in value] if isinstance(value, list) else value


Facts = Annotated[
    dict[str, Any], BeforeValidator(_numbers), PlainSerializer(_words, when_used="json")
]
