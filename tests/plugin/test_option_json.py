import json

import pytest

ONE = ("-k", "sound", "--fp16-precisions=bf16-true")


def test_every_report_is_written_also_after_a_failure(example):
    result = example.check("--fp16-json=out.json", "--fp16-precisions=16-true,bf16-true")

    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["Reports written to out.json"])
    assert {k.partition("::")[2]: r["verdict"] for k, r in example.reports().items()} == {
        "test_sound[16-true]": "equivalent",
        "test_sound[bf16-true]": "equivalent",
        "test_broken[16-true]": "not equivalent",
        "test_broken[bf16-true]": "equivalent",
    }


def test_what_siblings_would_have_read_is_written_when_the_run_stops(example):
    result = example.check("-x", "--fp16-json=out.json", "-k", "broken")

    result.assert_outcomes(failed=1, deselected=4)
    assert [k.partition("::")[2] for k in example.reports()] == [
        "test_broken[16-true]",
        "test_broken[16-mixed]",
        "test_broken[bf16-true]",
        "test_broken[bf16-mixed]",
    ]


def test_nothing_is_lost_when_somebody_presses_ctrl_c(example):
    example.write(
        """
@fp16_equivalent(precisions=["bf16-true"])
def test_sound(model, data):
    return Evaluation(model=model, data=data)

def test_interrupted():
    raise KeyboardInterrupt

@fp16_equivalent(precisions=["bf16-true"])
def test_later(model, data):
    return Evaluation(model=model, data=data)
"""
    )

    result = example.check_apart("--fp16-json=out.json")

    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert [*example.reports()] == ["test_it.py::test_sound[bf16-true]"]
    written = document(example)
    assert (written["complete"], written["exit_status"]) == (False, 2)
    assert [(u["test"], u["outcome"]) for u in written["unreported"]] == [
        ("test_it.py::test_later[bf16-true]", "not run")
    ]


def test_a_killed_run_leaves_no_report_of_an_earlier_one(example, monkeypatch):
    example.write(
        """
import os

@fp16_equivalent(precisions=["bf16-true"])
def test_sound(model, data):
    if os.environ.get("KILLED"):
        os._exit(9)
    return Evaluation(model=model, data=data)
"""
    )
    example.check_apart("--fp16-json=out.json")
    assert document(example)["complete"]
    example.check_apart("--fp16-json=out.json", "--collect-only")
    assert document(example)["complete"]

    monkeypatch.setenv("KILLED", "1")
    example.check_apart("--fp16-json=out.json")
    written = document(example)
    assert (written["complete"], written["exit_status"], written["reports"]) == (False, None, [])


def test_the_ini_key_and_the_command_line_over_it(example):
    example.ini("fp16_json = ini.json")
    example.check(*ONE)
    assert example.reports("ini.json")

    example.check(*ONE, "--fp16-json=given.json")
    assert example.reports("given.json")


@pytest.mark.parametrize("path", [".", "test_it.py/out.json"])
def test_a_path_that_cannot_be_written_is_a_usage_error_before_the_run(example, path):
    result = example.check(f"--fp16-json={path}")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: fp16: cannot write {path}: *"])
    result.stdout.no_fnmatch_line("*collected*")


def test_without_the_flag_no_file_is_written(example):
    example.run("--fp16-json=out.json").assert_outcomes(passed=2)

    assert not (example.pytester.path / "out.json").exists()


def test_a_file_that_could_not_be_written_after_all_is_no_success(example):
    example.write(
        """
import os

def test_in_the_way(fp16, model, data):
    assert fp16.evaluate(model, data).equivalent
    os.remove("out.json")  # which says that nothing is judged yet
    os.mkdir("out.json")
"""
    )

    result = example.check("--fp16-json=out.json")

    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["test_in_the_way *", "ERROR: fp16: cannot write out.json: *"])
    result.stdout.no_fnmatch_line("*Reports written*")


MIXED = """
ONE = pytest.mark.fp16_equivalent(precisions=["bf16-true"])

@ONE
def test_sound(model, data):
    return Evaluation(model=model, data=data)

@ONE
def test_raises(model):
    raise RuntimeError("no such file")

@ONE
@pytest.mark.skip(reason="needs a GPU")
def test_skipped(model): pass

@pytest.fixture
def absent():
    raise OSError("gone")

def test_by_hand(fp16, absent): pass

def test_ordinary():
    assert False
"""


def document(example):
    return json.loads((example.pytester.path / "out.json").read_text())


@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_what_has_no_report_is_told(example, workers):
    example.write(MIXED)

    example.check_apart("--fp16-json=out.json", *workers)

    written = document(example)
    assert (written["complete"], written["exit_status"]) == (False, 1)
    assert [*example.reports()] == ["test_it.py::test_sound[bf16-true]"]
    assert written["unreported"] == [
        {
            "test": "test_it.py::test_raises[bf16-true]",
            "outcome": "failed",
            "message": "RuntimeError: no such file",
        },
        {
            "test": "test_it.py::test_skipped[bf16-true]",
            "outcome": "skipped",
            "message": "needs a GPU",
        },
        {"test": "test_it.py::test_by_hand", "outcome": "error", "message": "OSError: gone"},
    ]


def test_a_session_is_complete_whatever_its_verdicts_and_precisions_not_asked_for(example):
    example.check("--fp16-json=out.json", "--fp16-precisions=16-true")

    written = document(example)
    assert (written["complete"], written["exit_status"], written["unreported"]) == (True, 1, [])


def test_a_file_that_cannot_be_collected_leaves_a_session_incomplete(example):
    example.pytester.makepyfile(test_wrong="import nothing_of_that_name")

    example.check("--fp16-json=out.json", "--continue-on-collection-errors", *ONE)

    written = document(example)
    assert written["complete"] is False
    assert [(u["test"], u["outcome"]) for u in written["unreported"]] == [
        ("test_wrong.py", "error")
    ]
