"""Finished training runs on disk, so that a check that was interrupted goes on."""

from __future__ import annotations
from typing import Any


def open_store(subject: Any, settings: Any, device: Any) -> Any:
    """None, until runs can be kept."""
    return None
