"""The plan: a small file that says which modules to keep in float32, and why. Imports no torch.

One line for each module, in the words of the report, to be read, reviewed and edited by people::

    # Modules to keep in float32.  test[precision]: module  # reason
    test_digits.py::test_digits[16-true]: blocks.1.norm  # overflow in pow

A test is called by its id, with its file; an entry without a file speaks for every subject of that
name, as `check` and people write it. A whole model is written as ``.``. Lines that begin with ``#``
are comments.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_fp16.errors import SettingError
from pytest_fp16.plan_lock import locked
from pytest_fp16.precision import PRECISIONS, canonical_name

if TYPE_CHECKING:
    from torch import nn

_HEADER = "# Modules to keep in float32.  test[precision]: module  # reason"
_WHOLE = "."
_ENTRY = re.compile(
    r"(?P<test>\S.*?)\[(?P<precision>[^\[\]]*)\]:\s+(?P<module>\S+)(?:\s+#\s*(?P<reason>.*))?"
)


@dataclass(frozen=True)
class Entry:
    """One module that one test at one precision keeps in float32.

    Attributes:
        test: the test's name, without the precision.
        precision: canonical name of the precision.
        module: qualified name as in ``named_modules``; empty for the whole model.
        reason: why, in one line.
        line: where it stands in the file it was read from, or 0.
    """

    test: str
    precision: str
    module: str
    reason: str = ""
    line: int = 0

    def __str__(self) -> str:
        reason = f"  # {' '.join(self.reason.split())}" if self.reason.strip() else ""
        return f"{self.test}[{self.precision}]: {self.module or _WHOLE}{reason}"


@dataclass(frozen=True)
class Plan:
    """The entries of a plan file, in its order.

    Attributes:
        entries: all of them.
        path: the file.
        test: id of the test that is being checked, which new entries are written under; empty
            outside pytest, where a subject's name must do.
    """

    entries: tuple[Entry, ...] = ()
    path: str = ""
    test: str = ""

    def modules(self, test: str, precision: str) -> list[str]:
        """The modules a test keeps in float32 at a precision; empty where the plan names none."""
        return list(dict.fromkeys(entry.module for entry in self.of(test, precision)))

    def of(self, test: str, precision: str) -> list[Entry]:
        """The entries at a precision of the test that is being checked, by its id or by name."""
        called = {test, self.test} - {""}
        return [e for e in self.entries if e.test in called and e.precision == precision]

    def updated(self, ran: Iterable[tuple[str, str]], found: Iterable[Entry]) -> Plan:
        """The plan with the entries of all that `ran` replaced by what was `found` for them.

        Args:
            ran: pairs of test and precision that were checked; the rest of the plan is kept.
            found: the entries they need now.
        """
        fresh = set(ran)
        kept = [e for e in self.entries if (e.test, e.precision) not in fresh]
        return replace(self, entries=(*kept, *(e for e in found if e not in kept)))


def write_plan(path: str | os.PathLike[str], entries: Iterable[Entry]) -> None:
    """Write a plan, sorted by test, in one piece.

    Raises:
        SettingError: the file cannot be written, or an entry could not be read back.
    """
    lines = [_HEADER]
    for entry in sorted(entries, key=lambda e: (e.test, list(PRECISIONS).index(e.precision))):
        if _parse(str(entry)) != replace(entry, reason=" ".join(entry.reason.split()), line=0):
            raise SettingError(f"the plan cannot hold the entry {str(entry)!r}")
        lines.append(str(entry))
    target = Path(path)
    try:
        from pytest_fp16.report.json import replace_text

        replace_text(target, "\n".join(dict.fromkeys(lines)) + "\n")
    except OSError as error:
        raise SettingError(f"cannot write the plan {path}: {error.strerror or error}") from None


def merge_plan(
    path: str | os.PathLike[str], ran: Iterable[tuple[str, str]], found: Iterable[Entry]
) -> None:
    """Replace the entries of all that `ran` by what was `found`, in the file as it is by now.

    Processes that do so at the same time wait for one another, so that none loses the other's.

    Raises:
        SettingError: the file cannot be read or written, or it stays locked.
    """
    with locked(Path(path)):
        plan = read_plan(path) if Path(path).exists() else Plan()
        write_plan(path, plan.updated(ran, found).entries)


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan.

    Raises:
        SettingError: no such file, or a line that is no entry, with its number.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SettingError(f"cannot read the plan {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SettingError(f"the plan {path} is not a text file in UTF-8") from None
    entries = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            entries.append(replace(_parse(line.strip()), line=number))
        except SettingError as error:
            raise SettingError(f"{path}:{number}: {error}") from None
    return Plan(tuple(entries), str(path))


def planned_modules(path: str | os.PathLike[str], test: str, precision: str) -> list[str]:
    """The modules a plan keeps in float32, for the model that is shipped.

    ``keep_in_float32(model, planned_modules("fp16-plan.txt", "test_digits", "16-true")).half()``

    Args:
        path: the plan file.
        test: the test the entries stand under: its id, or the end of it after ``::``.
        precision: the precision that is shipped, such as ``"16-true"``.

    Returns:
        Qualified names as in ``named_modules``, in the plan's order; ``""`` is the whole model.

    Raises:
        SettingError: the file cannot be read or is no plan, the precision is unknown, or no entry
            is of such a test: a name that is misspelt must not ship what the plan holds back.
    """
    plan, precision = read_plan(path), canonical_name(precision)
    called = [e for e in plan.entries if e.test == test or e.test.endswith(f"::{test}")]
    tests = dict.fromkeys(e.test for e in called)
    if len(tests) != 1:
        has = ", ".join(tests or dict.fromkeys(e.test for e in plan.entries)) or "no entries"
        raise SettingError(
            f"{path}: {'more than one' if tests else 'no'} test is called {test!r}; it has {has}"
        )
    return list(dict.fromkeys(e.module for e in called if e.precision == precision))


def require_plan(path: str) -> None:
    """Refuse, before any long work, a file that is there and is no plan.

    Raises:
        SettingError: see `read_plan`.
    """
    if Path(path).exists():
        read_plan(path)


def _parse(line: str) -> Entry:
    match = _ENTRY.fullmatch(line)
    if match is None:
        raise SettingError(
            f"{line!r} is no entry of a plan; write 'test[precision]: module  # reason'"
        )
    parameters, precision = _apart(match["precision"])
    if precision not in PRECISIONS:
        raise SettingError(f"unknown precision {precision!r}; known are {', '.join(PRECISIONS)}")
    module = "" if match["module"] == _WHOLE else match["module"]
    return Entry(match["test"] + parameters, precision, module, (match["reason"] or "").strip())


def _apart(brackets: str) -> tuple[str, str]:
    """Parameters of a test's own and the precision, which pytest's ids have in the same brackets.

    ``3.0-16-true`` of ``test[3.0-16-true]``, copied from pytest's output, is ``[3.0][16-true]``.
    """
    for name in PRECISIONS:
        if brackets.endswith(f"-{name}"):
            return f"[{brackets.removesuffix(f'-{name}')}]", name
        if brackets.startswith(f"{name}-"):
            return f"[{brackets.removeprefix(f'{name}-')}]", name
    return "", brackets


def stale(
    plan: Plan, test: str, precision: str, model: nn.Module, needed: Iterable[str] | None = None
) -> list[str]:
    """A warning for every entry of a test that no longer has a point.

    Args:
        plan: the plan as it was read.
        test: the test's name, without the precision.
        precision: the precision it was run in.
        model: the model it was run on.
        needed: the modules that had to be kept in float32 this time (empty where it passed
            without), or None where that was not found out.
    """
    names = {name for name, _ in model.named_modules(remove_duplicate=False)}
    wanted = None if needed is None else set(needed)
    said = []
    for entry in plan.of(test, precision):
        at = f"{plan.path}:{entry.line}: " if entry.line else ""
        shown = entry.module or _WHOLE
        if entry.module not in names:
            said.append(f"{at}stale entry: the model of {test} has no module {shown!r}; remove it")
        elif wanted is not None and entry.module not in wanted:
            said.append(
                f"{at}stale entry: {test} passes in {precision} without keeping {shown!r} in "
                "float32; remove it"
            )
    return said


def orphaned(plan: Plan, tests: Iterable[str], partly: Iterable[str] = ()) -> list[str]:
    """A warning for every entry of a test that its file no longer has.

    Args:
        plan: the plan as it was read.
        tests: ids of all tests that were found, without precisions.
        partly: files of which only some tests were looked for.
    """
    known = set(tests)
    files = {test.partition("::")[0] for test in known} - set(partly)
    said = []
    for entry in plan.entries:
        file, _, name = entry.test.partition("::")
        if not name or file not in files or entry.test in known:
            continue
        if not any(entry.test.startswith((f"{test}::", f"{test} #")) for test in known):
            said.append(
                f"{plan.path}:{entry.line}: stale entry: {file} has no test {name} any more; "
                "remove it"
            )
    return said
