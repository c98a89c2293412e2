"""Finished training runs on disk, so that a check that was interrupted or killed goes on.

One file per (precision, seed), named by a fingerprint of everything the run depends on: a changed
model, data set or setting names another file. A file is complete or not there (written aside, then
renamed), and carries a checksum: one that was damaged is made again.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pytest_fp16.engine.device import effective_target, run_mode
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.training.fingerprint import Fingerprint, feed_data
from pytest_fp16.engine.training.order import ordered
from pytest_fp16.engine.training.score import Score
from pytest_fp16.engine.training.train import RunResult
from pytest_fp16.errors import SettingError
from pytest_fp16.precision import Precision
from pytest_fp16.settings import Settings
from pytest_fp16.subject import Training

#: Raise it when what a run does, or what is kept of it, changes.
FORMAT = 4

_BATCHES = 2
_PLAIN = (
    "epochs scheduler_step clip_grad_norm accumulate task ignore_index optimizer loss scheduler "
    "training_step metric forward keep_inputs"
).split()


class Store:
    """A folder of finished runs.

    Args:
        folder: made when needed.
        base: fingerprint of all but precision, seed and initial weights.

    Attributes:
        held: files that were in it.
        damaged: those of this training that cannot be read, and why.

    Raises:
        SettingError: the folder cannot be written.
    """

    def __init__(self, folder: Path, base: str) -> None:
        self.folder, self.base = folder, base
        self.damaged: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.held = sum(1 for _ in folder.glob("*.json"))
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise SettingError(
                f"store={os.fspath(folder)!r} cannot be written: {error.strerror or error}; name "
                "another folder"
            ) from None

    def path(self, precision: Precision, seed: int, state: Mapping[str, Any]) -> Path:
        """The file of a run."""
        key = Fingerprint().text(self.base, precision.name, seed).feed(dict(state)).hexdigest()
        return self.folder / f"{key}.json"

    def load(self, precision: Precision, seed: int, state: Mapping[str, Any]) -> RunResult | None:
        """The finished run; None where there is none, or its file is damaged."""
        path = self.path(precision, seed, state)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.damaged.append(f"{path.name} ({error.strerror})")
            return None
        try:
            return _decoded(raw, precision, seed)
        except (ValueError, KeyError, TypeError) as error:
            self.damaged.append(f"{path.name} ({type(error).__name__}: {error})")
            return None

    def save(
        self, precision: Precision, seed: int, state: Mapping[str, Any], result: RunResult
    ) -> None:
        """Keep a finished run: complete, or not at all."""
        path = self.path(precision, seed, state)
        handle, aside = tempfile.mkstemp(dir=self.folder, prefix=".aside-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_encoded(result))
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise


def open_store(subject: Training, settings: Settings, device: torch.device) -> Store | None:
    """The store that `settings` names for this training, or None.

    Raises:
        SettingError: `resume` without a folder, or a folder that cannot be written.
    """
    if settings.store is None:
        if settings.resume:
            raise SettingError(
                "resume needs a folder that finished runs are kept in: store=, or pytest's cache, "
                "which is switched off or may not be written"
            )
        return None
    return Store(Path(settings.store), fingerprint(subject, settings, device))


def fingerprint(subject: Training, settings: Settings, device: torch.device) -> str:
    """Of everything a run depends on but its precision, seed and initial weights.

    Budget and allowance are left out: they judge runs, and change none.
    """
    mode = run_mode(settings, device)
    base = Fingerprint().text(FORMAT, torch.__version__, platform.python_version())
    base.text(device.type, mode, effective_target(settings, device, mode))
    if device.type == "cuda":
        base.text(torch.cuda.get_device_name(device))
    for name in _PLAIN:
        base.text(name).feed(getattr(subject, name))
    base.text("model").feed(subject.model)
    from pytest_fp16.engine.copies import make_model

    seed_everything(0)
    model = make_model(subject.model)
    base.text(repr(model))
    for module in model.modules():
        base.feed(type(module))
    first = list(itertools.islice(ordered(subject.train_data, 0, 0), _BATCHES))
    feed_data(base.text("train_data"), subject.train_data, first)
    seed_everything(0)
    first = list(itertools.islice(iter(subject.eval_data), _BATCHES))
    feed_data(base.text("eval_data"), subject.eval_data, first)
    return base.hexdigest()


def _encoded(result: RunResult) -> bytes:
    plain = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    if result.score is not None:
        score = {f.name: getattr(result.score, f.name) for f in dataclasses.fields(result.score)}
        array = result.score.predictions.numpy().astype("<f4")
        raw = base64.b64encode(array.tobytes()).decode()
        plain["score"] = {**score, "predictions": {"shape": array.shape, "base64": raw}}
    text = json.dumps({"format": FORMAT, "run": plain})
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{digest}\n{text}\n".encode()


def _decoded(raw: bytes, precision: Precision, seed: int) -> RunResult:
    digest, _, text = raw.decode().partition("\n")
    text = text.removesuffix("\n")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise ValueError("checksum does not match")
    plain = json.loads(text)["run"]
    if plain["score"] is not None:
        kept = plain["score"].pop("predictions")
        array = np.frombuffer(base64.b64decode(kept["base64"]), "<f4").reshape(kept["shape"])
        predictions = torch.from_numpy(array.astype(np.float32))
        plain["score"] = Score(**plain["score"], predictions=predictions)
    if plain["failed_at"] is not None:
        plain["failed_at"] = tuple(plain["failed_at"])
    result = RunResult(**plain)
    if (result.precision, result.seed) != (precision.name, seed):
        raise ValueError(f"it holds {result.precision}, seed {result.seed}")
    return result
