"""Beside pytest-randomly, pytest-cov and pytest-asyncio."""

PLAIN_INI = "[pytest]\nfilterwarnings = error\n"


def test_randomly_shuffles_siblings_apart(example):
    example.pytester.makefile(".ini", pytest=PLAIN_INI + "addopts = -p no:asyncio -p no:cov\n")

    result = example.check_apart("-p", "randomly", "-p", "no:cacheprovider", "--fp16-json=out.json")

    result.assert_outcomes(passed=6, failed=2)
    result.stdout.fnmatch_lines(["Using --randomly-seed=*"])
    names = [key.partition("::")[2].partition("[")[0] for key in example.reports()]
    assert sorted(names) == ["test_broken"] * 4 + ["test_sound"] * 4
    assert names in (["test_broken"] * 4 + ["test_sound"] * 4, sorted(names, reverse=True))


def test_cov_counts_what_the_test_runs(example):
    example.pytester.makefile(".ini", pytest=PLAIN_INI + "addopts = -p no:asyncio -p no:randomly\n")

    result = example.check_apart(
        "--cov=test_it", "-k", "sound", "--fp16-precisions=bf16-true", "--fp16-emulate=never"
    )

    result.assert_outcomes(passed=1, deselected=1)
    result.stdout.fnmatch_lines(["test_sound * bf16-true * equivalent *×*"])
    result.stdout.fnmatch_lines(["test_it.py *%"])


def test_asyncio_tests_may_be_claims(example):
    example.pytester.makefile(
        ".ini",
        pytest=PLAIN_INI + "addopts = -p no:cov -p no:randomly -p no:cacheprovider\n"
        "asyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n",
    )
    example.write(
        """
import asyncio

@fp16_equivalent(precisions=["16-true", "bf16-true"])
async def test_sound(model, data):
    await asyncio.sleep(0)
    return Evaluation(model=model, data=data)

class TestMethods:
    @fp16_equivalent(precisions=["16-true"])
    async def test_broken(self, broken, data):
        await asyncio.sleep(0)
        return Evaluation(model=broken, data=data)
"""
    )

    example.check_apart().assert_outcomes(passed=2, failed=1)
    example.run().assert_outcomes(passed=2)
    example.run("-p", "no:fp16").assert_outcomes(passed=2)
