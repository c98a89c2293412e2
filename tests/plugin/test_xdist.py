import pytest


def test_workers_send_reports_and_the_controller_shows_and_writes_them(example):
    example.pytester.makefile(
        ".ini", pytest="[pytest]\naddopts = -p no:randomly -p no:asyncio\nfilterwarnings = error\n"
    )

    result = example.check_apart(
        "-n2", "--fp16-precisions=16-true,bf16-true", "--fp16-json=out.json", "--junitxml=out.xml"
    )

    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        [
            "E   16-true is not equivalent to 32-true on test_broken: *",
            "*= 16-bit conformance =*",
            "Speed and memory are left out: tests run in parallel (xdist), which disturbs timing.",
        ]
    )
    assert {k.partition("::")[2]: r["verdict"] for k, r in example.reports().items()} == {
        "test_sound[16-true]": "equivalent",
        "test_sound[bf16-true]": "equivalent",
        "test_broken[16-true]": "not equivalent",
        "test_broken[bf16-true]": "equivalent",
    }
    assert "fp16.verdict" in (example.pytester.path / "out.xml").read_text()
    result.stderr.no_fnmatch_line("*INTERNALERROR*")


def test_a_usage_error_with_workers(example):
    result = example.check("-n2", "--fp16-budget=-1")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: fp16: budget '-1' is negative*"])
