def test_one_item_per_precision_with_a_verdict_each(example):
    result = example.check("-v")

    result.assert_outcomes(passed=6, failed=2)
    result.stdout.fnmatch_lines(
        [
            "fp16: 16-true, 16-mixed, bf16-true, bf16-mixed; device auto, emulate auto, *cuda",
            "test_it.py::test_sound[[]16-true[]] PASSED*",
            "test_it.py::test_sound[[]16-mixed[]] PASSED*",
            "test_it.py::test_sound[[]bf16-true[]] PASSED*",
            "test_it.py::test_sound[[]bf16-mixed[]] PASSED*",
            "test_it.py::test_broken[[]16-true[]] FAILED*",
            "test_it.py::test_broken[[]16-mixed[]] FAILED*",
            "test_it.py::test_broken[[]bf16-true[]] PASSED*",
        ]
    )


def test_the_section_at_the_end_has_a_row_per_item(example):
    result = example.check()

    result.stdout.fnmatch_lines(
        [
            "*= 16-bit conformance =*",
            "test * precision * verdict*",
            "test_sound * 16-true * equivalent *",
            "test_sound * bf16-mixed * equivalent *",
            "test_broken * 16-true * not equivalent *",
            "test_broken * bf16-mixed * equivalent *",
            "Speed and memory are left out: an emulated run says nothing about speed.",
        ]
    )


def test_without_the_flag_each_test_is_one_plain_test(example):
    result = example.run("-v")

    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["test_it.py::test_sound PASSED*", "test_it.py::test_broken PASSED*"]
    )
    result.stdout.no_fnmatch_line("*fp16: *")
    result.stdout.no_fnmatch_line("*16-bit conformance*")


def test_the_ini_key_switches_it_on_and_the_command_line_over_it(example):
    example.ini("fp16_conformance = true")

    example.run("-k", "sound").assert_outcomes(passed=4, deselected=4)
    example.run("-k", "sound", "-o", "fp16_conformance=false").assert_outcomes(
        passed=1, deselected=1
    )


def test_help_names_option_and_ini_key(example):
    result = example.run("--help")

    result.stdout.fnmatch_lines(
        [
            "16-bit conformance:",
            "*--fp16-conformance *Run tests marked fp16_equivalent in 16 bits*",
            "*fp16_conformance (bool):*",
        ]
    )


def test_a_section_is_missing_where_nothing_was_examined(example):
    example.write("def test_plain(): pass")

    result = example.check()

    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*16-bit conformance*")


def test_without_the_flag_an_error_shows_the_users_lines_and_none_of_ours(example):
    example.write(
        """
import torch

class Broken(torch.nn.Module):
    def forward(self, x):
        raise KeyError("no head")

@fp16_equivalent
def test_broken(data):
    return Evaluation(model=Broken(), data=data)
"""
    )
    result = example.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(['>*raise KeyError("no head")'])
    result.stdout.no_fnmatch_line("*pytest_fp16?*.py:*")
