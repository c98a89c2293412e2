"""Reports as one HTML page without scripts or outside resources."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pytest_fp16.report.message import message
from pytest_fp16.report.model import Report
from pytest_fp16.report.terminal import columns_of

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>16-bit conformance</title>
<style>
body {{ font-family: sans-serif; margin: 2em; color: #222; }}
table {{ border-collapse: collapse; }}
th, td {{ border: 1px solid #ccc; padding: 0.3em 0.7em; text-align: left; }}
pre {{ background: #f5f5f5; padding: 0.8em; white-space: pre-wrap; }}
.equivalent {{ background: #e6f4e6; }}
.not-equivalent {{ background: #fae3e3; }}
.inconclusive {{ background: #fdf3d8; }}
</style>
</head>
<body>
<h1>16-bit conformance</h1>
{body}
</body>
</html>
"""


def to_html(reports: Sequence[tuple[str, Report]]) -> str:
    """A page with the table, each row coloured by its verdict, and below it every message."""
    if not reports:
        return _PAGE.format(body="<p>No report.</p>")
    columns = columns_of(reports)
    lines = ["<table>", _row("th", [name.replace("\n", " ") for name in columns])]
    for (_, report), cells in zip(reports, zip(*columns.values(), strict=True), strict=True):
        lines.append(_row("td", cells, report.verdict.replace(" ", "-")))
    lines.append("</table>")
    for test, report in reports:
        lines.append(f"<h2>{escape(test)}, {escape(report.precision)}</h2>")
        lines.append(f"<pre>{escape(message(report))}</pre>")
    return _PAGE.format(body="\n".join(lines))


def _row(tag: str, cells: Sequence[str], style: str = "") -> str:
    start = f'<tr class="{style}">' if style else "<tr>"
    return start + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
