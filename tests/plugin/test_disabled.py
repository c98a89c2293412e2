"""With -p no:fp16 a decorated test is a plain test."""


def test_no_return_warning_and_no_unknown_mark(example):
    example.write(
        """
@fp16_equivalent(budget=0.01)
def test_sound(model, data):
    return Evaluation(model=model, data=data)

class TestMore:
    @fp16_equivalent
    @pytest.mark.parametrize("n", [1, 2])
    def test_method(self, model, data, n):
        return Evaluation(model=model, data=data[:n])
"""
    )

    result = example.run("-p", "no:fp16", "--strict-markers", "-v")

    result.assert_outcomes(passed=3)
    assert "warnings" not in result.parseoutcomes()


def test_what_a_test_asserts_still_counts(example):
    example.write("@fp16_equivalent\ndef test_it():\n    assert 1 == 2\n")

    example.run("-p", "no:fp16").assert_outcomes(failed=1)


def test_the_options_are_gone(example):
    result = example.run("-p", "no:fp16", "--fp16-conformance")

    result.stderr.fnmatch_lines(["*unrecognized arguments: --fp16-conformance*"])


def test_neighbours_can_be_blocked(example):
    result = example.check(
        "-p", "no:terminal", "-k", "sound", "--fp16-precisions=bf16-true", "--fp16-json=out.json"
    )

    assert result.ret == 0
    assert [*example.reports()] == ["test_it.py::test_sound[bf16-true]"]
