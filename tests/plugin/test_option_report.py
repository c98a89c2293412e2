import pytest

ONE = ("-k", "sound", "--fp16-precisions=bf16-true")


def test_full_adds_ranges_and_shares(example):
    result = example.check(*ONE, "--fp16-report=full")

    result.stdout.fnmatch_lines(["test_sound, bf16-true: equivalent", "*closest to overflow: *"])


def test_short_is_the_default_and_the_command_line_wins(example):
    example.check(*ONE).stdout.no_fnmatch_line("*closest to overflow*")

    example.ini("fp16_report = full")
    example.check(*ONE).stdout.fnmatch_lines(["*closest to overflow: *"])
    example.check(*ONE, "--fp16-report=short").stdout.no_fnmatch_line("*closest to overflow*")


def test_another_length_is_a_usage_error(example):
    result = example.run("--fp16-report=long")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: fp16: report must be one of short, full (got 'long')"])
