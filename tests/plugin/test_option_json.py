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
"""
    )

    result = example.check_apart("--fp16-json=out.json")

    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert [*example.reports()] == ["test_it.py::test_sound[bf16-true]"]


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
    os.mkdir("out.json")
"""
    )

    result = example.check("--fp16-json=out.json")

    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["test_in_the_way *", "ERROR: fp16: cannot write out.json: *"])
    result.stdout.no_fnmatch_line("*Reports written*")
