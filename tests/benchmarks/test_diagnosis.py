"""One run over the cases tells what was forecast and what was explained."""

import sys

from benchmarks import diagnosis


def test_one_run_gives_both_tables(monkeypatch, capsys):
    case = "counts_of_millions"
    monkeypatch.setattr(sys, "argv", ["diagnosis", "--held-out", "--only", case])
    monkeypatch.setattr(diagnosis, "real_models", lambda _: [("none", "1.0")])
    diagnosis.main()
    said = capsys.readouterr().out
    for title in ("# Forecast and verdict against labels", "# Diagnosis of 1 planted cases"):
        assert title in said
    row = next(line for line in said.splitlines() if line.startswith(f"| {case} "))
    assert "| NO " not in row
