"""The gradient check on planted training failures and healthy trainings, and what it costs.

Claimed: at least 90 % of the failures flagged before training, at most one false flag, and at most
5 % of the cost of the full comparison: both precisions trained, emulated, over the eight seeds of
the default allowance. Also given: the share of four pairs, about the fewest that settle a verdict.
Times are of the processor, so that what else runs on the machine is no part of a share.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks import common
from benchmarks.cases.training import TrainingCase, load


def flagged(case: TrainingCase, precision: str, device: str) -> tuple[Any, float]:
    """The findings and the seconds of processor time they took."""
    from pytest_fp16.engine.gradients.check import gradient_check
    from pytest_fp16.precision import precision as named
    from pytest_fp16.settings import Settings

    subject = case.training()
    start = time.process_time()
    findings = gradient_check(subject, named(precision), Settings(), torch.device(device))
    return findings, time.process_time() - start


def pair_seconds(case: TrainingCase, precision: str) -> float:
    """Processor seconds of one pair: 32 bits and the candidate, emulated."""
    from pytest_fp16.engine.training.place import Place
    from pytest_fp16.engine.training.train import train
    from pytest_fp16.engine.training.trainee import initial_state
    from pytest_fp16.precision import precision as named

    subject, place = case.training(), Place(torch.device("cpu"), "cuda", True)
    state = initial_state(subject, 0)
    start = time.process_time()
    for name in ("32-true", precision):
        train(subject, named(name), 0, state, place)
    return time.process_time() - start


@dataclass(frozen=True)
class Checked:
    """One training in one precision.

    Attributes:
        row: as the table shows it, but for the last column.
        seconds: of the check, and of one pair of runs where that was asked for.
    """

    row: tuple[str, ...]
    seconds: tuple[float, float | None]
    reason: str

    @property
    def wrong(self) -> bool:
        """Whether the label says otherwise."""
        return bool(self.row[4])

    @property
    def share(self) -> str:
        """Of the cost of four pairs."""
        check, pair = self.seconds
        return "" if pair is None else f"{check / (4 * pair):.1%}"


def checked(item: tuple[str, bool], device: str) -> list[Checked]:
    """A training, by name, in each precision that has a label; timed where that is asked for."""
    (name, timed), found = item, []
    case = load()[name]
    for precision in (*case.fails, *case.sound):
        findings, seconds = flagged(case, precision, device)
        label = "fails" if precision in case.fails else "sound"
        verdict = "flagged" if findings.verdict == "not equivalent" else "passed"
        mark = "" if (verdict == "flagged") == (label == "fails") else "WRONG"
        culprit = findings.culprit
        where = f"{culprit.module or '(model)'} {culprit.operation}" if culprit else ""
        why = culprit.mechanism if culprit else ""
        wanted = timed and precision in ("16-true", "16-mixed")
        pair = pair_seconds(case, precision) if wanted else None
        row = (name, precision, label, verdict, mark, where, why, f"{seconds:.2f}")
        found.append(Checked(row, (seconds, pair), findings.reason[:150]))
    return found


def _of(what: str, rows: list[tuple[Any, ...]]) -> str:
    """A sentence on some of the rows; nothing where there are none."""
    if not rows:
        return ""
    right = sum(not row[4] for row in rows)
    missed = sum(row[2] == "fails" and bool(row[4]) for row in rows)
    return (
        f" On {what}: right on {common.share(right, len(rows))} pairs, {missed} failures missed, "
        f"{len(rows) - right - missed} false flags."
    )


def summary(every: list[Checked]) -> str:
    """All pairs in a few sentences."""
    rows = [one.row for one in every]
    planted = [row for row in rows if row[2] == "fails"]
    healthy = [row for row in rows if row[2] == "sound"]
    failing = {row[0] for row in planted}
    text = (
        f"Planted failures flagged: {common.share(sum(not r[4] for r in planted), len(planted))} "
        f"pairs of case and precision of {len(failing)} trainings. False flags: "
        f"{common.share(sum(bool(r[4]) for r in healthy), len(healthy))} pairs, from "
        f"{len({r[0] for r in healthy} - failing)} healthy trainings and the other precisions of "
        "the planted ones."
    )
    cases = load()
    for origin in ("held out", "reported"):
        text += _of(f"the trainings {origin}", [r for r in rows if cases[r[0]].origin == origin])
    timed = [one.seconds for one in every if one.seconds[1] is not None]
    if timed:
        ratio = sum(check for check, _ in timed) / sum(4 * pair for _, pair in timed)
        text += (
            f" Cost against eight pairs of runs: {ratio / 2:.1%}, against four {ratio:.1%}, over "
            f"{len(timed)} timed checks."
        )
    return text


def main() -> None:
    """Flag every labelled pair, and time some healthy ones against their training."""
    options = common.options(
        main.__doc__,
        ("--only", {"default": ""}),
        ("--time", {"type": int, "default": 24, "help": "healthy trainings to time, of all kinds"}),
        ("--device", {"choices": ("cpu", "cuda"), "default": "cpu"}),
    )
    cases = load()
    names = [name for name in cases if options.only in name]
    healthy = [name for name in names if not cases[name].fails]
    timed = healthy[:: max(len(healthy) // max(options.time, 1), 1)][: options.time]
    timed = timed if options.device == "cpu" else []
    items = [(name, name in timed) for name in names]
    every: list[Checked] = []
    for found in common.spread(partial(checked, device=options.device), items, options):
        every += found
        for one in found:
            said = one.reason if one.wrong or one.row[3] == "flagged" else ""
            print(*one.row, one.share, said, sep=" | ", flush=True)
    head = ("case", "precision", "label", "verdict", "", "where", "why", "seconds", "of 4 pairs")
    common.write(
        "gradient-check" + "-cuda" * (options.device == "cuda"),
        "The gradient check on labelled trainings",
        summary(every),
        head,
        [(*one.row, one.share) for one in every],
        quick=options.quick or bool(options.only),
    )


if __name__ == "__main__":
    main()
