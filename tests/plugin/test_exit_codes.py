import pytest


def test_0_when_all_claims_hold(example):
    assert example.check("-k", "sound", "--fp16-precisions=bf16-true").ret == 0


def test_1_when_one_does_not(example):
    assert example.check("--fp16-precisions=16-true").ret == 1


def test_4_for_a_setting_that_cannot_be_used(example):
    assert example.check("--fp16-budget=-1").ret == pytest.ExitCode.USAGE_ERROR == 4


OF_ANOTHER_PRECISION = """
@fp16_equivalent(precisions=["16-true"])
def test_sound(model, data):
    return Evaluation(model=model, data=data)

def test_ordinary():
    pass
"""
ASKED = "--fp16-precisions=bf16-true"


@pytest.mark.parametrize("more", [(), ("-k", "sound"), ("-n2",)])
def test_5_where_every_claim_was_skipped_for_its_precision(example, more):
    example.write(OF_ANOTHER_PRECISION)

    result = (example.check_apart if "-n2" in more else example.check)(ASKED, *more)

    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED == 5
    result.stdout.fnmatch_lines(
        [
            "ERROR: fp16: no claim was judged: 1 skipped, whose tests do not name "
            "--fp16-precisions=bf16-true"
        ]
    )


@pytest.mark.parametrize("more", [("-k", "ordinary"), ("--collect-only",)])
def test_0_where_no_claim_was_to_be_judged(example, more):
    example.write(OF_ANOTHER_PRECISION)

    assert example.check(ASKED, *more).ret == 0


def test_0_where_another_claim_was_judged(example):
    example.write(
        OF_ANOTHER_PRECISION
        + """
def test_by_hand(fp16, model, data):
    assert fp16.evaluate(model, data, precision="bf16-true").equivalent
"""
    )

    assert example.check(ASKED).ret == 0


def test_1_stays_1_where_every_claim_was_skipped(example):
    example.write(OF_ANOTHER_PRECISION + "    assert False")

    assert example.check(ASKED).ret == 1
