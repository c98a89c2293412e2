import pytest


def test_workers_send_reports_and_the_controller_shows_and_writes_them(example):
    example.pytester.makefile(
        ".ini", pytest="[pytest]\naddopts = -p no:randomly -p no:asyncio\nfilterwarnings = error\n"
    )

    result = example.check_apart(
        "-n2", "--fp16-precisions=16-true,bf16-true", "--fp16-json=out.json", "--junitxml=out.xml"
    )

    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        [
            "E   16-true is not equivalent to 32-true on test_broken: *",
            "*= 16-bit conformance =*",
            "Speed and memory are left out: tests run in parallel (xdist), which disturbs timing.",
        ]
    )
    assert {k.partition("::")[2]: r["verdict"] for k, r in example.reports().items()} == {
        "test_sound[16-true]": "equivalent",
        "test_sound[bf16-true]": "equivalent",
        "test_broken[16-true]": "not equivalent",
        "test_broken[bf16-true]": "equivalent",
    }
    assert "fp16.verdict" in (example.pytester.path / "out.xml").read_text()
    result.stderr.no_fnmatch_line("*INTERNALERROR*")


def test_a_usage_error_with_workers(example):
    result = example.check("-n2", "--fp16-budget=-1")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: fp16: budget '-1' is negative*"])


DRAWN = """
from pathlib import Path

class Data:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        with Path("drawn.txt").open("a") as file:
            file.write("drawn ")
        yield from self.batches

@pytest.mark.parametrize("n", [1, 2])
@fp16_equivalent(precisions=["16-true", "bf16-true"])
def test_sound(model, data, n):
    return Evaluation(model=model, data=Data(data))
"""


def drawn(example, *more):
    example.check_apart(*more).assert_outcomes(passed=4)
    file = example.pytester.path / "drawn.txt"
    times = len(file.read_text().split())
    file.unlink()
    return times


def test_data_is_drawn_once_where_items_stay_together(example):
    example.write(DRAWN)
    assert drawn(example, "-n2", "--dist=loadscope") == drawn(example)
