import pytest

ONE = ("-k", "broken", "--fp16-precisions=16-true", "--fp16-json=out.json")


def budget(example, *args):
    example.check(*ONE, *args)
    (report,) = example.reports().values()
    check = next(check for check in report["checks"] if check["name"] == "good enough")
    return report["metric"]["budget"], report["metric"]["budget_origin"], check["passed"]


def test_default_absolute_and_relative(example):
    default, origin, passed = budget(example)
    assert (0.001 <= default <= 0.01, origin, passed) == (True, "default", False)

    assert budget(example, "--fp16-budget=0.005") == (0.005, "absolute", False)
    assert budget(example, "--fp16-budget=1") == (1.0, "absolute", True)

    relative, origin, _ = budget(example, "--fp16-budget=50%")
    reference = next(iter(example.reports().values()))["metric"]["reference"]
    assert (relative, origin) == (pytest.approx(reference / 2), "relative")


def test_the_ini_key_and_the_command_line_over_it(example):
    example.ini("fp16_budget = 0.25")

    assert budget(example)[0] == 0.25
    assert budget(example, "--fp16-budget=0.125")[0] == 0.125


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("-0.1", "ERROR: fp16: budget '-0.1' is negative; it is what you are willing to lose*"),
        ("5 percent", "ERROR: fp16: budget '5 percent' does not parse; give a number*"),
    ],
)
def test_what_is_no_budget_is_a_usage_error(example, given, said):
    result = example.run(f"--fp16-budget={given}")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([said])
