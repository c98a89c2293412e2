"""The bar on a real (pseudo-)terminal, past pytest's capture; silence in logs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pty = pytest.importorskip("pty", reason="pseudo-terminals are POSIX's")

SLOW = """
import time

import torch
from torch import nn

from pytest_fp16 import Evaluation, fp16_equivalent


class Slowly:
    def __iter__(self):
        for _ in range(6):
            time.sleep(0.4)
            yield torch.ones(4, 8)

    def __len__(self):
        return 6


@fp16_equivalent(precisions=["bf16-true"])
def test_slow():
    return Evaluation(model=nn.Linear(8, 3).eval(), data=Slowly(), task="classification")
"""


@pytest.fixture
def command(pytester):
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider -p no:randomly -p no:asyncio -q\n")
    return [sys.executable, "-m", "pytest", "--fp16-conformance", pytester.makepyfile(SLOW)]


def on_a_terminal(command):
    """What a person would see, where there is room for a bar beside words of any length."""
    ours, theirs = pty.openpty()
    wide = {**os.environ, "COLUMNS": "140"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=wide) as run:
        os.close(theirs)
        seen = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            seen += part
    os.close(ours)
    assert run.returncode == 0, seen.decode()
    return seen.decode()


def test_a_person_who_watches_sees_the_bar_and_then_no_trace_of_it(command):
    seen = on_a_terminal(command)
    assert "/6, 0:00:0" in seen
    assert "left: evaluating test_slow" in seen
    last = seen.rsplit("fp16: [", 1)[1]
    assert "\r" in last, "the bar is wiped"
    assert "1 passed" in last


def test_a_log_has_no_bar(command):
    logged = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "1 passed" in logged
    assert "fp16: [" not in logged


def test_a_log_of_long_work_has_a_line_now_and_then(command, pytester):
    pytester.makeconftest("from pytest_fp16.report import progress\nprogress._SILENCE = 0.6\n")
    logged = subprocess.run([*command, "-v"], capture_output=True, text=True, check=True).stdout
    lines = [line for line in logged.splitlines() if line.startswith("fp16: ")]
    told = [line for line in lines if "evaluating test_slow" in line]
    assert told, logged
    assert all("/6" in line for line in told)

    quiet = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "evaluating test_slow" not in quiet


def test_a_worker_says_nothing(command, pytester):
    pytest.importorskip("xdist", reason="xdist is not installed")
    pytester.makeconftest("from pytest_fp16.report import progress\nprogress._SILENCE = 0.6\n")
    alone = [*command, "-v", "-n", "1"]
    logged = subprocess.run(alone, capture_output=True, text=True, check=True).stdout
    assert "evaluating test_slow" not in logged
