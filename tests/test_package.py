"""What importing costs, and the public names."""

import os
import subprocess
import sys
from collections import Counter
from importlib.metadata import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import pytest_fp16

HEAVY = ("torch", "numpy", "scipy", "pydantic", "tabulate", "hypothesis")
LIGHT = (
    "pytest_fp16",
    "pytest_fp16.errors",
    "pytest_fp16.settings",
    "pytest_fp16.precision",
    "pytest_fp16.subject",
)


def imported_by(statement):
    program = f"{statement}\nimport sys; print(*(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_and_settings_load_nothing_heavy():
    statement = "\n".join(f"import {module}" for module in LIGHT)
    statement += "\nfrom pytest_fp16 import Evaluation, Settings, Training"
    statement += "\nSettings(precisions=('16-true',)); Evaluation(model=None, data=[])"

    assert imported_by(statement) == set()


def test_the_check_above_can_fail():
    assert "numpy" in imported_by("import pytest_fp16.theory.flips")


def test_every_public_name_is_listed_and_can_be_loaded():
    assert pytest_fp16.__all__ == sorted(pytest_fp16.__all__)
    assert set(pytest_fp16.__all__) == set(pytest_fp16._HOMES)
    for name in pytest_fp16.__all__:
        assert getattr(pytest_fp16, name).__name__ == name
        assert name in dir(pytest_fp16)


def test_version_and_unknown_names():
    assert pytest_fp16.__version__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        pytest_fp16.nonsense  # noqa: B018


def pinned(python):
    """The constraints that apply to one Python."""
    lines = (Path(__file__).parents[1] / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = {"python_version": python}
    return [pin for pin in pins if pin.marker is None or pin.marker.evaluate(here)]


def test_each_supported_python_has_one_pin_of_everything():
    """README's commands install with these; a pin that a Python lacks would end them there."""
    stated = metadata("pytest-fp16").get_all("Classifier")
    pythons = [line.split(" :: ")[-1] for line in stated if ":: Python :: 3." in line]
    names = {python: Counter(pin.name for pin in pinned(python)) for python in pythons}

    assert len(pythons) == 5
    for python in pythons:
        assert set(names[python].values()) == {1}, python
        assert names[python] == names["3.14"], python


@pytest.mark.parametrize(
    ("argument", "code", "said"),
    [("--help", 0, "--fp16-conformance"), ("--collect-only", 4, "ERROR: hypothesis is not inst")],
)
def test_without_the_extras_of_the_tests_pytest_says_so_in_a_line(tmp_path, argument, code, said):
    """README's first command brings the extra of the examples alone."""
    (tmp_path / "hypothesis.py").write_text("raise ModuleNotFoundError('hypothesis')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:hypothesispytest", argument],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "Traceback (most" not in done.stdout + done.stderr
