"""Numbers as a person reads them, the same in every way a report is shown."""

from __future__ import annotations

import math
import re

from pytest_fp16.report.model import Certified, Metric, Price, Report, Run

#: Methods of a forecast that count flips.
_COUNTING = ("adjoint", "random rounding")
#: What is written in a program for operations that torch calls otherwise within.
_WRITTEN = {
    "addmm": "linear",
    "mm": "matmul",
    "bmm": "matmul",
    "mv": "matmul",
    "baddbmm": "matmul",
    "rsub": "sub",
    "convolution": "conv",
    "_to_copy": "cast",
    "grid_sampler_2d": "grid_sample",
    "scalar_tensor": "where",
    "grid_sampler_3d": "grid_sample",
}
#: What torch puts around the name of a function, where a part of it runs.
_AROUND = re.compile(r"^(?:_|native_)|(?:_forward|_forward_only|_ex|_impl|_unsafe)$")
_SHARES = ("accuracy", "agreement", "share", "precision", "recall")


def is_share(metric: Metric) -> bool:
    """Whether the metric is a fraction of 1, shown in percent, its loss in points."""
    return _names_a_share(metric.name)


def _names_a_share(name: str) -> bool:
    return any(word in name.lower() for word in _SHARES)


def loss_of(name: str, loss: float) -> str:
    """A loss of a metric of that name: ``"10.7 points"`` of a share, ``"0.107"`` of any other."""
    return f"{100 * loss:.3g} points" if _names_a_share(name) else f"{loss:.3g}"


def value_of(name: str, value: float) -> str:
    """A value of a metric of that name: ``"97.1 %"`` of a share, ``"0.9713"`` of any other."""
    return f"{100 * value:.3g} %" if _names_a_share(name) else f"{value:.4g}"


def decimal(value: float, digits: int = 1) -> str:
    """A number with that many decimals; ``"NaN"`` and ``"infinite"`` are said in words."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("-") and not float(text) else text


def apart(a: float, b: float, digits: int = 1, most: int = 6) -> int:
    """The fewest decimals (`digits` to `most`) at which a and b look different, else `digits`."""
    if a == b or not (math.isfinite(a) and math.isfinite(b)):
        return digits
    return next((d for d in range(digits, most + 1) if decimal(a, d) != decimal(b, d)), digits)


def significant(value: float) -> str:
    """Three significant digits, for magnitudes: ``9.02e+04``, ``0.00123``, ``65504``."""
    if not math.isfinite(value):
        return decimal(value)
    return f"{value:.0f}" if 1000 <= abs(value) < 65536 else f"{value:.3g}"


def percent(share: float | None, digits: int = 1) -> str:
    """A fraction of 1 in percent; empty for None."""
    return "" if share is None else f"{decimal(100 * share, digits)} %"


def floored(share: float) -> str:
    """A fraction of 1 in whole percent, rounded down, so that 100 means all."""
    return str(math.floor(100 * share + 1e-9)) if math.isfinite(share) else "NaN"


def plural(count: int, noun: str) -> str:
    """``"1 flip"``, ``"2 flips"``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def metric_pair(metric: Metric) -> tuple[str, str]:
    """(reference, candidate) without a unit, with one decimal more where that tells them apart."""
    return metric_value(metric, metric.reference), metric_value(metric, metric.candidate)


def metric_value(metric: Metric, value: float) -> str:
    """A value of the metric without a unit, to as many decimals as `metric_pair`."""
    scale, digits = (100.0, 1) if is_share(metric) else (1.0, 3)
    digits = apart(scale * metric.reference, scale * metric.candidate, digits, digits + 1)
    return decimal(scale * value, digits)


def loss_pair(metric: Metric) -> tuple[str, str]:
    """(loss, budget) with enough decimals to tell them apart: points for a share."""
    scale, digits = (100.0, 1) if is_share(metric) else (1.0, 3)
    a, b = scale * metric.loss, scale * metric.budget
    if 0 < b < 10**-digits:
        digits = min(6, -math.floor(math.log10(b)))
    if metric.budget_origin == "absolute":  # as the user wrote it
        digits = next((d for d in range(digits, 5) if abs(round(b, d) - b) < 1e-9), digits)
    digits = apart(a, b, digits)
    said = decimal(a, digits), decimal(b, digits)
    return said if a == b or said[0] != said[1] else (significant(a), significant(b))


def unit(metric: Metric) -> str:
    """What follows a value of the metric: a percent sign, or nothing."""
    return " %" if is_share(metric) else ""


def certified(shares: Certified) -> str:
    """The three shares, each under its own name; empty where none could be computed."""
    named = (
        ("measured", shares.measured),
        ("bounded", shares.bounded),
        ("probable", shares.probable),
    )
    return ", ".join(f"{name} {floored(v)} %" for name, v in named if v is not None)


def mode(run: Run) -> str:
    """How the candidate ran: ``"emulated for cuda on cpu"`` or ``"native on cuda:0"``."""
    if run.mode == "emulated":
        return f"emulated for {run.target} on {run.device}"
    return f"native on {run.device}"


def dtype_name(precision: str) -> str:
    """The format of a precision."""
    return "bfloat16" if precision.startswith("bf16") else "float16"


def flips_allowed(report: Report) -> int | None:
    """How many theory allows; None where it has not counted them."""
    said = report.forecast
    return said.flips_allowed if said is not None and said.method in _COUNTING else None


def flips(report: Report) -> str:
    """``"3 flips of 360 (2 allowed), 1 tie"``; empty for tasks without decisions."""
    if report.flips is None:
        return ""
    text = f"{plural(report.flips, 'flip')} of {report.decisions}"
    if (allowed := flips_allowed(report)) is not None:
        text += f" ({allowed} allowed)"
    return text + (f", {plural(report.ties, 'tie')}" if report.ties else "")


def price(cost: Price) -> str:
    """``"1.2 % of the arithmetic in float32 (0 % without), 1.04 times the time without"``."""
    text = f"{_part(cost.float32_share)} of the arithmetic in float32"
    if cost.float32_share_before is not None:
        text += f" ({_part(cost.float32_share_before)} without)"
    if cost.slowdown is not None:
        text += f", {decimal(cost.slowdown, 2)} times the time without"
    if cost.speedup is not None:
        text += f", {decimal(cost.speedup, 2)} times as fast as 32-true"
    return text


def _part(share: float) -> str:
    """A share that is not quite nothing is not called nothing."""
    return "less than 0.1 %" if 0 < share < 0.0005 else percent(share, 0 if share in (0, 1) else 1)


def written(operation: str) -> str:
    """What a program most likely has where torch runs an operation: ``linear`` for ``addmm``."""
    return _WRITTEN.get(operation) or _AROUND.sub("", operation)


def operation(name: str) -> str:
    """An operation as a program has it, and as torch runs it, where these differ: ``sub/rsub``."""
    said = written(name)
    if name.endswith(("Error", "Exception")):  # which a statement of the program's own raised
        return f"raise {name}"
    return name if said == name else f"{said}/{name}"
