import pytest

from pytest_fp16 import fp16_equivalent
from pytest_fp16.errors import PrecisionError


def names(result):
    return [line.partition("::")[2].split()[0] for line in result.outlines if "::" in line]


def test_the_command_line_names_precisions_and_aliases(example):
    result = example.check("-v", "-k", "sound", "--fp16-precisions=bf16-true, fp16")

    result.assert_outcomes(passed=2, deselected=2)
    assert names(result) == ["test_sound[bf16-true]", "test_sound[16-mixed]"]


@pytest.mark.parametrize(
    "line", ["fp16_precisions = 16-mixed,bf16-mixed", "fp16_precisions = 16-mixed\n  bf16-mixed"]
)
def test_the_ini_key(example, line):
    example.ini(line)

    result = example.check("-v", "-k", "sound")

    assert names(result) == ["test_sound[16-mixed]", "test_sound[bf16-mixed]"]


def test_pyproject_lists(example):
    (example.pytester.path / "pytest.ini").unlink()
    example.pytester.makepyprojecttoml(
        """
        [tool.pytest.ini_options]
        addopts = "-p no:randomly -p no:asyncio"
        fp16_precisions = ["16-mixed", "bf16-mixed"]
        """
    )

    result = example.check("--collect-only", "-q", "-k", "sound")

    assert names(result) == ["test_sound[16-mixed]", "test_sound[bf16-mixed]"]


def test_the_command_line_wins_over_the_ini_key(example):
    example.ini("fp16_precisions = 16-true")

    result = example.check("-v", "-k", "sound", "--fp16-precisions=bf16-true")

    assert names(result) == ["test_sound[bf16-true]"]


def test_the_decorator_wins_over_the_ini_key(example):
    example.ini("fp16_precisions = 16-true")
    example.write("@fp16_equivalent(precisions=['bf16-true'])\ndef test_it(): pass")

    result = example.check("--collect-only", "-q")

    assert names(result) == ["test_it[bf16-true]"]


def test_the_command_line_selects_among_the_decorators_and_says_what_it_skips(example):
    example.write(
        """
        @fp16_equivalent(precisions=["16-true", "bf16-true"])
        def test_it(model, data):
            return Evaluation(model=model, data=data)
        """.replace("\n        ", "\n")
    )

    result = example.check("-rs", "--fp16-precisions=bf16-true,bf16-mixed")

    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED *not among --fp16-precisions=bf16-true,bf16-mixed"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("16", "ERROR: fp16: precision '16' is ambiguous; write '16-true' or '16-mixed'"),
        (
            "half",
            "ERROR: fp16: unknown precision 'half'; did you mean '16-true' or '16-mixed'? known *",
        ),
        ("", "ERROR: fp16: precisions is empty; name at least one of 16-true, *"),
    ],
)
def test_what_is_no_precision_is_a_usage_error(example, given, said):
    result = example.run(f"--fp16-precisions={given}")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([said])


def test_the_decorator_refuses_a_bare_16():
    with pytest.raises(PrecisionError, match="fp16_equivalent: precision '16' is ambiguous"):
        fp16_equivalent(precisions=["16"])


def test_the_reference_alone_guards_nothing(example):
    alone = example.check("-k", "sound", "--fp16-precisions=32-true")
    (warning,) = [line for line in alone.outlines if line.startswith("warning: ")]
    assert warning == (
        "warning: 32-true is the reference itself, so that nothing is guarded; name a 16-bit "
        "precision (test_sound)"
    )

    beside = example.check("-k", "sound", "--fp16-precisions=32-true,bf16-true")
    assert not [line for line in beside.outlines if line.startswith("warning: ")]
