"""Speed figures are pytest-benchmark's own rows, and left out where they would mean nothing."""

import json

import pytest

NATIVE = ("--fp16-emulate=never", "--fp16-device=cpu", "-k", "sound")
REPORTS = ("--fp16-json=out.json",)


def speeds(example):
    return {k.partition("::")[2]: r["speed"] for k, r in example.reports().items()}


def test_a_row_per_precision_grouped_by_test_with_the_figures_beside(example):
    result = example.check(
        *NATIVE, *REPORTS, "--fp16-precisions=bf16-true,bf16-mixed", "--benchmark-json=bench.json"
    )

    result.assert_outcomes(passed=2, deselected=2)
    rows = json.loads((example.pytester.path / "bench.json").read_text())["benchmarks"]
    assert [(row["name"], row["group"]) for row in rows] == [
        ("test_sound[bf16-true]", "test_it.py::test_sound"),
        ("test_sound[bf16-mixed]", "test_it.py::test_sound"),
    ]
    true, mixed = (row["extra_info"] for row in rows)
    assert (true["precision"], true["verdict"]) == ("bf16-true", "equivalent")
    found = speeds(example)
    assert true["speedup"] == found["test_sound[bf16-true]"]["speedup"] > 0
    assert true["speedup_over_mixed"] > 0
    assert "speedup_over_mixed" not in mixed
    assert rows[0]["stats"]["rounds"] >= 5
    assert 0.1 < rows[0]["stats"]["median"] / true["seconds"] < 10  # both in seconds, of one call
    result.stdout.fnmatch_lines(["*speedup*", "test_sound * bf16-true * equivalent *×*"])
    result.stdout.no_fnmatch_line("*left out*")


def test_an_emulated_run_reports_no_speed(example):
    result = example.check("-k", "sound", "--fp16-emulate=always", *REPORTS)

    assert set(speeds(example).values()) == {None}
    result.stdout.fnmatch_lines(
        ["Speed and memory are left out: an emulated run says nothing about speed."]
    )
    result.stdout.no_fnmatch_line("*benchmark*: 1 tests*")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--benchmark-disable",), "--benchmark-disable was given"),
        (("--benchmark-skip",), "--benchmark-skip was given"),
        (("-p", "no:benchmark"), "pytest-benchmark is not installed, or blocked"),
    ],
)
def test_without_benchmarks_the_verdict_stands_and_one_line_says_so(example, option, said):
    result = example.check(*NATIVE, *REPORTS, "--fp16-precisions=bf16-true", *option)

    result.assert_outcomes(passed=1, deselected=1)
    assert set(speeds(example).values()) == {None}
    lines = [line for line in result.outlines if "left out" in line]
    assert lines == [f"Speed and memory are left out: {said}."]


def test_a_model_that_fails_in_16_bits_keeps_its_verdict(example):
    example.write(
        """
import torch

class Picky(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        y = self.net(x)
        if y.dtype != torch.float32:
            raise RuntimeError("not in 16 bits")
        return y

@fp16_equivalent(precisions=["bf16-true"])
def test_sound(model, data):
    return Evaluation(model=Picky(model).eval(), data=data)
"""
    )

    result = example.check(*NATIVE, *REPORTS)

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E   bf16-true is not equivalent*"])
    assert set(speeds(example).values()) == {None}


def test_the_users_own_group_and_the_names_of_the_rows(example):
    example.write(
        """
@pytest.mark.benchmark(group="mine")
@fp16_equivalent(precisions=["bf16-true"])
def test_sound(model, data):
    return Evaluation(model=model, data=data)
"""
    )

    example.check(*NATIVE, "--benchmark-json=bench.json").assert_outcomes(passed=1)

    (row,) = json.loads((example.pytester.path / "bench.json").read_text())["benchmarks"]
    assert row["group"] == "mine"


BY_HAND = """
def test_sound_by_hand(fp16, benchmark, model, data):
    report = fp16.evaluate(model, data, precision="bf16-true")
    assert (report.speed is not None) == (report.run.mode == "native")
"""


@pytest.mark.parametrize("emulate", ["always", "never"])
def test_a_test_by_hand_gets_speed_where_it_asks_for_benchmark(example, emulate):
    example.write(BY_HAND)

    result = example.check("--fp16-device=cpu", f"--fp16-emulate={emulate}", *REPORTS)

    result.assert_outcomes(passed=1)


def test_a_test_by_hand_may_time_something_itself(example):
    example.write(
        """
def test_sound(fp16, benchmark, model, data):
    benchmark(lambda: 1)
    assert fp16.evaluate(model, data, precision="bf16-true").speed is None
"""
    )

    example.check(*NATIVE).assert_outcomes(passed=1)
