"""The Python blocks of README and docs run, file by file, each file in one namespace."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(?P<kind>\w*)(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")


def blocks(page: Path, kind: str) -> list[tuple[int, str, str]]:
    """(line of the first statement, words behind the kind, text) of each block of that kind."""
    text = page.read_text(encoding="utf-8")
    return [
        (text[: m.start("body")].count("\n"), m["info"].strip(), m["body"])
        for m in FENCE.finditer(text)
        if m["kind"] == kind
    ]


def with_blocks(kind: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, kind)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def execute(page: Path, folder: Path) -> None:
    """Run the plain blocks of a page in order; one with a file name is written to that file."""
    namespace: dict[str, object] = {"__name__": "docs"}
    for line, info, body in blocks(page, "python"):
        if info:
            (folder / info).write_text(body, encoding="utf-8")
        else:
            code = compile("\n" * line + body, str(page), "exec")
            exec(code, namespace)


@pytest.mark.parametrize("page", with_blocks("python"), ids=name_of)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    execute(page, tmp_path)


def shown_commands(page: Path) -> list[tuple[str, list[str]]]:
    """Each ``$ pytest …`` of a page that has lines below it, with those lines."""
    parts = [
        p for _, _, body in blocks(page, "console") for p in re.split(r"^\$ ", body, flags=re.M)
    ]
    pairs = [(lines[0], lines[1:]) for lines in map(str.splitlines, parts) if lines]
    return [(command, shown) for command, shown in pairs if shown and command.startswith("pytest ")]


@pytest.mark.parametrize("page", [p for p in PAGES if shown_commands(p)], ids=name_of)
def test_commands_print_what_the_page_shows(page, tmp_path):
    """Each line must appear; ``...`` stands for any text."""
    for _, info, body in blocks(page, "python"):
        if info:
            (tmp_path / info).write_text(body, encoding="utf-8")
    for command, shown in shown_commands(page):
        compare(run(shlex.split(command)[1:], tmp_path), shown)


def run(arguments: list[str], folder: Path) -> str:
    environment = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:randomly", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout + done.stderr


def compare(printed: str, expected: list[str]) -> None:
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    for wanted in expected:
        pattern = r".*".join(map(re.escape, " ".join(wanted.split()).split("...")))
        assert any(re.fullmatch(pattern, line) for line in lines), (
            f"the page shows {wanted!r}, but pytest printed:\n{printed}"
        )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for match in LINK.finditer(text):
        target = match["target"].split("#")[0]
        if target and "://" not in target:
            assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


def test_every_page_can_be_reached_from_readme():
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        targets = (m["target"].split("#")[0] for m in LINK.finditer(page.read_text("utf-8")))
        todo += [
            (page.parent / t).resolve()
            for t in targets
            if t and "://" not in t and (page.parent / t).is_file()
        ]
    assert not [name_of(p) for p in PAGES if p not in reached]


def test_a_broken_block_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError):
        execute(page, tmp_path)
    with pytest.raises(AssertionError, match="the page shows"):
        compare("1 passed", ["2 passed"])


def reference(page: str) -> str:
    return (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")


def test_every_option_and_its_ini_key_is_in_the_reference():
    from pytest_fp16.options import FLAGS, OPTIONS

    text = reference("options.md")
    for option in (*FLAGS, *OPTIONS):
        assert f"## --fp16-{option.name}\n" in text
        assert f"`{option.dest}`" in text


def test_the_defaults_in_the_reference_are_the_defaults():
    from pytest_fp16 import Settings

    rows = dict(
        re.findall(
            r"^\| `--fp16-(\w+)=\w+` \| `\w+` \| `?([^|`]+)`? \|", reference("options.md"), re.M
        )
    )
    settings = Settings()
    assert tuple(rows.pop("precisions").split(",")) == settings.precisions
    for name in ("device", "target", "emulate", "report"):
        assert rows[name] == getattr(settings, name)
    assert int(rows["seeds"]) == settings.seeds


def test_every_field_of_the_report_is_in_the_reference():
    from pytest_fp16.report.json import Document

    text = reference("json-schema.md")
    parts = {"Document": Document.model_json_schema(), **Document.model_json_schema()["$defs"]}
    for part, schema in parts.items():
        for name in schema.get("properties", {}):
            assert f"`{name}`" in text or f'"{name}"' in text, f"{part}.{name}"


def test_every_field_of_a_subject_is_in_the_reference():
    from dataclasses import fields

    from pytest_fp16 import Evaluation, Training

    text = reference("api.md")
    assert [
        f.name for kind in (Evaluation, Training) for f in fields(kind) if f"`{f.name}`" not in text
    ] == []


def test_messages_of_the_reference_are_messages_of_the_source():
    sources = "".join(p.read_text("utf-8") for p in (ROOT / "pytest_fp16").rglob("*.py"))
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # literals that continue on the next line
    sources = re.sub(r"\{[^{}]*\}", "…", sources)
    section = reference("messages.md").partition("## Errors of use")[2]
    quoted = [row.split("|")[1].strip() for row in section.splitlines() if row.startswith("| ")]
    quoted = [q for q in quoted if q not in ("the message begins", "the warning says")]
    missing = []
    for text in quoted:
        words = [part.strip() for part in text.split("…") if part.strip()]
        missing += [text for word in words if word not in sources]
    assert len(quoted) > 10
    assert missing == []


def test_every_mechanism_has_its_section():
    from typing import get_args

    from pytest_fp16.report.model import Mechanism

    text = (ROOT / "docs" / "how-to" / "my-model-failed.md").read_text(encoding="utf-8")
    assert [name for name in get_args(Mechanism) if f"## {name}\n" not in text] == []
