import pytest

ASK = """
def test_ask(fp16):
    assert fp16.settings.seeds == {expected}
"""


@pytest.mark.parametrize(
    ("ini", "args", "expected"),
    [("", (), 8), ("fp16_seeds = 3", (), 3), ("fp16_seeds = 3", ("--fp16-seeds=5",), 5)],
)
def test_command_line_over_ini_over_default(example, ini, args, expected):
    example.ini(ini)
    example.write(ASK.format(expected=expected))

    example.check(*args).assert_outcomes(passed=1)


@pytest.mark.parametrize("given", ["0", "-1", "some", "2.5"])
def test_what_is_no_number_of_seeds_is_a_usage_error(example, given):
    result = example.run(f"--fp16-seeds={given}")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: fp16: seeds must be a whole number of at least 1 (got *)"])
