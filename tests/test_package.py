"""What importing costs, and the public names."""

import subprocess
import sys

import pytest

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
