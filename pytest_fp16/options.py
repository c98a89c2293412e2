"""The command-line options and ini keys: one table, read into Settings. Imports no pytest.

Command line over ini over default, which is why no option has a default of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_fp16.settings import CANDIDATES, Settings

if TYPE_CHECKING:
    import pytest


@dataclass(frozen=True)
class Option:
    """One setting as a user types it: ``--fp16-<name>``, or the ini key ``fp16_<name>``."""

    name: str
    metavar: str
    help: str

    @property
    def dest(self) -> str:
        """The ini key, and the option's place in the namespace."""
        return "fp16_" + self.name.replace("-", "_")


OPTIONS = (
    Option(
        "precisions",
        "NAMES",
        "Precisions to check, separated by commas (default: " + ",".join(CANDIDATES) + ").",
    ),
    Option("device", "DEVICE", "Where models run: auto, cpu, cuda, cuda:1, mps (default: auto)."),
    Option(
        "target", "TARGET", "Device an emulated verdict speaks for: cuda or cpu (default: cuda)."
    ),
    Option(
        "emulate",
        "WHEN",
        "Emulate 16-bit arithmetic: auto (on a CPU), always or never (default: auto).",
    ),
    Option(
        "budget",
        "LOSS",
        "Metric you are willing to lose: 0.005 in its own units, 0.5pt, or 0.5%% of the reference "
        "(default: the metric's standard error on the data, 0.1 to 1 point; of a training at least "
        "twice the spread of the 32-bit runs over seeds).",
    ),
    Option("seeds", "N", "Largest number of pairs of training runs (default: 8)."),
    Option("json", "PATH", "Write all reports to this JSON file."),
    Option("report", "LENGTH", "Terminal report: short or full (default: short)."),
    Option(
        "plan",
        "PATH",
        "File of modules to keep in float32: written where a cure was tried, then checked against.",
    ),
)
FLAGS = (
    Option("conformance", "", "Run tests marked fp16_equivalent in 16 bits, against 32 bits."),
    Option("resume", "", "Go on with training runs that an earlier session finished or began."),
)


def add_options(parser: pytest.Parser) -> None:
    """Declare every option, and its ini key, in the group fp16."""
    group = parser.getgroup("fp16", "16-bit conformance")
    for flag in FLAGS:
        group.addoption(
            f"--fp16-{flag.name}", dest=flag.dest, action="store_true", default=None, help=flag.help
        )
        parser.addini(flag.dest, flag.help, type="bool", default=None)
    for option in OPTIONS:
        group.addoption(
            f"--fp16-{option.name}",
            dest=option.dest,
            metavar=option.metavar,
            default=None,
            help=option.help,
        )
        kind: Any = "linelist" if option.name == "precisions" else "string"
        parser.addini(option.dest, option.help.replace("%%", "%"), type=kind, default=None)


def value_of(config: pytest.Config, option: str) -> Any:
    """The value from the command line, else from the ini file, else None."""
    given = config.getoption(f"fp16_{option}", None)
    return config.getini(f"fp16_{option}") if given is None else given


def is_active(config: pytest.Config) -> bool:
    """Whether the user asked for conformance checks."""
    return bool(value_of(config, "conformance"))


def read_settings(config: pytest.Config) -> Settings:
    """Every option and ini key as one frozen object.

    Raises:
        SettingError: a value that cannot be used; the message names the setting.
    """
    values: dict[str, Any] = {}
    for option in OPTIONS:
        value = value_of(config, option.name)
        if value is not None:
            values[option.name] = _convert(option.name, value)
    if value_of(config, "resume"):
        values["resume"] = True
    return Settings().with_(**values)


def chosen_precisions(config: pytest.Config, settings: Settings) -> tuple[str, ...] | None:
    """The precisions named on the command line, which select among a test's own; or None."""
    return None if config.getoption("fp16_precisions", None) is None else settings.precisions


def _convert(name: str, value: Any) -> Any:
    if name == "precisions":
        lines = value if isinstance(value, list) else [value]
        return tuple(part.strip() for line in lines for part in line.split(",") if part.strip())
    if name == "seeds" and value.strip().isdecimal():
        return int(value)
    return value


def check_environment(settings: Settings, *, writes: bool) -> None:
    """Refuse, before anything runs, a device that is not there and a path that cannot be written.

    Args:
        settings: the session's.
        writes: whether this process writes the JSON report (any process writes the plan).

    Raises:
        SettingError: names the setting.
    """
    if settings.device not in ("auto", "cpu"):
        from pytest_fp16.engine.device import resolve_device

        resolve_device(settings.device)
    if settings.json is not None and writes:
        from pytest_fp16.report.json import require_writable

        require_writable(settings.json)
    if settings.plan is not None:
        from pytest_fp16.plan import require_plan
        from pytest_fp16.report.json import require_writable

        require_plan(settings.plan)
        if not Path(settings.plan).exists():  # one that is there may be meant to be read only
            require_writable(settings.plan)


def with_store(settings: Settings, cache: Any) -> Settings:
    """The settings with a folder of pytest's cache to keep training runs in, if there can be one.

    Args:
        settings: the session's.
        cache: pytest's; None where it is switched off.
    """
    if settings.store is not None or cache is None:
        return settings
    try:
        return settings.with_(store=str(cache.mkdir("fp16-training")))
    except OSError:  # a folder that may only be read: pytest warns of its own cache
        return settings
