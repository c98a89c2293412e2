"""Kill a training check at random moments, resume it, and compare its report with a whole one's."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import options, write

CHILD = """
import sys, torch
from torch import nn
from benchmarks.data import batches, digits
from pytest_fp16 import Settings, Training
from pytest_fp16.conformance import examine

torch.set_num_threads(1)
(train_x, train_y), (test_x, test_y) = digits()

def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1),
                         nn.Linear(32, 10))

training = Training(
    model=model, optimizer=lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    loss=nn.functional.cross_entropy, train_data=batches(train_x, train_y, size=64),
    eval_data=batches(test_x, test_y, size=200), epochs=4, name="digits",
)
print("started", file=sys.stderr, flush=True)
settings = Settings(precisions=("16-true", "bf16-mixed"), seeds=4, store=sys.argv[1], resume=True)
for report in examine(training, settings):
    # One line says how many runs were read: it is the only one that may differ.
    said = [w for w in report.warnings if " runs were read from " not in w]
    print(report.model_copy(update={"warnings": said}).model_dump_json())
"""


def start(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(folder)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while child.stderr.readline().strip() != "started":
        if child.poll() is not None:
            raise RuntimeError("the training check could not start")
    return child


def whole(folder: Path) -> tuple[str, float]:
    child = start(folder)
    began = time.perf_counter()
    out, errors = child.communicate()
    if child.returncode:
        raise RuntimeError(errors)
    return out, time.perf_counter() - began


def main() -> None:
    arguments = options(__doc__)
    kills = 2 if arguments.quick else 20
    moments = random.Random(0)
    rows, same = [], 0
    with tempfile.TemporaryDirectory() as root:
        expected, seconds = whole(Path(root) / "whole")
        for number in range(kills):
            folder = Path(root) / f"killed-{number}"
            moment = moments.random() * seconds
            child = start(folder)
            time.sleep(moment)
            alive = child.poll() is None
            child.kill()
            child.communicate()
            kept = len(list(folder.glob("*.json"))) if folder.is_dir() else 0
            report, left = whole(folder)
            same += report == expected
            outcome = "the same" if report == expected else "DIFFERENT"
            after = f"{moment:.2f} s" + ("" if alive else " (had ended)")
            rows.append((number + 1, after, kept, f"{left:.2f} s", outcome))
    write(
        "resume",
        "Killed and resumed",
        f"Killed (SIGKILL) at {kills} random moments of a check of {seconds:.1f} s, then resumed: "
        f"the same report as an uninterrupted check, byte for byte, in {same} of {kills}.",
        ("kill", "after", "runs kept", "time to finish", "report"),
        rows,
        quick=arguments.quick,
    )
    if same != kills:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
