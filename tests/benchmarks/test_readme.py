"""The list of benchmarks is whole, and what it links to is there."""

import re
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"
TEXT = (FOLDER / "README.md").read_text(encoding="utf-8")


def commands():
    for path in sorted(FOLDER.rglob("*.py")):
        if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8"):
            parts = path.relative_to(FOLDER.parent).with_suffix("").parts
            yield ".".join(p for p in parts if p != "__main__")


def test_every_command_is_listed():
    missing = [name for name in commands() if f"`{name}" not in TEXT and f"-m {name}" not in TEXT]
    assert missing == [], "add a line to benchmarks/README.md for each"


def test_every_command_listed_exists():
    listed = set(re.findall(r"`(?:python -m )?(benchmarks(?:\.\w+)+)", TEXT))
    assert len(listed) >= 15
    assert listed <= set(commands())


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (FOLDER / target).is_file(), target


def test_every_result_is_listed():
    results = {p.name for p in (FOLDER / "results").glob("*.md")}
    listed = set(re.findall(r"[\w-]+\.md", TEXT))
    parts = {f"power-{part}.md" for part in "bc"}  # "power-a.md to power-d.md"
    assert results - listed - parts == set()
