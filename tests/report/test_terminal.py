import math

import pytest

from pytest_fp16.report.model import Certified, Check, Run, Speed, Standardised
from pytest_fp16.report.terminal import full, table

STANDARDISED = Standardised(
    count=360,
    spread=1.04,
    spread_allowed=1.62,
    mean=-0.031,
    mean_allowed=0.4,
    bound_exceeded=0,
    median_abs=0.7,
)
ALL = Certified(measured=1.0, bounded=0.902, probable=0.9972)


def test_no_report_no_table():
    assert table([]) == ""


def test_a_row_for_every_test_and_precision(failed, passed):
    text = table(
        [("test_digits", failed(certified=ALL)), ("test_digits", passed(precision="bf16-mixed"))]
    )
    assert text.splitlines() == [
        "test         precision   verdict         metric         loss  budget    flips  certified",
        "                                         32 → 16 bit                  allowed  m/b/p",
        "-----------  ----------  --------------  -------------  ----  ------  -------  ---------",
        "test_digits  16-true     not equivalent  97.1 → 61.2 %  35.9     0.8    130/2  100/90/99",
        "test_digits  bf16-mixed  equivalent      97.1 → 97.1 %   0.0     0.8      0/2",
        "certified: share of decisions sure to be kept, in %: measured / bounded / probable",
        "all ran emulated for cuda on cpu",
    ]


def test_columns_that_say_nothing_are_left_out(passed):
    text = table([("t", passed(flips=None, forecast=None, run=None, metric=None))])
    assert text.splitlines()[0].split() == ["test", "precision", "verdict"]


def test_ties_stand_beside_the_flips_where_there_are_any(failed, passed):
    lines = table([("a", failed(flips=0, ties=400)), ("b", passed())]).splitlines()
    assert lines[0].split()[-3:] == ["budget", "flips", "ties"]
    assert lines[3].split()[-2:] == ["0/2", "400"]
    assert "ties" not in table([("b", passed(ties=0))])


def test_rows_that_ran_differently_say_how(passed):
    native = Run(device="cuda:0", target="cuda", mode="native")
    text = table([("a", passed()), ("b", passed(run=native))])
    assert "all ran" not in text
    assert "emulated for cuda on cpu" in text.splitlines()[3]
    assert "native on cuda:0" in text.splitlines()[4]


def test_speed_and_memory_against_the_reference(passed):
    speed = Speed(
        seconds=1.0,
        reference_seconds=1.624,
        speedup=1.624,
        peak_memory=520,
        reference_peak_memory=1000,
    )
    text = table([("t", passed(speed=speed))])
    assert text.splitlines()[0].split()[-3:] == ["flips", "speedup", "memory"]
    assert text.splitlines()[3].split()[-2:] == ["1.62×", "0.52×"]


def test_memory_that_was_not_measured_is_left_out(passed):
    speed = Speed(seconds=1.0, reference_seconds=2.0, speedup=2.0)
    assert "memory" not in table([("t", passed(speed=speed))])


def test_unlabelled_rows_show_flips_and_no_accuracy(failed, metric):
    report = failed(metric=metric(name="agreement", reference=1.0, labelled=False))
    row = table([("t", report)]).splitlines()[3]
    assert "→" not in row
    assert "130/2" in row


def test_a_metric_other_than_accuracy_is_named(failed, metric):
    r2 = metric(name="R²", reference=0.91234, candidate=0.5, loss=0.41234, budget=0.005)
    row = table([("t", failed(metric=r2, flips=None))]).splitlines()[3]
    assert "R² 0.912 → 0.500" in row


@pytest.mark.parametrize("width", [117, 120, 140])
def test_every_column_filled_fits_a_terminal(failed, passed, width):
    speed = Speed(
        seconds=1.0,
        reference_seconds=1.6,
        speedup=1.6,
        peak_memory=52,
        reference_peak_memory=100,
    )
    run = Run(device="cuda:0", target="cuda", mode="native")
    name = "tests/models/test_all_the_models.py::TestEverything::test_digits[resnet-small]"
    reports = [
        (name, failed(certified=ALL, speed=speed, run=run)),
        (name, passed(certified=ALL, speed=speed, run=run)),
    ]
    lines = table(reports, width=width).splitlines()
    assert max(map(len, lines[:5])) <= width
    assert lines[3].startswith("tests/")
    assert "small]" in lines[3]
    assert "…" in lines[3]


def test_a_name_is_cut_to_what_still_tells_tests_apart(passed):
    name = "test_the_loader_with_workers_of_its_own_and_more"
    shown = table([(name, passed(certified=ALL))], width=60).splitlines()[3].split()[0]
    assert shown == "test_the_lo…own_and_more"


def test_a_name_is_whole_where_there_is_no_terminal(passed):
    name = "test_the_loader_with_workers_of_its_own_and_more_" * 4
    assert name in table([(name, passed(certified=ALL))], width=None)


def test_a_name_that_fits_is_left_alone(passed):
    assert "…" not in table([("test_digits", passed())])


def test_full_shows_how_close_a_model_is_to_the_limits(passed, site):
    sites = [
        site(share=0.2, module="head", largest=12.5, headroom=12.4),
        site(share=0.7, module="blocks.1.norm", operation="pow", largest=9e4, headroom=-0.46),
        site(share=0.1, module="", operation="exp", subnormal=0.034, zeroed=0.0021),
        site(share=0.0, module="", operation="sqrt", largest=0.0, headroom=math.inf),
    ]
    report = passed(
        sites=sites,
        standardised=STANDARDISED,
        certified=ALL,
        least_robust=[17, 3],
        delta_max=0.00123456,
        gamma_median=0.98765,
        loss_reference=3.2171,
        loss_candidate=3.2193,
    )
    assert full(report).splitlines() == [
        "test_digits, 16-true: equivalent",
        "  0 flips of 360 (2 allowed)",
        "  certified: measured 100 %, bounded 90 %, probable 99 %",
        "  error over σ: spread 1.04 (allowed 1.62), mean -0.03 (allowed ±0.40), 0 of 360 beyond "
        "the worst-case bound",
        "  largest δ 0.00123, median Γ 0.988",
        "  cross-entropy: 3.22, reference 3.22",
        "  least robust inputs: 17, 3",
        "  closest to overflow: blocks.1.norm (pow), 0.5 powers of two beyond the range, largest "
        "value 9e+04",
        "  most values flushed to zero: the model itself (exp), 0.2 %",
        "  module            operation   share  largest  headroom  subnormal  zeroed",
        "                                of σ²",
        "  ----------------  ---------  ------  -------  --------  ---------  ------",
        "  blocks.1.norm     pow        70.0 %    9e+04    2^-0.5",
        "  head              linear     20.0 %     12.5    2^12.4",
        "  the model itself  exp        10.0 %     12.5    2^12.4      3.4 %   0.2 %",
        "  the model itself  sqrt        0.0 %        –         –",
    ]


def test_full_always_shows_what_is_farthest_beyond_the_range(passed, site):
    stored = [
        site(module="norm", operation=name, share=0.0, largest=largest, headroom=headroom)
        for name, largest, headroom in (("bias", 7e4, -0.1), ("running_var", 9.9e4, -0.6))
    ]
    many = [site(module=f"m{i}", share=0.05, headroom=12.0) for i in range(20)]
    lines = full(passed(sites=[*many, *stored]), top=4).splitlines()
    assert any(line.split()[:2] == ["norm", "running_var"] for line in lines)
    assert lines[-1] == "  … and 17 more sites with 80.0 % of σ² together"


def test_full_says_how_much_it_leaves_out(passed, site):
    text = full(passed(sites=[site(module=f"m{i}", share=0.05) for i in range(20)]), top=4)
    assert text.splitlines()[-1] == "  … and 16 more sites with 80.0 % of σ² together"


def test_full_without_a_theory_pass(passed):
    text = full(passed())
    assert text.splitlines()[-1] == "  no ranges or shares: the theory pass gave none"


@pytest.mark.parametrize("excused", [False, True])
def test_full_says_why_more_than_is_allowed_passes(passed, excused):
    detail = "spread of error over σ 3.82 (allowed 1.71)"
    text = full(
        passed(
            standardised=STANDARDISED.model_copy(update={"spread": 3.82, "spread_allowed": 1.71}),
            checks=[Check(name="as predicted", passed=True, excused=excused, detail=detail)],
        )
    )
    assert (f"    {detail}" in text.splitlines()) == excused


def test_full_has_no_column_of_shares_where_nothing_was_shared_out(passed, site):
    text = full(passed(sites=[site(module=f"m{i}", share=0.0) for i in range(2)]))
    assert "share" not in text
    assert "headroom" in text
