"""Processes that write a plan one after another, as workers of xdist do. Imports no torch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_fp16.errors import SettingError

#: Seconds after which a lock's holder must have died: it writes one small file.
_ABANDONED = 10.0


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold ``PATH.lock``; one that a killed process has left behind is taken over.

    Raises:
        SettingError: it stays locked, or the folder cannot be written to.
    """
    lock = path.with_name(f"{path.name}.lock")
    end = time.monotonic() + 4 * _ABANDONED
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except (FileExistsError, PermissionError) as error:  # Windows denies what is being deleted
            # A lock that is gone by now was released: another try. A folder may refuse for good.
            denied = isinstance(error, PermissionError) and os.name != "nt"
            if denied or time.monotonic() > end:
                raise SettingError(
                    f"cannot write the plan {path}: {error.strerror}; is {lock} held by another "
                    "process?"
                ) from None
        except OSError as error:
            raise SettingError(f"cannot write the plan {path}: {error.strerror}") from None
        _take_over(lock)
        time.sleep(0.02)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _take_over(lock: Path) -> None:
    """Remove a lock that is older than any write takes."""
    try:
        if time.time() - lock.stat().st_mtime > _ABANDONED:
            lock.unlink()
    except OSError:
        return  # its holder has just let go of it
