"""Reports as a versioned JSON document: written in one piece, read back as it was."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from pytest_fp16.errors import SettingError
from pytest_fp16.outcomes import Fate
from pytest_fp16.report.model import Part, Report

DOCUMENT_VERSION: Literal[1] = 1
#: Exit codes of a session that did not come to its end: interrupted, or pytest's own error.
CUT_SHORT = (2, 3)


class Entry(Part):
    """The report of one test at one precision."""

    test: str
    report: Report


class Unreported(Part):
    """An item that was to be judged and has no report; or a file that could not be collected."""

    test: str
    outcome: Literal["error", "failed", "skipped", "not run"]
    message: str = ""


class Document(Part):
    """What ``--fp16-json`` writes.

    `schema_version` rises when a reader of an older document would be misled; `created` is UTC,
    ISO 8601. `complete`, `exit_status` and `unreported` speak of a session of pytest: it was not
    cut short, and every item that was to be judged has a report. Outside one they are None.
    """

    schema_version: Literal[1] = DOCUMENT_VERSION
    package_version: str
    torch_version: str
    created: str
    reports: list[Entry]
    complete: bool | None = None
    exit_status: int | None = None
    unreported: list[Unreported] = Field(default_factory=list)


def document(
    reports: Iterable[tuple[str, Report]],
    exit_status: int | None = None,
    unreported: Iterable[Fate] = (),
    complete: bool | None = None,
) -> Document:
    """The reports with the versions that made them, and what a session of pytest left out."""
    left = [Unreported.model_validate(vars(fate)) for fate in unreported]
    if exit_status is not None:
        complete = not left and exit_status not in CUT_SHORT
    return Document(
        complete=complete,
        exit_status=exit_status,
        unreported=left,
        package_version=_version("pytest-fp16"),
        torch_version=_version("torch"),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        reports=[Entry(test=test, report=report) for test, report in reports],
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def write_json(
    path: str | os.PathLike[str],
    reports: Iterable[tuple[str, Report]],
    exit_status: int | None = None,
    unreported: Iterable[Fate] = (),
    complete: bool | None = None,
) -> None:
    """Write the document; a reader sees the old file or the new one, never half of it.

    Args:
        path: of the file.
        reports: each with the id of its test.
        exit_status: of the session of pytest that made them; None outside one.
        unreported: items of it that were to be judged and have no report.
        complete: False while a session has not come to its end; else its exit status tells.

    Raises:
        SettingError: the file cannot be written.
    """
    target = Path(path)
    text = document(reports, exit_status, unreported, complete).model_dump_json(indent=2) + "\n"
    try:
        replace_text(target, text)
    except OSError as error:
        raise SettingError(f"cannot write {target}: {_reason(error)}") from None


def replace_text(target: Path, text: str) -> None:
    """Write a file through a temporary neighbour, so that it is never seen half written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, _mode(target))
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _mode(target: Path) -> int:
    """The permissions of the file that is replaced; else those any new file would have."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def read_json(path: str | os.PathLike[str]) -> Document:
    """Read a document that `write_json` wrote.

    Raises:
        SettingError: no such file, or not a document of this version.
    """
    try:
        return Document.model_validate_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"cannot read {path}: {_reason(error)}") from None
    except (ValidationError, UnicodeDecodeError) as error:
        first = str(error)
        if isinstance(error, ValidationError):
            found = error.errors()[0]
            at = ".".join(map(str, found["loc"]))
            first = f"{at}: {found['msg']}" if at else found["msg"]
        raise SettingError(
            f"{path} is not a report document of schema version {DOCUMENT_VERSION} ({first})"
        ) from None


def require_writable(path: str | os.PathLike[str]) -> None:
    """Refuse, before any long work, a path that could not be written at its end.

    Raises:
        SettingError: the path is a folder, lies below a file, or may not be written.
    """
    target = Path(path).absolute()
    if target.is_dir():
        raise SettingError(f"cannot write {path}: it is a folder; name a file in it")
    parent = next(folder for folder in target.parents if folder.exists())
    if not parent.is_dir():
        raise SettingError(f"cannot write {path}: {parent} is a file, not a folder")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass  # a folder's permissions alone do not tell: the disk may be full, or not a disk
    except OSError as error:
        raise SettingError(
            f"cannot write {path}: the folder {parent} may not be written to ({_reason(error)})"
        ) from None
    if target.exists() and not os.access(target, os.W_OK):
        raise SettingError(f"cannot write {path}: the file is there and may not be written to")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
