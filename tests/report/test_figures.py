import pytest

from pytest_fp16.report import figures
from pytest_fp16.report.model import Certified


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (97.1234, 1, "97.1"),
        (-0.04, 1, "0.0"),
        (-0.06, 1, "-0.1"),
        (float("nan"), 1, "NaN"),
        (float("inf"), 2, "infinite"),
        (float("-inf"), 2, "-infinite"),
    ],
)
def test_decimal(value, digits, text):
    assert figures.decimal(value, digits) == text


def test_two_numbers_that_differ_are_given_the_decimals_that_show_it():
    assert figures.apart(0.84, 0.81) == 2
    assert figures.apart(35.9, 0.8) == 1
    assert figures.apart(0.5, 0.5) == 1
    assert figures.apart(float("nan"), 0.5) == 1


def test_loss_and_budget_never_look_alike_unless_they_are(metric):
    assert figures.loss_pair(metric(loss=0.0084, budget=0.0081)) == ("0.84", "0.81")
    assert figures.loss_pair(metric(loss=0.0081, budget=0.0081)) == ("0.8", "0.8")
    assert figures.loss_pair(metric(loss=3.2e-9, budget=0.0)) == ("3.2e-07", "0")


def test_a_tiny_budget_is_not_shown_as_zero(metric):
    assert figures.loss_pair(metric(loss=0.0, budget=0.00005)) == ("0.000", "0.005")


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("accuracy", ("97.1", "61.2")),
        ("nearest-neighbour agreement", ("97.1", "61.2")),
        ("R²", ("0.971", "0.612")),
    ],
)
def test_shares_are_in_percent_and_other_metrics_in_their_own_units(metric, name, pair):
    assert figures.metric_pair(metric(name=name)) == pair


def test_one_decimal_more_where_it_tells_reference_from_candidate(metric):
    assert figures.metric_pair(metric(candidate=0.97083)) == ("97.12", "97.08")
    assert figures.metric_pair(metric(candidate=0.971228)) == ("97.1", "97.1")


def test_a_hundred_percent_means_all():
    assert figures.floored(0.9999) == "99"
    assert figures.floored(1.0) == "100"
    assert figures.floored(0.29) == "29"  # 100 × 0.29 is a little less than 29
    assert figures.floored(float("nan")) == "NaN"


def test_certified_shares_keep_their_names():
    text = figures.certified(Certified(measured=1.0, probable=0.984))
    assert text == "measured 100 %, probable 98 %"
    assert figures.certified(Certified()) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(65504.0, "65504"), (90210.0, "9.02e+04"), (0.0012345, "0.00123"), (float("nan"), "NaN")],
)
def test_magnitudes_have_three_digits(value, text):
    assert figures.significant(value) == text


@pytest.mark.parametrize(
    ("name", "said"), [("accuracy", "10.7 points"), ("R²", "0.107"), ("recall_at_5", "10.7 points")]
)
def test_a_loss_is_told_in_the_unit_of_its_table(name, said):
    assert figures.loss_of(name, 0.1068) == said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("addmm", "linear/addmm"),
        ("_to_copy", "cast/_to_copy"),
        ("_embedding_bag_forward_only", "embedding_bag/_embedding_bag_forward_only"),
        ("native_batch_norm", "batch_norm/native_batch_norm"),
        ("index_put_", "index_put_"),
        ("log", "log"),
        ("ValueError", "raise ValueError"),
        ("", ""),
    ],
)
def test_operations_are_told_as_a_program_has_them(name, said):
    assert figures.operation(name) == said
    assert figures.written(name) == said.split("/")[0].removeprefix("raise ")
