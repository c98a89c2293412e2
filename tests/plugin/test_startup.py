"""Whoever does not use the plugin must not pay for it: pytest starts without anything heavy."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "scipy", "pydantic", "tabulate")
RUN = """
import sys
import pytest
status = pytest.main({arguments!r})
assert status == 0, status
assert "pytest_fp16.plugin" in sys.modules, "the plugin was not loaded"
print("HEAVY:", [name for name in {heavy!r} if name in sys.modules])
"""
#: Other plugins of the test environment, which may import what they like.
ALONE = ["-p", "no:cacheprovider", "-p", "fp16"]


def heavy_after(folder, monkeypatch, *arguments, more=""):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    code = RUN.format(arguments=[*ALONE, *arguments], heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", more + code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "test_one.py").write_text("def test_one():\n    pass\n")
    (tmp_path / "test_fp16.py").write_text(
        "from pytest_fp16 import Evaluation, fp16_equivalent\n"
        "@fp16_equivalent(budget=0.01)\n"
        "def test_it(): return Evaluation(None, [])\n"
        "def test_by_hand(fp16): pass\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--markers"],
        ["test_one.py"],
        ["--fp16-conformance", "test_one.py"],
        ["test_fp16.py", "-k", "by_hand"],
        ["test_fp16.py", "--collect-only", "--fp16-conformance"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(folder, monkeypatch, arguments):
    assert heavy_after(folder, monkeypatch, *arguments) == "HEAVY: []"


@pytest.mark.parametrize("flag", [[], ["--fp16-conformance"]])
def test_the_session_is_imported_only_where_it_is_asked_for(folder, monkeypatch, flag):
    monkeypatch.setattr(f"{__name__}.HEAVY", ("pytest_fp16.session",))
    said = heavy_after(folder, monkeypatch, *flag, "test_one.py")
    assert ("pytest_fp16.session" in said) == bool(flag)


def test_the_check_above_can_fail(folder, monkeypatch):
    (folder / "conftest.py").write_text("import pytest_fp16.conformance\n")

    said = heavy_after(folder, monkeypatch, "test_one.py")

    assert said.startswith("HEAVY: ['torch'")
