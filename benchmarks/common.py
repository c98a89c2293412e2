"""What the benchmark commands share: running checks, and writing results anybody can compare."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import multiprocessing
import os
import platform
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.cases.base import ALL, Case
from benchmarks.data import batches

#: Where results go; another machine's can be kept apart.
RESULTS = Path(os.environ.get("FP16_RESULTS") or Path(__file__).parent / "results")
_PACKAGES = (
    "pytest-fp16",
    "torch",
    "numpy",
    "scipy",
    "pytest",
    "transformers",
    "timm",
    "torchvision",
)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def environment() -> str:
    """Machine and versions in one line; no host name."""
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    python = platform.python_version()
    threads = f"{torch.get_num_threads()} thread(s)"
    return f"{_processor()}{gpu}, {threads}; Python {python}, {', '.join(versions)}"


def options(doc: str | None, *more: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """The options every benchmark has, and its own."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--quick", action="store_true", help="a smoke run; writes no result file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes, where it spreads work")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no case after")
    for name, keywords in more:
        parser.add_argument(name, **keywords)
    parsed = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    settle(parsed.threads)
    return parsed


def settle(threads: int) -> None:
    """What every process of a benchmark begins with."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")


#: What `spread` did not come to, and what it left out, for the footer of the result.
_UNDONE: list[str] = []


def spread(
    function: Callable[[Any], Any], items: Sequence[Any], options: argparse.Namespace
) -> Iterator[Any]:
    """`function` of every item, in their order, in as many processes as are asked for.

    Cases are built by functions that cannot be pickled: hand over their names. Items whose packages
    are missing, or that are not done when ``--minutes`` are over, are left out, and the result says
    so.
    """
    for item, result, missing in _spread(function, items, options):
        if missing:
            name = item[0] if isinstance(item, tuple) else item
            _UNDONE.append(f"Left out {name}: {missing}.")
        else:
            yield result


def _late(undone: int, total: int) -> str:
    return f"Not done in the time given: {undone} of {total} items."


def _tried(function: Callable[[Any], Any], item: Any) -> tuple[Any, Any, str]:
    try:
        return item, function(item), ""
    except ModuleNotFoundError as error:
        return item, None, str(error)


def _spread(
    function: Callable[[Any], Any], items: Sequence[Any], options: argparse.Namespace
) -> Iterator[tuple[Any, Any, str]]:
    end = time.monotonic() + 60 * options.minutes
    if options.workers < 2:
        for done, item in enumerate(items):
            if time.monotonic() > end:
                _UNDONE.append(_late(len(items) - done, len(items)))
                return
            yield _tried(function, item)
        return
    context = multiprocessing.get_context("spawn")  # CUDA does not outlive a fork
    pool = futures.ProcessPoolExecutor(options.workers, context, settle, (options.threads,))
    promised = [pool.submit(_tried, function, item) for item in items]
    undone = 0
    for future in promised:
        try:
            left = None if end == float("inf") else max(0.0, end - time.monotonic())
            result = future.result(left)
        except futures.TimeoutError:  # Python 3.10 has two of that name
            undone += 1
            continue
        yield result
    if undone:
        _UNDONE.append(_late(undone, len(items)))
        for process in multiprocessing.active_children():
            process.kill()
    pool.shutdown(cancel_futures=True)


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A GitHub table."""
    return tabulate(list(rows), headers=list(headers), tablefmt="github", disable_numparse=True)


def write(
    name: str,
    title: str,
    summary: str,
    headers: Sequence[str],
    rows: Iterable[Sequence[Any]],
    notes: str = "",
    quick: bool = False,
) -> None:
    """Print a result and, unless it was a smoke run, keep it as benchmarks/results/<name>.md."""
    command = " ".join(["python -m", _module(), *sys.argv[1:]])
    today = datetime.datetime.now(datetime.timezone.utc).date()
    parts = [f"# {title}", summary, table(headers, rows), notes]
    parts += _UNDONE
    parts.append(f"`{command}`, {today}; {environment()}.")
    text = "\n\n".join(part for part in parts if part) + "\n"
    print(text)
    if not quick:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Kept:
    """The rows of a table that was written before, and when that was."""

    rows: tuple[tuple[str, ...], ...] = ()
    date: str = ""

    @property
    def told(self) -> str:
        """What the new table says of them."""
        return f"{len(self.rows)} rows stood here on {self.date} already." if self.rows else ""

    def lacks(self, names: Iterable[str]) -> list[str]:
        """The names that have no row."""
        there = {row[0] for row in self.rows}
        return [name for name in names if name not in there]


def kept(name: str) -> Kept:
    """The rows of benchmarks/results/<name>.md: for figures that pytest-fp16 has no part in."""
    path = RESULTS / f"{name}.md"
    if not path.exists():
        return Kept()
    *lines, last = path.read_text(encoding="utf-8").strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    date = re.search(r"\d{4}-\d\d-\d\d", last)
    return Kept(tuple(tuple(row) for row in rows[2:]), date.group() if date else "an unknown day")


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).stem


@dataclass(frozen=True)
class Outcome:
    """A report, or the error that took its place; an error of ours counts as a wrong answer."""

    report: Any
    error: str
    seconds: float

    @property
    def verdict(self) -> str:
        """The verdict, or ``"error"``."""
        return self.report.verdict if self.report is not None else "error"

    @property
    def forecast(self) -> str:
        """The forecast's verdict, or why there is none."""
        if self.report is None:
            return "error"
        return self.report.forecast.verdict if self.report.forecast else "none"


def checked(evaluation: Any, precision: str, **settings: Any) -> Outcome:
    """One check, whatever comes of it."""
    from pytest_fp16 import check

    start = time.perf_counter()
    try:
        report = check(evaluation, precision=precision, **settings)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        place = f"{Path(where.filename).name}:{where.lineno}"
        return Outcome(None, f"{said[:120]} ({place})", time.perf_counter() - start)
    return Outcome(report, "", time.perf_counter() - start)


_LAST: dict[str, Any] = {}


def check_case(case: Case, precision: str, **settings: Any) -> Outcome:
    """One check of a case; its other precisions come from the same pass, as under pytest."""
    key = f"{settings}"
    if _LAST.get("case") != case.name:  # settings may alternate from precision to precision
        _LAST.clear()
        _LAST["case"] = case.name
    if key not in _LAST:
        _LAST[key] = _all_precisions(case, settings)
    return _LAST[key].get(precision) or checked(case.evaluation(), precision, **settings)


def _all_precisions(case: Case, settings: dict[str, Any]) -> dict[str, Outcome]:
    from pytest_fp16 import Settings
    from pytest_fp16.conformance import examine

    start = time.perf_counter()
    try:
        reports = examine(case.evaluation(), Settings(precisions=ALL, **settings))
    except Exception:
        return {}  # each precision then raises, and is counted, by itself
    seconds = (time.perf_counter() - start) / len(ALL)
    return {p: Outcome(r, "", seconds) for p, r in zip(ALL, reports, strict=True)}


def subset(data: list, index: torch.Tensor, size: int = 128) -> list:
    """Some inputs of labelled batches of tensors, batched anew."""
    inputs = torch.cat([x for x, _ in data])[index]
    labels = torch.cat([y for _, y in data])[index]
    return batches(inputs, labels, size=size)


def clock(run: Callable[[], Any], repeats: int = 3) -> float:
    """The shortest of a few runs, in seconds: noise only ever adds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def share(part: int, whole: int) -> str:
    """``"39 of 40 (97.5 %)"``."""
    return f"{part} of {whole} ({part / whole:.1%})" if whole else "0 of 0"
