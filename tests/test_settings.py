import dataclasses
import math

import pytest

from pytest_fp16.errors import PrecisionError, SettingError
from pytest_fp16.settings import CANDIDATES, Settings, parse_budget, require_room


def test_defaults_ask_for_the_four_candidates():
    settings = Settings()

    assert settings.precisions == CANDIDATES
    assert (settings.target, settings.emulate, settings.budget) == ("cuda", "auto", None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seeds = 3


def test_precisions_are_made_canonical_and_unique():
    assert Settings(precisions="fp16").precisions == ("16-mixed",)
    assert Settings(precisions=["fp16", "16-mixed", "bf16"]).precisions == (
        "16-mixed",
        "bf16-mixed",
    )
    with pytest.raises(PrecisionError):
        Settings(precisions=["16"])
    with pytest.raises(SettingError, match="precisions is empty"):
        Settings(precisions=())


@pytest.mark.parametrize("name", ["emulate", "target", "report"])
def test_choices_are_named_when_one_is_wrong(name):
    with pytest.raises(SettingError, match=rf"{name} must be one of .* \(got 'x'\)"):
        Settings(**{name: "x"})


@pytest.mark.parametrize("value", [0, -3, 2.5, True, "8"])
def test_seeds_are_a_whole_number_of_at_least_one(value):
    with pytest.raises(SettingError, match="seeds must be a whole number"):
        Settings(seeds=value)


def test_with_changes_and_validates():
    assert Settings().with_(seeds=3, budget="1 %").budget == "1%"
    with pytest.raises(SettingError, match=r"unknown setting 'sedes'; known are .*seeds.*belong"):
        Settings().with_(sedes=3)
    with pytest.raises(SettingError, match="target"):
        Settings().with_(target="tpu")


@pytest.mark.parametrize(
    ("name", "use"), [("json", "--fp16-json, or write_json"), ("report", "--fp16-report, or full")]
)
def test_what_speaks_for_a_session_is_no_setting_of_one_check(name, use):
    with pytest.raises(SettingError, match=rf"{name} speaks for a whole session; use {use}"):
        Settings().for_check(**{name: "full"})
    with pytest.raises(SettingError, match="known are budget, device, emulate, plan,"):
        Settings().for_check(sedes=3)
    assert Settings(json="x.json").for_check(budget=0.1).json == "x.json"


@pytest.mark.parametrize("value", [16, None, True])
def test_precisions_are_a_list_of_names(value):
    with pytest.raises(SettingError, match=rf"precisions must be a list of names \(got {value}"):
        Settings(precisions=value)


@pytest.mark.parametrize("value", [0, None])
def test_a_device_is_a_name(value):
    with pytest.raises(SettingError, match="device must be a name such as 'auto'"):
        Settings(device=value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None), ("", None), ("default", None), (0, 0.0), (0.005, 0.005), ("0.005", 0.005),
        ("5e-3", 0.005), (".5", 0.5), ("0.5%", "0.5%"), (" 2. % ", "2%"), ("1e1%", "10%"),
        ("0.7pt", 0.007), ("0.8 points", 0.008), ("1 point", 0.01), ("5e-1 PTS", 0.005),
    ],
)  # fmt: skip
def test_budgets_that_parse(value, expected):
    assert parse_budget(value) == expected


@pytest.mark.parametrize(
    "value",
    ["much", "0.5 pounds", "%", "pt", "0.5 p", "1,5", True, "nan", math.nan, math.inf, "inf"],
)
def test_budgets_that_do_not_parse(value):
    with pytest.raises(SettingError, match="does not parse"):
        parse_budget(value)


@pytest.mark.parametrize("value", ["1e999", "1e999%", "1e999 pt"])
def test_budgets_beyond_all_numbers_are_refused(value):
    with pytest.raises(SettingError, match="infinite, so that nothing could fail"):
        parse_budget(value)


@pytest.mark.parametrize("value", [-1, "-0.5", "-2%"])
def test_negative_budgets_are_refused(value):
    with pytest.raises(SettingError, match="negative"):
        parse_budget(value)


@pytest.mark.parametrize("budget", [0, "0%", "0pt", 0.0])
def test_a_training_needs_a_budget_of_something(budget):
    with pytest.raises(SettingError, match=r"budget 0 could not pass.*leave it out"):
        require_room(parse_budget(budget))


@pytest.mark.parametrize("budget", [None, 1e-9, "0.1%"])
def test_any_budget_of_something_will_do(budget):
    require_room(parse_budget(budget))
