"""What the plugin costs those who do not use it: `pytest --help` and a run of one empty test.

Claimed: at most 1.05 times the time without it (`-p no:fp16`). Runs alternate, so that a busy
machine slows both, and medians are compared. Bytecode may be kept, as an installed package's is.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import common


def seconds(arguments: list[str], folder: str) -> float:
    """The wall time of one pytest."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTEST_ADDOPTS": "", "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
        env=environment,
    )
    return time.perf_counter() - start


def main() -> None:
    """Time both commands with and without the plugin."""
    options = common.options(__doc__, ("--repeats", {"type": int, "default": 31}))
    repeats = 3 if options.quick else options.repeats
    rows, worst = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_one.py").write_text("def test_one():\n    assert True\n")
        for name, arguments in (("pytest --help", ["--help"]), ("one test", ["-q", "test_one.py"])):
            times: tuple[list[float], list[float]] = ([], [])
            for turn in range(2 * repeats + 2):
                without = turn % 2
                more = ["-p", "no:fp16"] if without else []
                times[without].append(seconds([*arguments, *more], folder))
            with_, without_ = (statistics.median(t[1:]) for t in times)
            worst = max(worst, with_ / without_)
            rows.append((name, f"{with_:.3f} s", f"{without_:.3f} s", f"{with_ / without_:.3f}"))
    common.write(
        "startup",
        "Start-up",
        f"Largest ratio: {worst:.3f} (claimed: at most 1.05). Medians of {repeats} runs each.",
        ("command", "with the plugin", "without", "ratio"),
        rows,
        quick=options.quick,
    )


if __name__ == "__main__":
    main()
