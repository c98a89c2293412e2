"""Where the decorator may stand, through pytest itself."""

import pytest

ONE = ("--fp16-precisions=16-true,bf16-true",)


def test_methods_parametrize_and_composed_ids(example):
    example.write(
        """
class TestDigits:
    @pytest.mark.parametrize("n", [1, 2], ids=["one", "two"])
    @fp16_equivalent
    def test_above(self, model, data, n):
        return Evaluation(model=model, data=data[:n])

    @fp16_equivalent(budget=0.5)
    @pytest.mark.parametrize("n", [1, 2])
    def test_below(self, model, data, n):
        return Evaluation(model=model, data=data[:n])
"""
    )

    result = example.check("-v", "--fp16-json=out.json", *ONE)

    result.assert_outcomes(passed=8)
    reports = example.reports()
    assert [key.partition("::")[2] for key in reports] == [
        "TestDigits::test_above[one-16-true]",
        "TestDigits::test_above[one-bf16-true]",
        "TestDigits::test_above[two-16-true]",
        "TestDigits::test_above[two-bf16-true]",
        "TestDigits::test_below[1-16-true]",
        "TestDigits::test_below[1-bf16-true]",
        "TestDigits::test_below[2-16-true]",
        "TestDigits::test_below[2-bf16-true]",
    ]
    assert [r["inputs"] for r in reports.values()] == [100, 100, 200, 200] * 2
    result.stdout.fnmatch_lines(["TestDigits::test_above[[]one[]] * 16-true * equivalent*"])


def test_the_data_is_drawn_once_for_all_siblings_and_the_test_called_once(example):
    example.write(
        """
drawn, called = [], []

class Loader:
    def __iter__(self):
        drawn.append(1)
        return iter(self.data)

@fp16_equivalent
def test_digits(model, data):
    called.append(1)
    loader = Loader()
    loader.data = data
    return Evaluation(model=model, data=loader)

def test_counts():
    assert len(called) == 1
    # once to look at the first batch and once in full, whatever the number of precisions
    assert len(drawn) <= 3, drawn
"""
    )

    example.check().assert_outcomes(passed=5)


def test_k_chooses_precisions_and_only_those_are_examined(example):
    result = example.check("-k", "sound and 16-true and not bf16", "--fp16-json=out.json")

    result.assert_outcomes(passed=1, deselected=7)
    assert [*example.reports()] == ["test_it.py::test_sound[16-true]"]


def test_m_chooses_decorated_tests(example):
    example.write("\ndef test_plain(): pass\n@fp16_equivalent\ndef test_it(): pass\n")

    result = example.run("--collect-only", "-q", "-m", "fp16_equivalent", "--strict-markers")

    result.stdout.fnmatch_lines(["test_it.py::test_it", "*1/2 tests collected (1 deselected)*"])


def test_marks_xfail_and_skip(example):
    example.ini("xfail_strict = true")
    example.write(
        """
@pytest.mark.xfail(reason="leaves the range")
@fp16_equivalent(precisions=["16-true"])
def test_broken(broken, data):
    return Evaluation(model=broken, data=data)

@fp16_equivalent(precisions=["16-true"])
@pytest.mark.xfail(reason="does not fail")
def test_sound(model, data):
    return Evaluation(model=model, data=data)

@fp16_equivalent
@pytest.mark.skip(reason="not now")
def test_skipped():
    raise AssertionError

@fp16_equivalent(precisions=["16-true", "bf16-true"])
def test_skips_itself():
    pytest.skip("no data here")
"""
    )

    result = example.check("-rxXs")

    result.assert_outcomes(xfailed=1, failed=1, skipped=6)
    result.stdout.fnmatch_lines(["XFAIL test_it.py::test_broken[[]16-true[]] - leaves the range"])
    result.stdout.fnmatch_lines(["[[]XPASS(strict)[]] does not fail"])


def test_the_mark_does_what_the_decorator_does(example):
    example.write(
        """
pytestmark = pytest.mark.fp16_equivalent(precisions=["16-true"], budget=0.25)

def test_by_module(model, data):
    return Evaluation(model=model, data=data)

@pytest.mark.fp16_equivalent(budget=0.5)
def test_by_function(model, data):
    return Evaluation(model=model, data=data)

@fp16_equivalent(budget=0.75)
def test_by_decorator(model, data):
    return Evaluation(model=model, data=data)
"""
    )

    example.check("--strict-markers", "--fp16-json=out.json").assert_outcomes(passed=3)

    assert [r["metric"]["budget"] for r in example.reports().values()] == [0.25, 0.5, 0.75]
    example.run().assert_outcomes(passed=3)


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize(
    ("mark", "said"),
    [
        (
            "(precison='16-true')",
            "fp16_equivalent: unknown setting 'precison'; known are budget, *",
        ),
        ("('16-true')", "the mark fp16_equivalent takes keywords only (got '16-true')"),
    ],
)
def test_a_wrong_mark_is_an_error_at_collection(example, mark, said, flag):
    example.write(f"@pytest.mark.fp16_equivalent{mark}\ndef test_it(): pass")

    result = (example.check if flag else example.run)()

    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*ERROR collecting test_it.py*", f"test_it.py::test_it: {said}"])


def test_a_wrong_argument_is_an_error_at_collection(example):
    example.write("@fp16_equivalent(precison='16-true')\ndef test_it(): pass")

    result = example.run()

    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        ["E *SettingError: fp16_equivalent: unknown setting 'precison'; known are budget, *"]
    )
    result.stdout.no_fnmatch_line("*decorator.py*")


@pytest.mark.parametrize("flag", [True, False])
def test_a_test_that_returns_something_else(example, flag):
    example.write(
        "@fp16_equivalent(precisions=['16-true'])\ndef test_none(): pass\n"
        "@fp16_equivalent(precisions=['16-true'])\ndef test_list(): return [1]\n"
    )

    result = (example.check if flag else example.run)()

    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "SettingError: test_none must return an Evaluation or a Training (it returned None)",
            "SettingError: test_list must return an Evaluation or a Training (it returned list)",
        ]
    )
    result.stdout.no_fnmatch_line("*During handling*")


def test_a_test_that_raises_fails_as_any_other(example):
    example.write("@fp16_equivalent(precisions=['16-true'])\ndef test_it():\n    assert 1 == 2\n")

    result = example.check()

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([">       assert 1 == 2", "E       assert 1 == 2"])


def test_misuse_is_told_once_per_item_but_found_once(example):
    example.write(
        """
drawn = []

class Empty:
    def __iter__(self):
        drawn.append(1)
        return iter(())

@fp16_equivalent
def test_empty(model):
    return Evaluation(model=model, data=Empty())

def test_counts():
    assert len(drawn) <= 2
"""
    )

    result = example.check()

    result.assert_outcomes(failed=4, passed=1)
    result.stdout.fnmatch_lines(["DataError: *"] * 4)
    result.stdout.no_fnmatch_line("*pytest_fp16?evaluation*")


def test_methods_of_testcase_are_refused_rather_than_silently_passed(example):
    example.write(
        """
import unittest

class TestOld(unittest.TestCase):
    @fp16_equivalent
    def test_it(self):
        raise AssertionError("not reached")
"""
    )

    result = example.check()

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["fp16_equivalent needs a function, or a method of a plain class*"])


def test_a_training_makes_one_step_without_the_flag(example):
    example.write(
        """
import torch
steps = []

class Spy(torch.optim.SGD):
    def step(self, closure=None):
        steps.append(1)
        return super().step(closure)

@fp16_equivalent
def test_training(model, data):
    return Training(
        model=model, optimizer=lambda p: Spy(p, lr=0.1), loss=torch.nn.functional.cross_entropy,
        train_data=data, eval_data=data,
    )

def test_one_step():
    assert len(steps) == 1
"""
    )

    example.run().assert_outcomes(passed=2)


def test_the_name_in_a_report_is_the_tests_or_the_users(example):
    example.write(
        """
@fp16_equivalent(precisions=["bf16-true"])
def test_plain(model, data):
    return Evaluation(model=model, data=data)

@fp16_equivalent(precisions=["bf16-true"])
def test_named(model, data):
    return Evaluation(model=model, data=data, name="digits")
"""
    )

    example.check("--fp16-json=out.json")

    assert [r["name"] for r in example.reports().values()] == ["test_plain", "digits"]


FORGOTTEN = """
def test_forgot(model, data):
    return Evaluation(model=model, data=data)

class TestIt:
    def test_method(self, model, data):
        return Evaluation(model=model, data=data)

@fp16_equivalent(precisions=["bf16-true"])
def test_claimed(model, data):
    return Evaluation(model=model, data=data)

def test_calls_another(model, data):
    test_claimed(model, data)
"""


def test_a_subject_that_nothing_claims_fails_under_the_flag(example):
    example.write(FORGOTTEN)

    result = example.check()

    result.assert_outcomes(failed=2, passed=2)
    result.stdout.fnmatch_lines(
        [
            "test_forgot returned an Evaluation, which nothing has checked: decorate test_forgot "
            "with @fp16_equivalent",
            "test_method returned an Evaluation, *",
        ]
    )


def test_a_subject_that_nothing_claims_is_pytests_affair_without_the_flag(example):
    example.write(FORGOTTEN)

    result = example.run("-W", "ignore::pytest.PytestReturnNotNoneWarning")

    result.assert_outcomes(passed=4)


def test_other_values_still_get_pytests_own_warning_under_the_flag(example):
    example.write("def test_it():\n    return 1")

    result = example.check()

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*PytestReturnNotNoneWarning*"])
