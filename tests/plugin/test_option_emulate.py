import pytest

ONE = ("-k", "sound", "--fp16-precisions=bf16-true", "--fp16-device=cpu", "--fp16-json=out.json")


@pytest.mark.parametrize(
    ("when", "mode"), [("auto", "emulated"), ("always", "emulated"), ("never", "native")]
)
def test_how_a_check_on_a_cpu_runs(example, when, mode):
    example.check(*ONE, f"--fp16-emulate={when}").assert_outcomes(passed=1, deselected=1)

    (report,) = example.reports().values()
    assert report["run"]["mode"] == mode


def test_the_ini_key_and_the_decorator_over_it(example):
    example.ini("fp16_emulate = never")
    example.write(
        """
@fp16_equivalent
def test_sound_by_ini(model, data):
    return Evaluation(model=model, data=data)

@fp16_equivalent(emulate="always")
def test_sound_by_decorator(model, data):
    return Evaluation(model=model, data=data)
"""
    )

    example.check(*ONE)

    assert {k.partition("::")[2]: r["run"]["mode"] for k, r in example.reports().items()} == {
        "test_sound_by_ini[bf16-true]": "native",
        "test_sound_by_decorator[bf16-true]": "emulated",
    }


def test_another_word_is_a_usage_error(example):
    result = example.run("--fp16-emulate=sometimes")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: fp16: emulate must be one of auto, always, never (got 'sometimes')"]
    )
