"""Reports as a Markdown page: for a pull request's comment or a CI job's summary."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pytest_fp16.report.message import message
from pytest_fp16.report.model import Report
from pytest_fp16.report.terminal import columns_of


def to_markdown(reports: Sequence[tuple[str, Report]]) -> str:
    """The table, then the message of each report that is not equivalent, in a block of code."""
    from tabulate import tabulate

    if not reports:
        return "No report.\n"
    columns = columns_of(reports)
    rows = [[_cell(text) for text in row] for row in zip(*columns.values(), strict=True)]
    headers = [name.replace("\n", " ") for name in columns]
    parts = [tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)]
    for test, report in reports:
        if not report.equivalent:
            text = message(report)
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            parts.append(f"**{_cell(test)}**, {report.precision}\n\n{fence}text\n{text}\n{fence}")
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    """Text whose characters mean themselves in a table of Markdown."""
    return re.sub(r"([\\|*_`<\[\]])", r"\\\1", text)
