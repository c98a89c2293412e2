import pytest


def test_0_when_all_claims_hold(example):
    assert example.check("-k", "sound", "--fp16-precisions=bf16-true").ret == 0


def test_1_when_one_does_not(example):
    assert example.check("--fp16-precisions=16-true").ret == 1


def test_4_for_a_setting_that_cannot_be_used(example):
    assert example.check("--fp16-budget=-1").ret == pytest.ExitCode.USAGE_ERROR == 4
