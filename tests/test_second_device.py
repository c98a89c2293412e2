"""Everything runs on a device of its own: no tensor of the CPU's is mixed with one of the model's.

Only a GPU would show it otherwise, and these tests run without one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

WANTED = {
    "attends": ("equivalent", "equivalent", "adjoint", "None"),
    "convolves": ("equivalent", "equivalent", "adjoint", "None"),
    "overflows": ("not equivalent", "not equivalent", "adjoint", "overflow"),
    "regression": ("equivalent", "equivalent", "adjoint", "None"),
    "embeds": ("equivalent", "equivalent", "random rounding", "None"),
    "training": ("not equivalent", "not equivalent", "gradient check", "eps-underflow"),
}


@pytest.fixture(scope="module")
def verdicts():
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no devices made in Python")
    script = Path(__file__).with_name("second_device.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [line.split("|") for line in run.stdout.splitlines() if line.count("|") == 5]
    return {(emulate, name): tuple(rest) for emulate, name, *rest in lines}


@pytest.mark.parametrize("emulate", ["always", "never"])
@pytest.mark.parametrize("name", WANTED)
def test_a_check_on_another_device(verdicts, emulate, name):
    assert verdicts[emulate, name] == WANTED[name]
