"""The one command for a GPU machine, its steps replaced by small ones."""

import json
import os
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu
from benchmarks.paper import table


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine that claims a GPU, a folder of results, and steps that write what they did."""
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    diary = tmp_path / "diary"

    def step(name, code="", **more):
        wrote = f"open({str(diary)!r}, 'a').write({name!r} + ' ')"
        command = ("-c", f"import sys, time; {wrote}; print('said'); {code}")
        return gpu.Step(name, command, **{"minutes": 1, "needs": (), "timed": True, **more})

    def install(*made):
        monkeypatch.setattr(gpu, "steps", lambda *_: list(made))

    def noted():
        return json.loads((gpu.RESULTS / "steps.json").read_text())

    def done():
        return diary.read_text().split() if diary.exists() else []

    return SimpleNamespace(step=step, install=install, noted=noted, diary=done)


def gone(process):
    """Whether a process is no more, or only waits to be reaped."""
    for _ in range(100):
        try:
            os.kill(process, 0)
            with open(f"/proc/{process}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_dry_run_lists_every_step_and_starts_none(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(gpu.subprocess, "Popen", None)
    assert gpu.main(["--dry-run", "--fashion", str(tmp_path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == [s.name for s in gpu.steps(10, 3, 25, None)]
    assert "needs Fashion-MNIST" in next(line for line in shown if line.startswith("paper"))
    assert not (tmp_path / "results").exists()


def test_modules_of_the_steps_exist():
    for step in gpu.steps(10, 3, 25, None):
        assert step.command[0] == "-m"
        assert gpu.importlib.util.find_spec(step.command[1]) is not None


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu.main([])


def test_unknown_steps_are_named():
    with pytest.raises(SystemExit, match="unknown steps nonsense; known are tests"):
        gpu.main(["--only", "nonsense,paper"])


def test_failed_steps_do_not_stop_the_others_and_alone_are_run_again(machine):
    machine.install(machine.step("a"), machine.step("b", "sys.exit(2)"), machine.step("c"))
    assert gpu.main([]) == 1
    assert {n: f["ended"] for n, f in machine.noted().items()} == {
        "a": "finished", "b": "exit code 2", "c": "finished",
    }  # fmt: skip
    assert machine.noted()["a"]["device"].startswith("a card")
    assert "said" in (gpu.RESULTS / "a.log").read_text()
    assert gpu.main([]) == 1
    assert machine.diary() == ["a", "b", "c", "b"]
    assert gpu.main(["--again", "--only", "c"]) == 0
    assert machine.diary()[-1] == "c"


def test_a_step_out_of_time_is_stopped_with_its_children(machine, tmp_path):
    child = tmp_path / "child"
    code = (
        f"import subprocess; p = subprocess.Popen([sys.executable, '-c', 'import time;"
        f" time.sleep(60)']); open({str(child)!r}, 'w').write(str(p.pid)); time.sleep(60)"
    )
    machine.install(machine.step("slow", code, minutes=3 / 60), machine.step("next"))
    start = time.monotonic()
    assert gpu.main([]) == 1
    assert time.monotonic() - start < 30
    assert machine.noted()["slow"]["ended"] == "out of time"
    assert machine.noted()["next"]["ended"] == "finished"
    assert gone(int(child.read_text()))


def test_what_measures_no_time_runs_side_by_side_and_first(machine, tmp_path):
    met = [tmp_path / name for name in "ab"]

    def meets(mine, other):
        wait = f"import os\nwhile not os.path.exists({str(other)!r}): time.sleep(0.05)"
        return f"open({str(mine)!r}, 'w').close(); exec({wait!r})"

    machine.install(
        machine.step("alone"),
        machine.step("a", meets(*met), timed=False),
        machine.step("b", meets(*reversed(met)), timed=False),
        machine.step("slow", "time.sleep(60)", timed=False, minutes=2 / 60),
    )
    start = time.monotonic()
    assert gpu.main([]) == 1
    assert time.monotonic() - start < 30
    ended = {name: facts["ended"] for name, facts in machine.noted().items()}
    assert ended == {
        "a": "finished", "b": "finished", "slow": "out of time", "alone": "finished",
    }  # fmt: skip
    assert machine.diary()[-1] == "alone"


def test_what_spreads_learns_its_processes_and_its_time(machine, monkeypatch):
    monkeypatch.setattr(gpu.os, "cpu_count", lambda: 8)
    machine.install(
        *(machine.step(n, "print(sys.argv[1:])", timed=False, spreads=True) for n in "ab")
    )
    assert gpu.main([]) == 0
    assert "['--workers', '6', '--minutes', '0.7']" in (gpu.RESULTS / "a.log").read_text()


def test_what_cannot_be_run_is_left_out_and_says_why(machine, tmp_path):
    machine.install(machine.step("a", needs=("no_such_package",)), machine.step("b", fashion=True))
    assert gpu.main(["--fashion", str(tmp_path)]) == 1
    assert machine.noted()["a"]["why"] == "needs no_such_package"
    assert "--fashion" in machine.noted()["b"]["why"]
    assert machine.diary() == []


def test_no_step_is_begun_when_time_is_up(machine):
    machine.install(machine.step("a"))
    assert gpu.main(["--minutes", "0.1"]) == 1
    assert machine.noted()["a"]["why"] == "no time left"


def test_the_table_learns_its_time_and_goes_on_where_it_was_unfinished(machine):
    assert gpu.UNFINISHED == table.UNFINISHED
    machine.install(machine.step("paper", f"print(sys.argv[1:]); sys.exit({gpu.UNFINISHED})"))
    gpu.main(["--minutes", "10"])
    assert "['--minutes', '0.5']" in (gpu.RESULTS / "paper.log").read_text()  # a step of a minute
    assert machine.noted()["paper"]["ended"] == "unfinished"
    gpu.main([])
    assert machine.diary() == ["paper", "paper"]


def test_damaged_notes_are_noticed(machine, capsys):
    machine.install(machine.step("a"))
    gpu.RESULTS.mkdir()
    (gpu.RESULTS / "steps.json").write_text('{"a": {"ended": "fin')
    assert gpu.main([]) == 0
    assert "damaged" in capsys.readouterr().out
    assert machine.diary() == ["a"]
