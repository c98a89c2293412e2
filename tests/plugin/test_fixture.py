BY_HAND = """
def test_by_hand(fp16, model, data):
    report = fp16.evaluate(model, data, precision="bf16-true", budget=0.25)
    assert report.equivalent
    assert report.flips <= report.forecast.flips_allowed
    assert (report.precision, report.metric.budget) == ("bf16-true", 0.25)

def test_broken(fp16, broken, data):
    assert fp16.evaluate(broken, data).verdict == "not equivalent"
"""


def test_it_hands_back_reports_and_shows_them(example):
    example.write(BY_HAND)

    result = example.check("--fp16-json=out.json")

    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["test_by_hand * bf16-true * equivalent *"])
    result.stdout.fnmatch_lines(["test_broken * 16-true * not equivalent *"])
    assert [*example.reports()] == ["test_it.py::test_by_hand", "test_it.py::test_broken"]


def test_without_the_flag_it_skips_with_the_reason(example):
    example.write(BY_HAND)

    result = example.run("-rs")

    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED *the fixture fp16 needs --fp16-conformance"])


def test_it_goes_by_the_sessions_settings(example):
    example.ini("fp16_emulate = never")
    example.write(
        """
def test_it(fp16, model, data):
    assert fp16.evaluate(model, data).run.mode == "native"
    assert fp16.evaluate(model, data, emulate="always").run.mode == "emulated"
    assert fp16.evaluate(model, data).run.mode == "native"
"""
    )

    example.check().assert_outcomes(passed=1)


def test_fields_of_evaluation_and_settings_in_one_call(example):
    example.write(
        """
def test_it(fp16, model, data):
    inputs = [batch for batch, labels in data]
    report = fp16.evaluate(model, inputs, labelled=False, name="mine", precision="bf16-true")
    assert (report.name, report.metric.labelled) == ("mine", False)

def test_check(fp16, model, data):
    assert fp16.check(Evaluation(model, data), precision="bf16-mixed").equivalent
"""
    )

    example.check().assert_outcomes(passed=2)


def test_misuse_is_told_at_the_users_line_and_nowhere_else(example):
    example.write(
        """
def test_budget(fp16, model, data):
    fp16.evaluate(model, data, budget="5 pence")

def test_labels(fp16, model, data):
    fp16.evaluate(model, [(x, y[:4]) for x, y in data])

def test_unwrapped(fp16, model):
    fp16.check(model)

def test_error_of_the_models(fp16, data):
    def broken(model, x):
        raise KeyError("head")
    fp16.evaluate(lambda: __import__("torch").nn.Linear(1, 1), data, forward=broken)
"""
    )

    result = example.check("--tb=long")

    result.assert_outcomes(failed=4)
    errors = [line for line in result.outlines if line.startswith("E  ")]
    assert len(errors) == 4, errors
    for error, said in zip(
        errors,
        [
            "budget '5 pence' does not parse",
            "100 inputs and 4 labels",
            "got Sequential",
            "KeyError",
        ],
        strict=True,
    ):
        assert said in error
    for name in ("dataclasses.py", "settings.py", "fixture.py", "run.py", "module.py"):
        result.stdout.no_fnmatch_line(f"*{name}*")


def test_an_unknown_keyword_is_named(example):
    example.write(
        """
from pytest_fp16.errors import SettingError

def test_it(fp16, model, data):
    with pytest.raises(SettingError, match="unknown setting 'badget'; known are budget"):
        fp16.evaluate(model, data, badget=1)
"""
    )

    example.check().assert_outcomes(passed=1)


def test_an_assertion_that_fails_shows_the_reports_below(example):
    example.write(
        """
def test_by_hand(fp16, model, broken, data):
    sound = fp16.evaluate(model, data)
    report = fp16.evaluate(broken, data, name="the broken one")
    assert report.equivalent
"""
    )

    result = example.check()

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E * where False = <Report: 16-true is not equivalent to 32-true on the broken one: *",
            "*- 16-bit conformance -*",
            "16-true is not equivalent to 32-true on the broken one: *",
            "  where: *",
            "  cure: *",
        ]
    )
    result.stdout.no_fnmatch_line("16-true is equivalent*")
