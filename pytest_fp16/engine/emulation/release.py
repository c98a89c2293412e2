"""Which torch this is, where its kernels differ from one release to the next."""

from __future__ import annotations

import torch


def since(major: int, minor: int, version: str = torch.__version__) -> bool:
    """Whether a version of torch is that release, or a later one."""
    found = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    return found >= (major, minor)
