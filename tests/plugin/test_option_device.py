import pytest
import torch


def test_the_device_is_in_header_and_report(example):
    result = example.check("-k", "sound and bf16-true", "--fp16-device=cpu", "--fp16-json=out.json")

    result.stdout.fnmatch_lines(["fp16: *; device cpu, *"])
    (report,) = example.reports().values()
    assert report["run"]["device"] == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("how", ["option", "ini"])
def test_a_device_that_is_not_there_is_a_usage_error_before_the_run(example, how):
    if how == "ini":
        example.ini("fp16_device = cuda:3")
    result = example.check(*(["--fp16-device=cuda:3"] if how == "option" else []))

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: fp16: device 'cuda:3' is not there: this machine has 0*"])


def test_an_unknown_device_is_a_usage_error(example):
    result = example.check("--fp16-device=gpu")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: fp16: unknown device 'gpu'; name one such as 'cpu', *"])


def test_without_the_flag_nobody_looks_for_the_device(example):
    example.run("-k", "sound", "--fp16-device=cuda:3").assert_outcomes(passed=1, deselected=1)


def test_a_test_that_names_an_absent_device_does_not_train_first(example):
    example.write(
        """
@pytest.fixture
def trained(model):
    raise AssertionError("the fixture ran")


@fp16_equivalent(device="cuda:9", precisions=["16-true"])
def test_far(trained, data):
    return Evaluation(model=trained, data=data)
"""
    )
    result = example.check()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["DeviceError: device 'cuda:9' is not there*"])
