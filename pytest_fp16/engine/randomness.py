"""Save, set and restore everything global that a run touches or that could change its numbers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import torch

from pytest_fp16.engine.fast_path import fast_path_off
from pytest_fp16.engine.own_caches import caches_apart


@contextmanager
def preserved_state() -> Iterator[None]:
    """Leave the caller's global state as it was, also after an exception or Ctrl-C.

    Covers: random states (Python, numpy, torch, CUDA), default dtype, grad mode, autocast and
    inference mode (off inside), TF32 and reduced-precision float32 products (off inside),
    determinism flags, and the fast path of nn.MultiheadAttention (off inside).
    """
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    backends = torch.backends
    cudnn = (backends.cudnn.deterministic, backends.cudnn.benchmark)
    with torch.random.fork_rng(devices=devices):
        try:
            torch.set_default_dtype(torch.float32)
            inference = torch.is_inference_mode_enabled()
            normal = torch.inference_mode(False) if inference else nullcontext()
            with normal, no_region(), _exact_products(), fast_path_off(), caches_apart():
                yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_default_dtype(dtype)
            torch.set_grad_enabled(grad)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            backends.cudnn.deterministic, backends.cudnn.benchmark = cudnn


@contextmanager
def _exact_products() -> Iterator[None]:
    """No TF32 and no bfloat16 in float32 products.

    Since torch 2.9 there are two interfaces, and the older one raises where the caller has used
    the newer. So each is used as far as it answers, and the newer one restored last.
    """
    places = _precision_settings()
    saved = [place.fp32_precision for place in places]
    matmul, cudnn = _legacy_settings()
    if matmul is not None:
        torch.set_float32_matmul_precision("highest")
    if cudnn is not None:
        torch.backends.cudnn.allow_tf32 = False
    for place in places:
        if place.fp32_precision not in ("ieee", "none") or matmul is None or cudnn is None:
            place.fp32_precision = "ieee"
    try:
        yield
    finally:
        if cudnn is not None:
            torch.backends.cudnn.allow_tf32 = cudnn
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        for place, value in zip(places, saved, strict=True):
            if place.fp32_precision != value:
                place.fp32_precision = value


def _precision_settings() -> list[Any]:
    """Every place of the newer interface that there is."""
    backends, found = torch.backends, []
    for backend, operation in itertools.product(
        (backends.cuda, backends.cudnn, backends.mkldnn), ("matmul", "conv", "rnn")
    ):
        place = getattr(backend, operation, None)
        if hasattr(place, "fp32_precision"):
            found.append(place)
    return found


def _legacy_settings() -> tuple[str | None, bool | None]:
    try:
        matmul = torch.get_float32_matmul_precision()
    except RuntimeError:
        matmul = None
    try:
        cudnn: bool | None = torch.backends.cudnn.allow_tf32
    except RuntimeError:
        cudnn = None
    return matmul, cudnn


@contextmanager
def no_region() -> Iterator[None]:
    """As outside of any autocast: what is entered in here is outermost, and keeps its own casts."""
    was, cached = torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()
    depth = torch.autocast_increment_nesting()
    for _ in range(depth):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
    torch.set_autocast_enabled("cpu", False)
    torch.set_autocast_cache_enabled(True)
    try:
        with cuda_autocast_off():
            yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cpu", was)
        torch.set_autocast_cache_enabled(cached)
        for _ in range(depth - 1):
            torch.autocast_increment_nesting()


@contextmanager
def cuda_autocast_off() -> Iterator[None]:
    """Autocast of CUDA off, without torch's warning where there is no CUDA."""
    was = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", False)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", was)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch: a model that draws numbers draws the same in each run."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if _has_accelerator():
        torch.manual_seed(seed)
    else:  # torch's own would note down a stack trace for the device that there is not
        torch.default_generator.manual_seed(seed)


@cache
def _has_accelerator() -> bool:
    """Whether torch has generators beside the CPU's."""
    others = (torch.backends.mps, *(getattr(torch, name, None) for name in ("cuda", "xpu", "mtia")))
    return any(other is not None and other.is_available() for other in others)
