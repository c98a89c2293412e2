"""Finished trainings, one JSON line each, written at once: an interrupted table goes on from them.

A line carries a checksum of itself, so that one cut short by a crash, or damaged since, is noticed,
said and trained again; and a fingerprint of the recipe, so that results of other settings, data or
code are not mixed in.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        recipe: fingerprint of everything that fixes the result besides row, precision and seed.
        accuracy: on the test set, 0 to 1; None where the training broke.
        seconds: the training alone; None where it was emulated, which yields no speed.
        failure: None, or how the training broke.
        device: what it ran on.
    """

    recipe: str
    row: str
    precision: str
    seed: int
    accuracy: float | None
    seconds: float | None
    failure: str | None
    device: str

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells it from other runs."""
        return self.recipe, self.row, self.precision, self.seed


def fingerprint(**facts: Any) -> str:
    """A short hash of facts that JSON can write."""
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _line(run: Run) -> str:
    body = json.dumps(asdict(run), sort_keys=True)
    return json.dumps({"run": body, "sha256": _checksum(body)}) + "\n"


def _parsed(line: str) -> Run:
    raw = json.loads(line)
    if _checksum(raw["run"]) != raw["sha256"]:
        raise ValueError("its checksum differs")
    found = json.loads(raw["run"])
    if set(found) != {field.name for field in fields(Run)}:
        raise ValueError("its fields are of another version")
    return Run(**found)


class Store:
    """The finished runs of a file; damaged lines are warned of and left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[tuple[str, str, str, int], Run] = {}
        self.damaged: list[int] = []
        text = path.read_bytes().decode("utf-8", "replace") if path.is_file() else ""
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                run = _parsed(line)
            except (ValueError, KeyError, TypeError) as error:
                self.damaged.append(number)
                warnings.warn(
                    f"{path}, line {number} is damaged ({error}); that training is done again",
                    stacklevel=2,
                )
            else:
                self.runs[run.key] = run

    def add(self, run: Run) -> None:
        """Append a run and have it on disk before the next one starts."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        before = self.path.read_bytes() if self.path.is_file() else b""
        torn = before != b"" and not before.endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + _line(run))
            file.flush()
            os.fsync(file.fileno())
        self.runs[run.key] = run
