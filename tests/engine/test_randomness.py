import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from pytest_fp16.engine.randomness import preserved_state, seed_everything


def draws():
    return random.random(), float(np.random.random()), float(torch.rand(()))


def state():
    b = torch.backends
    return (
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_float32_matmul_precision(),
        b.cuda.matmul.allow_tf32, b.cudnn.allow_tf32, b.cudnn.deterministic, b.cudnn.benchmark,
        b.mha.get_fastpath_enabled(), torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"),
    )  # fmt: skip


def disturb():
    seed_everything(99)
    draws()
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = True


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_everything_global_is_as_it_was(error):
    seed_everything(7)
    before, expected = state(), draws()
    seed_everything(7)
    try:
        with preserved_state():
            disturb()
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass

    assert state() == before
    assert draws() == expected


PROGRAM = """
import os, torch
from pytest_fp16.engine.randomness import preserved_state
b = torch.backends
new = hasattr(b.cuda.matmul, "fp32_precision")

def seen():
    values = []
    for get in (
        torch.get_float32_matmul_precision, lambda: b.cuda.matmul.allow_tf32,
        lambda: b.cudnn.allow_tf32, lambda: b.cuda.matmul.fp32_precision,
        lambda: b.cudnn.conv.fp32_precision, lambda: b.mkldnn.matmul.fp32_precision,
    ):
        try:
            values.append(get())
        except (RuntimeError, AttributeError):
            values.append(None)
    return values

def check(setup):
    exec(setup)
    before = seen()
    with torch.autocast("cpu", dtype=torch.bfloat16), preserved_state():
        inside = seen()
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert inside[0] in ("highest", None), inside
    assert True not in inside[1:3], inside
    assert "tf32" not in inside and "bf16" not in inside, inside
    assert seen() == before, (before, seen())

for setup in SETUPS:
    child = os.fork()
    if not child:
        check(setup)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, setup
"""
SETUPS = [
    "",
    "torch.set_float32_matmul_precision('medium')",
    "b.cuda.matmul.allow_tf32 = True",
    "if new: b.cuda.matmul.fp32_precision = b.cudnn.conv.fp32_precision = 'tf32'",
    "if new: b.mkldnn.matmul.fp32_precision = 'bf16'",
    "if new: b.fp32_precision = 'tf32'",
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_products_are_exact_inside_whichever_interface_the_caller_used():
    """In processes of their own: the two interfaces leave marks on each other."""
    program = PROGRAM.replace("SETUPS", repr(SETUPS))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


def test_a_seed_fixes_every_generator():
    with preserved_state():
        seed_everything(3)
        first = draws()
        seed_everything(3)
        assert draws() == first
        seed_everything(4)
        assert draws() != first
