"""What a person reads, line by line."""


def test_a_failing_item_says_what_where_why_and_what_to_do(example):
    result = example.check("-k", "broken", "--fp16-precisions=16-true")

    result.stdout.fnmatch_lines(
        [
            "*_ test_broken[[]16-true[]] _*",
            "E   16-true is not equivalent to 32-true on test_broken: accuracy * %, reference * %"
            " (loss * points, budget *)",
            "E     finite: *",
            "E     where: *",
            "E     cure: *",
            "FAILED test_it.py::test_broken[[]16-true[]] - NotEquivalent: 16-true is not*",
        ]
    )


def test_nothing_of_the_machinery_shows_in_a_failure(example):
    result = example.check("-k", "broken", "--fp16-precisions=16-true", "--tb=long")

    for name in ("plugin.py", "session.py", "raise NotEquivalent", "Traceback"):
        result.stdout.no_fnmatch_line(f"*{name}*")


def test_inconclusive_fails_with_a_message_of_its_own(example):
    example.write(
        """
import torch

class Greedy(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        y = self.net(x)
        if y.dtype != torch.float32:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return y

@fp16_equivalent(precisions=["bf16-true"], emulate="never", device="cpu")
def test_greedy(model, data):
    return Evaluation(model=Greedy(model).eval(), data=data)
"""
    )

    result = example.check()

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E   * is inconclusive: no memory for a batch, nor for half of one that can be cut; *",
            "FAILED test_it.py::test_greedy* - Inconclusive: *",
        ]
    )


def test_a_warning_of_a_report_stands_in_the_section_once(example):
    example.write(
        """
@fp16_equivalent(precisions=["16-true", "bf16-true"])
def test_training_mode(model, data):
    import copy, torch
    model = torch.nn.Sequential(copy.deepcopy(model), torch.nn.Dropout(0.1)).train()
    return Evaluation(model=model, data=data)
"""
    )

    result = example.check()

    warnings = [line for line in result.outlines if line.startswith("warning: ")]
    assert warnings == [
        "warning: the model was in training mode; it was evaluated in eval mode "
        "(test_training_mode[16-true], test_training_mode[bf16-true])"
    ]


def test_tests_of_one_file_go_by_name_and_of_several_by_file(example):
    code = "@fp16_equivalent(precisions=['bf16-true'])\ndef test_sound(model, data):\n"
    code += "    return Evaluation(model=model, data=data)\n"
    example.write(code, "test_a")
    example.write(code, "test_b")

    one = example.check("test_a.py")
    both = example.check("test_a.py", "test_b.py")

    one.stdout.fnmatch_lines(["test_sound *bf16-true *equivalent *"])
    both.stdout.fnmatch_lines(["test_a.py::test_sound *", "test_b.py::test_sound *"])


def test_the_mark_explains_itself(example):
    example.run("--markers").stdout.fnmatch_lines(
        [
            "@pytest.mark.fp16_equivalent(*settings): Claim that the Evaluation or Training a test "
            "returns is equivalent in 16 bits."
        ]
    )


def test_the_fixture_explains_itself(example):
    example.run("--fixtures", "-q").stdout.fnmatch_lines(
        ["fp16 -- *", "*Check models by hand: *gives a report."]
    )


def test_no_section_in_a_quiet_summary(example):
    result = example.check("-k", "sound and bf16-true", "--no-summary")

    result.stdout.no_fnmatch_line("*16-bit conformance*")


def test_misuse_of_a_subject_is_shown_at_the_users_own_line(example):
    example.write(
        """
@fp16_equivalent(precisions=["16-true"])
def test_misspelt(model, data):
    return Evaluation(model=model, data=data, task="clasification")
"""
    )

    result = example.check("--tb=short")

    result.stdout.fnmatch_lines(["*data=data, task=*", "E *task must be one of*clasification*"])
    for name in ("subject.py", "<string>"):
        result.stdout.no_fnmatch_line(f"*{name}*")
