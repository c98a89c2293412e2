import pytest


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_an_emulated_verdict_speaks_for_the_target(example, target):
    example.check(
        "-k",
        "sound and 16-mixed",
        "--fp16-precisions=16-mixed",
        "--fp16-device=cpu",
        f"--fp16-target={target}",
        "--fp16-json=out.json",
    )

    (report,) = example.reports().values()
    assert (report["run"]["target"], report["run"]["mode"]) == (target, "emulated")


def test_the_ini_key(example):
    example.ini("fp16_target = cpu")

    example.check("-k", "none").stdout.fnmatch_lines(["fp16: *, target cpu"])


def test_an_unknown_target_is_a_usage_error(example):
    result = example.run("--fp16-target=tpu")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: fp16: target must be one of cuda, cpu (got 'tpu')"])
