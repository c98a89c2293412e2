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
    assert budget(example, "--fp16-budget=0.99") == (0.99, "absolute", True)
    assert budget(example, "--fp16-budget=0.5pt") == (0.005, "absolute", False)

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


def test_a_budget_that_cannot_fail_is_refused_where_the_metric_is_known(example):
    result = example.check("-k", "broken", "--fp16-precisions=16-true", "--fp16-budget=100%")

    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines(["SettingError: budget 100% could not fail: *"])


@pytest.mark.parametrize(
    "code",
    [
        "@fp16_equivalent(budget='0.8 points', precisions=['bf16-true'])\n"
        "def test_it(model, data): return Evaluation(model=model, data=data)",
        "@pytest.mark.fp16_equivalent(budget='0.8pt', precisions=['bf16-true'])\n"
        "def test_it(model, data): return Evaluation(model=model, data=data)",
        "def test_it(model, data, fp16):\n"
        "    fp16.evaluate(model, data, budget='0.8pts', precision='bf16-true')",
    ],
)
def test_points_are_taken_wherever_a_budget_is(example, code):
    example.ini("fp16_budget = 0.4 points")
    example.write(code)

    example.check("--fp16-json=out.json").assert_outcomes(passed=1)

    assert [r["metric"]["budget"] for r in example.reports().values()] == [0.008]


def test_points_in_the_ini_file(example):
    example.ini("fp16_budget = 0.4 points")

    assert budget(example)[0] == 0.004


def test_a_budget_copied_from_the_table_is_told(example):
    result = example.check(*ONE, "--fp16-budget=0.8")

    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines(
        [
            "*warning: the budget is 80 points, * times the default one here (*); the table prints "
            "points, the option takes fractions: 0.008 is 0.8 points*"
        ]
    )
