"""The examples run as a reader would run them: pytest in a process of its own, verdicts and all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
FASHION = Path("/usr/share/datasets/fashion-mnist")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-p", "no:randomly", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )


def counts(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """The last line of pytest's output as {"passed": 3, …}."""
    return {word: int(n) for n, word in re.findall(r"(\d+) (\w+)", done.stdout.splitlines()[-1])}


@pytest.fixture
def copied(tmp_path):
    """A function that copies an example somewhere else, as a reader would."""

    def copy(name: str) -> Path:
        for file in (EXAMPLES / name).iterdir():
            if file.is_file():
                (tmp_path / file.name).write_bytes(file.read_bytes())
        return tmp_path

    return copy


def test_digits_gives_its_verdicts(copied):
    folder = copied("digits")
    done = run("--fp16-conformance", "--fp16-json=out.json", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    result = counts(done)
    assert (result["passed"], result["xfailed"]) == (7, 1)
    reports = [e["report"] for e in json.loads((folder / "out.json").read_text())["reports"]]
    verdicts = {(r["name"], r["precision"]): r["verdict"] for r in reports}
    assert verdicts.pop(("rms-net", "16-true")) == "not equivalent"
    assert set(verdicts.values()) == {"equivalent"}
    assert len(verdicts) == 7


def test_the_planted_failure_says_where(copied):
    done = run("--fp16-conformance", "--runxfail", "-k", "rms_net_in_float16", cwd=copied("digits"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "16-true is not equivalent to 32-true" in done.stdout
    assert "norm" in done.stdout


def test_digits_is_a_plain_test_without_the_flag(copied):
    done = run(cwd=copied("digits"))
    result = counts(done)
    # The planted failure only fails in 16 bits, and strict xfail must not trip over that.
    assert done.returncode == 0, done.stdout + done.stderr
    assert result["passed"] >= 3


def test_fashion_skips_with_its_reason(copied, tmp_path):
    done = run(
        "--fp16-conformance", f"--fashion-mnist={tmp_path}/none", "-rs", cwd=copied("fashion")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "dataset-fashion-mnist" in done.stdout
    assert set(counts(done)) & {"passed", "failed", "error", "errors"} == set()


@pytest.mark.skipif(not FASHION.is_dir(), reason=f"no Fashion-MNIST in {FASHION}")
def test_fashion_runs_on_real_images(copied):
    """Trained on a few images only: the verdict needs no good model, just one above chance."""
    size = ("--fashion-train=3000", "--fashion-test=400")
    done = run("--fp16-conformance", *size, "test_fashion.py::test_vit", cwd=copied("fashion"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert counts(done)["passed"] == 4


def test_training_gives_its_verdicts(copied):
    done = run("--fp16-conformance", cwd=copied("training"))
    assert done.returncode == 0, done.stdout + done.stderr
    result = counts(done)
    assert (result["passed"], result["xfailed"]) == (3, 1)
