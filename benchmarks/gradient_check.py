"""The gradient check on planted training failures and healthy trainings, and what it costs.

Claimed: at least 90 % of the failures flagged before training, at most one false flag, and at most
5 % of the cost of the full comparison: both precisions trained, emulated, over the eight seeds of
the default allowance. (False flags are two by now: both true precisions of one training, whose
gate has a gradient that 16 bits bend, and no metric feels.) Also given: the share of four pairs,
about the fewest that settle a verdict.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks import common
from benchmarks.cases.training import TrainingCase
from benchmarks.cases.training_heldout import CASES, HELD_OUT
from benchmarks.cases.training_reported import REPORTED
from benchmarks.cases.training_reported_more import REPORTED_MORE
from benchmarks.cases.training_reported_sound import REPORTED_SOUND
from benchmarks.cases.training_reported_steps import REPORTED_STEPS


def flagged(case: TrainingCase, precision: str) -> tuple[Any, float]:
    """The findings and the seconds they took."""
    from pytest_fp16.engine.gradient_check import gradient_check
    from pytest_fp16.precision import precision as named
    from pytest_fp16.settings import Settings

    subject = case.training()
    start = time.perf_counter()
    findings = gradient_check(subject, named(precision), Settings(), torch.device("cpu"))
    return findings, time.perf_counter() - start


def pair_seconds(case: TrainingCase, precision: str) -> float:
    """Seconds of one pair: 32 bits and the candidate, emulated."""
    from pytest_fp16.engine.train import train
    from pytest_fp16.engine.trainee import Place, initial_state
    from pytest_fp16.precision import precision as named

    subject, place = case.training(), Place(torch.device("cpu"), "cuda", True)
    state = initial_state(subject, 0)
    start = time.perf_counter()
    for name in ("32-true", precision):
        train(subject, named(name), 0, state, place)
    return time.perf_counter() - start


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


def main() -> None:
    """Flag every labelled pair, and time a few healthy ones against their training."""
    options = common.options(
        main.__doc__, ("--only", {"default": ""}), ("--time", {"type": int, "default": 8})
    )
    rows, hits, planted, false, healthy = [], 0, 0, 0, 0
    spent = full = 0.0
    timed = 0
    for case in (c for c in CASES.values() if options.only in c.name):
        for precision in (*case.fails, *case.sound):
            findings, seconds = flagged(case, precision)
            wrong = findings.verdict == "not equivalent"
            if precision in case.fails:
                planted, hits = planted + 1, hits + wrong
            else:
                healthy, false = healthy + 1, false + wrong
            share = ""
            if not case.fails and timed < options.time and precision in ("16-true", "16-mixed"):
                one = pair_seconds(case, precision)
                spent, full, timed = spent + seconds, full + 4 * one, timed + 1
                share = f"{seconds / (4 * one):.1%}"
            label = "fails" if precision in case.fails else "sound"
            culprit = findings.culprit
            where = f"{culprit.module or '(model)'} {culprit.operation}" if culprit else ""
            why = culprit.mechanism if culprit else ""
            verdict = "flagged" if wrong else "passed"
            mark = "" if wrong == (label == "fails") else "WRONG"
            rows.append(
                (case.name, precision, label, verdict, mark, where, why, f"{seconds:.2f}", share)
            )
            print(*rows[-1], findings.reason[:150] if wrong or mark else "", sep=" | ", flush=True)
    failing = {c.name for c in CASES.values() if c.fails}
    sound = {c.name for c in CASES.values() if not c.fails}
    summary = (
        f"Planted failures flagged: {common.share(hits, planted)} pairs of case and precision "
        f"of {len(failing)} trainings. False flags: {common.share(false, healthy)} pairs, from "
        f"{len(sound)} healthy trainings and the other precisions of the planted ones."
    )
    summary += _of("the trainings held out", [r for r in rows if r[0] in HELD_OUT])
    names = REPORTED | REPORTED_MORE | REPORTED_SOUND | REPORTED_STEPS
    reported = [r for r in rows if r[0] in names]
    summary += _of("the trainings after public reports", reported)
    if full:
        summary += (
            f" Cost against eight pairs of runs: {spent / full / 2:.1%}, against four "
            f"{spent / full:.1%}, over {timed} timed cases."
        )
    head = ("case", "precision", "label", "verdict", "", "where", "why", "seconds", "of 4 pairs")
    title, quick = "The gradient check on labelled trainings", options.quick or bool(options.only)
    common.write("gradient-check", title, summary, head, rows, quick=quick)


if __name__ == "__main__":
    main()
