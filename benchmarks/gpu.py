"""Everything that is worth a GPU, in one command: ``python benchmarks/gpu.py`` on a CUDA machine.

First, side by side in a few processes each, what measures no time: the tests marked ``gpu``; the
product's own main job on the example; the judges of the labels on native kernels; emulation against
these; forecasts, verdicts and diagnoses, natively, all three told by one step of the same checks;
the gradient check; the calibration of predicted errors; the architectures. Then, one after the
other, speed and memory, the study of δ against Γ and, in what time is left, the paper's table.
Results go to ``benchmarks/results/cuda``, apart from a CPU's. What has finished is noted there in
``steps.json`` at once, with each step's output in a ``.log`` beside it, and is not done again by a
second run; the table keeps every single training, so that a machine taken away costs it one at
most. A step that was stopped leaves its log and is run again.

    python benchmarks/gpu.py --dry-run                 # list the steps, start nothing
    python benchmarks/gpu.py --minutes 25 --fashion /path/to/fashion-mnist
    python benchmarks/gpu.py --only paper --minutes 120 --epochs 100 --cifar cifar-10-batches-py

Needs no network and nothing installed beside what the steps name; a step whose packages or data are
missing is left out and says so. The package itself may be used from the checkout: it is put on the
path, and its plugin is named to pytest. Python 3.10 and torch 2.6 upwards. The data are the four
files of Fashion-MNIST, in the folder ``--fashion`` names, and the trained models of
``benchmarks/.cache`` where they have been brought along (else they are trained on the spot).

No GPU was at hand so far: the steps have been run on a CPU, and this script with ``--dry-run`` and
with its steps replaced in its tests.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cuda"
#: The exit code by which the paper's table says that trainings are missing.
UNFINISHED = 3
_LIBRARY = ("torch", "numpy", "scipy", "pydantic", "tabulate")


@dataclass(frozen=True)
class Step:
    """A command with its limit.

    Attributes:
        name: what ``--only`` and the notes call it.
        command: arguments for this Python.
        minutes: when it is stopped; a step that stores as it goes loses nothing by it.
        needs: packages without which it is left out.
        fashion: whether it needs Fashion-MNIST.
        timed: whether it measures time, and so runs alone.
        spreads: whether it takes ``--workers`` and ``--minutes``.
    """

    name: str
    command: tuple[str, ...]
    minutes: float
    needs: tuple[str, ...] = _LIBRARY
    fashion: bool = False
    timed: bool = False
    spreads: bool = False


def _pytest(name: str, minutes: float, *arguments: str) -> Step:
    command = ["-m", "pytest", *arguments, "-p", "no:cacheprovider"]
    plugins = importlib.metadata.entry_points(group="pytest11")
    if all(plugin.name != "fp16" for plugin in plugins):
        command += ["-p", "pytest_fp16.plugin"]
    return Step(name, tuple(command), minutes, (*_LIBRARY, "pytest", "pytest_benchmark"))


def _spread(name: str, minutes: float, module: str, *arguments: str) -> Step:
    command = ("-m", f"benchmarks.{module}", *arguments)
    return Step(name, command, minutes, fashion=True, spreads=True)


def steps(epochs: int, seeds: int, minutes: float, cifar: str | None) -> list[Step]:
    """The steps in the order they are run, the one that can use any amount of time last."""
    table = ["-m", "benchmarks.paper", "--device", "cuda", "--epochs", str(epochs)]
    table += ["--seeds", str(seeds), *(["--data", cifar] if cifar else [])]
    return [
        _pytest("tests", 6, "tests", "-m", "gpu", "-q", "-rfEs"),
        _spread("labels", 5, "cases.judge", "--device", "cuda", "--write"),
        _spread("labels-held-out", 5, "cases.judge", "--device", "cuda", "--held-out", "--write"),
        _spread("labels-training", 5, "cases.training_judge", "--device", "cuda", "--write"),
        _spread("emulation", 6, "emulation", "--device", "cuda"),
        _spread("diagnosis", 6, "diagnosis"),
        _spread("diagnosis-held-out", 8, "diagnosis", "--held-out"),
        _spread("gradient-check", 5, "gradient_check", "--device", "cuda"),
        _spread("calibration", 5, "calibration"),
        _spread("architectures", 5, "architectures"),
        replace(_pytest("example", 4, "examples/digits", "--fp16-conformance", "-v"), timed=True),
        Step("speed", ("-m", "benchmarks.speed", "--device", "cuda"), 4, timed=True),
        Step(
            *("mnist", ("-m", "benchmarks.paper.mnist"), 4, (*_LIBRARY, "matplotlib"), True),
            timed=True,
        ),
        Step("paper", tuple(table), minutes, fashion=not cifar, timed=True),
    ]


def obstacle(step: Step, fashion: str | None) -> str:
    """Why a step cannot be run here; empty where it can."""
    missing = [name for name in step.needs if importlib.util.find_spec(name) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    if step.fashion and not (fashion and Path(fashion, "train-images-idx3-ubyte.gz").is_file()):
        return f"needs Fashion-MNIST, none in {fashion}: name its folder with --fashion"
    return ""


class Notes:
    """What has come of each step, on disk after every one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.steps: dict[str, dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            self.steps = {}
        except ValueError:
            print(f"{path} is damaged; every step is run again", flush=True)
            self.steps = {}

    def done(self, name: str) -> bool:
        """Whether a step came to its end in an earlier run."""
        return self.steps.get(name, {}).get("ended") == "finished"

    def write(self, name: str, **facts: object) -> None:
        """Note a step; written aside and moved into place, so that no crash leaves half a file."""
        self.steps[name] = facts
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text(json.dumps(self.steps, indent=2) + "\n", encoding="utf-8")
        scratch.replace(self.path)


class Running:
    """A step that has been started, writing into its log."""

    def __init__(self, step: Step, seconds: float, environment: dict[str, str], log: Path) -> None:
        self.step, self.start = step, time.monotonic()
        self.end = self.start + seconds
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                [sys.executable, *step.command],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def over(self) -> bool:
        """Whether it has ended or is out of time."""
        return self.process.poll() is not None or time.monotonic() > self.end

    def ended(self) -> tuple[str, float]:
        """Wait for it: how it ended, and after how many seconds.

        A step that is out of time is interrupted first, as by Ctrl-C, and killed with all it
        started when it has not gone after ten seconds.
        """
        try:
            code = self.process.wait(max(0.0, self.end - time.monotonic()))
            ended = {0: "finished", UNFINISHED: "unfinished"}.get(code, f"exit code {code}")
        except subprocess.TimeoutExpired:
            ended = "out of time"
            _stop(self.process)
        except BaseException:
            _stop(self.process)
            raise
        return ended, time.monotonic() - self.start


def _stop(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="list the steps, start nothing")
    parser.add_argument("--minutes", type=float, default=25.0, help="for everything")
    parser.add_argument("--only", default="", help="names of steps, separated by commas")
    parser.add_argument("--again", action="store_true", help="also what has finished before")
    parser.add_argument("--epochs", type=int, default=10, help="of the paper's table; theirs: 100")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cifar", help="folder with CIFAR-10 for the paper's table")
    default = os.environ.get("FP16_FASHION_MNIST", "/usr/share/datasets/fashion-mnist")
    parser.add_argument("--fashion", default=default, help="folder with Fashion-MNIST")
    return parser.parse_args(arguments)


def _chosen(options: argparse.Namespace) -> list[Step]:
    every = steps(options.epochs, options.seeds, options.minutes, options.cifar)
    names = [name.strip() for name in options.only.split(",") if name.strip()]
    unknown = sorted(set(names) - {step.name for step in every})
    if unknown:
        known = ", ".join(step.name for step in every)
        raise SystemExit(f"unknown steps {', '.join(unknown)}; known are {known}")
    return [step for step in every if not names or step.name in names]


def _environment(fashion: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    ours = {"PYTHONPATH": path, "FP16_RESULTS": str(RESULTS), "FP16_FASHION_MNIST": fashion}
    return {**os.environ, **ours, "PYTHONUNBUFFERED": "1"}


def _plan(chosen: Sequence[Step], notes: Notes, options: argparse.Namespace) -> None:
    for step in chosen:
        if notes.done(step.name) and not options.again:
            state = "finished before"
        else:
            state = obstacle(step, options.fashion) or "ready"
        command = " ".join(["python", *step.command])
        print(f"{step.name:12} up to {step.minutes:3.0f} min  {state:16}  {command}")


def _with_limit(step: Step, left: float, workers: int) -> Step:
    """A step that is told its time, so that it ends by itself and writes what it has."""
    if step.spreads:
        more = ("--workers", str(workers), "--minutes", f"{max(left / 60 - 0.3, 0.3):.1f}")
        return replace(step, command=(*step.command, *more))
    if step.name != "paper":
        return step
    spare = max(left / 60 - 2, 0.5)
    return replace(step, command=(*step.command, "--minutes", f"{spare:.1f}"))


class Session:
    """The steps of one run of this script, within its time."""

    def __init__(self, options: argparse.Namespace, notes: Notes, card: str) -> None:
        self.options, self.notes, self.card = options, notes, card
        self.end = time.monotonic() + 60 * options.minutes
        self.environment = _environment(options.fashion)

    def start(self, step: Step, workers: int) -> Running | None:
        """Start a step; None, with a note of why, where it cannot be run."""
        left = self.end - time.monotonic()
        why = obstacle(step, self.options.fashion) or ("no time left" if left < 20 else "")
        if why:
            self.notes.write(step.name, ended="left out", why=why)
            print(f"{step.name}: left out, {why}", flush=True)
            return None
        limit = min(60 * step.minutes, left)
        told = _with_limit(step, limit, workers)
        return Running(told, limit, self.environment, RESULTS / f"{step.name}.log")

    def finish(self, running: Running) -> None:
        """Wait for a step and note what came of it."""
        ended, took = running.ended()
        name = running.step.name
        self.notes.write(name, ended=ended, seconds=round(took), device=self.card)
        print(f"{name}: {ended} after {took:.0f} s", flush=True)

    def together(self, steps: Sequence[Step]) -> None:
        """Steps that measure no time, side by side."""
        spread = sum(step.spreads for step in steps)
        workers = max(1, round(1.5 * (os.cpu_count() or 1) / max(1, spread)))
        started = [running for step in steps if (running := self.start(step, workers))]
        try:
            while started:
                over = [r for r in started if r.over]
                for running in over:
                    self.finish(running)
                started = [r for r in started if r not in over]
                time.sleep(0.1)
        finally:
            for running in started:
                _stop(running.process)

    def alone(self, steps: Sequence[Step]) -> None:
        """Steps that measure time, one after the other."""
        for step in steps:
            if running := self.start(step, 1):
                self.finish(running)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what has not finished; 0 where every step chosen has, 1 where one has not."""
    options = _options(arguments)
    chosen, notes = _chosen(options), Notes(RESULTS / "steps.json")
    if options.dry_run:
        _plan(chosen, notes, options)
        return 0
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --dry-run lists the steps")
    card = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    session = Session(options, notes, card)
    wanted = [step for step in chosen if options.again or not notes.done(step.name)]
    session.together([step for step in wanted if not step.timed])
    session.alone([step for step in wanted if step.timed])
    return 0 if all(notes.done(step.name) for step in chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
