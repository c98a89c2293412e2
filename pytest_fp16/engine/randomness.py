"""Save, set and restore everything global that a run touches or that could change its numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserved_state() -> Iterator[None]:
    """Leave the caller's global state as it was, also after an exception or Ctrl-C.

    Covers: random states (Python, numpy, torch, CUDA), default dtype, grad mode, autocast (off
    inside), TF32 and reduced-precision float32 products (off inside), determinism flags, and the
    fast path of nn.MultiheadAttention (off inside: a fused kernel of its own would hide the
    operations, and is not taken when anything is hooked).
    """
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    backends = torch.backends
    tf32 = (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32)
    matmul_precision = torch.get_float32_matmul_precision()
    cudnn = (backends.cudnn.deterministic, backends.cudnn.benchmark)
    fastpath = backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng(devices=devices):
        try:
            torch.set_default_dtype(torch.float32)
            torch.set_float32_matmul_precision("highest")
            backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = False
            backends.mha.set_fastpath_enabled(False)
            with torch.autocast("cpu", enabled=False), _autocast_off_on_accelerators():
                yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_default_dtype(dtype)
            torch.set_grad_enabled(grad)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.set_float32_matmul_precision(matmul_precision)
            backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = tf32
            backends.cudnn.deterministic, backends.cudnn.benchmark = cudnn
            backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def _autocast_off_on_accelerators() -> Iterator[None]:
    was = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", False)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", was)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, so that a model that draws numbers draws the same in each run."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
