"""pytest in pytest: a small project with a trained classifier, run with our plugin.

Runs are in-process, which is fast, wherever the state of imported modules does not matter. torch
cannot be imported twice, and pytester forgets what an inner run imports, so everything an inner
run could import is imported by a first check out here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits

import pytest_fp16.console
import pytest_fp16.report.progress
import pytest_fp16.smoke
import pytest_fp16.speed
from pytest_fp16 import Evaluation, Settings
from pytest_fp16.conformance import examine
from pytest_fp16.report import json as report_json
from pytest_fp16.report import junit, terminal

INI = """
[pytest]
addopts = -p no:randomly -p no:asyncio -p no:cov -p no:cacheprovider -p no:hypothesispytest
filterwarnings = error
"""

CONFTEST = """
import pytest
import torch
from torch import nn

torch.set_num_threads(1)
FILE = {file!r}


class Squared(nn.Module):
    '''Takes a detour through numbers beyond float16.'''

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) * 1e5 / 1e5


@pytest.fixture(scope="session")
def model():
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    net.load_state_dict(torch.load(FILE)["state"])
    return net.eval()


@pytest.fixture(scope="session")
def broken(model):
    return Squared(model).eval()


@pytest.fixture(scope="session")
def data():
    stored = torch.load(FILE)
    return list(zip(stored["inputs"].split(100), stored["labels"].split(100)))
"""

HEADER = """
import pytest
from pytest_fp16 import Evaluation, Training, fp16_equivalent
"""

#: One sound and one broken claim; most tests need no more.
TWO_CLAIMS = """
@fp16_equivalent
def test_sound(model, data):
    return Evaluation(model=model, data=data)

@fp16_equivalent
def test_broken(broken, data):
    return Evaluation(model=broken, data=data)
"""


def train_digits() -> dict[str, Any]:
    digits = load_digits()
    inputs = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(inputs[:1500]), labels[:1500])
            loss.backward()
            optimizer.step()
    stored = {"state": net.state_dict(), "inputs": inputs[1500:1700], "labels": labels[1500:1700]}
    net.eval()
    broken = torch.nn.Sequential(net, _Times())
    for model in (net, broken):
        evaluation = Evaluation(model=model, data=[(stored["inputs"], stored["labels"])])
        for emulate in ("always", "never"):
            reports = examine(evaluation, Settings(emulate=emulate, device="cpu"))
    named = [("test", report) for report in reports]
    assert [terminal.table(named), terminal.full(reports[0]), str(reports[0])]
    assert [junit.properties(reports[0]), report_json.document(named)]
    pytest_fp16.smoke.smoke(evaluation)
    return stored


class _Times(torch.nn.Module):
    def forward(self, x):
        return x * 1e5 / 1e5


@pytest.fixture(scope="session")
def digits_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("digits") / "digits.pt"
    torch.save(train_digits(), file)
    return file


@dataclass
class Example:
    """A project in a folder of its own, and ways to run pytest in it."""

    pytester: pytest.Pytester

    def write(self, code: str, name: str = "test_it") -> None:
        self.pytester.makepyfile(**{name: HEADER + code})

    def ini(self, *lines: str) -> None:
        self.pytester.makefile(".ini", pytest=INI + "\n".join(lines))

    def run(self, *args: str) -> pytest.RunResult:
        """Here in this process, without the flag."""
        return self.pytester.runpytest_inprocess(*args)

    def check(self, *args: str) -> pytest.RunResult:
        """Here in this process, with the flag."""
        return self.run("--fp16-conformance", *args)

    def check_apart(self, *args: str) -> pytest.RunResult:
        """In a process of its own, with the flag."""
        return self.pytester.runpytest_subprocess("--fp16-conformance", *args)

    def reports(self, name: str = "out.json") -> dict[str, dict[str, Any]]:
        """Item's id to report, as written by --fp16-json."""
        document = json.loads((self.pytester.path / name).read_text())
        return {entry["test"]: entry["report"] for entry in document["reports"]}


@pytest.fixture
def example(pytester: pytest.Pytester, digits_file: Path, monkeypatch) -> Example:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    project = Example(pytester)
    project.ini()
    pytester.makeconftest(CONFTEST.format(file=str(digits_file)))
    project.write(TWO_CLAIMS)
    return project
