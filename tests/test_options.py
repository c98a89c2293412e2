"""The options as they become settings; what pytest does with them is in tests/plugin/."""

from types import SimpleNamespace

import pytest

from pytest_fp16.errors import SettingError
from pytest_fp16.options import (
    check_environment,
    chosen_precisions,
    is_active,
    read_settings,
    with_store,
)
from pytest_fp16.settings import Settings


def a_config(line=None, ini=None):
    return SimpleNamespace(
        getoption=lambda name, default=None: (line or {}).get(name, default),
        getini=lambda name: (ini or {}).get(name),
    )


def test_nothing_given_is_every_default():
    assert read_settings(a_config()) == Settings()
    assert not is_active(a_config())


def test_the_command_line_goes_before_the_ini_file():
    config = a_config({"fp16_seeds": "3"}, {"fp16_seeds": "5", "fp16_target": "cpu"})
    settings = read_settings(config)
    assert (settings.seeds, settings.target) == (3, "cpu")


@pytest.mark.parametrize("given", ["16-true, bf16-true,", ["16-true", "bf16-true"]])
def test_precisions_are_a_list_in_either_spelling(given):
    assert read_settings(a_config(ini={"fp16_precisions": given})).precisions == (
        "16-true", "bf16-true",
    )  # fmt: skip


def test_only_the_command_line_selects_among_a_tests_own_precisions():
    settings = Settings(precisions=("16-true",))
    assert chosen_precisions(a_config(ini={"fp16_precisions": ["16-true"]}), settings) is None
    assert chosen_precisions(a_config({"fp16_precisions": "16-true"}), settings) == ("16-true",)


@pytest.mark.parametrize("seeds", ["many", "-1", "1.5", ""])
def test_seeds_that_are_no_number_are_refused_by_name(seeds):
    with pytest.raises(SettingError, match="seeds"):
        read_settings(a_config({"fp16_seeds": seeds}))


def test_runs_are_kept_in_the_cache_where_there_is_one(tmp_path):
    def refuse(name):
        raise PermissionError(13, "Permission denied")

    writable = SimpleNamespace(mkdir=lambda name: tmp_path / name)
    readonly = SimpleNamespace(mkdir=refuse)
    assert with_store(Settings(), writable).store == str(tmp_path / "fp16-training")
    for cache in (readonly, None):
        assert with_store(Settings(), cache) == Settings()
        assert with_store(Settings(store="runs"), cache).store == "runs"


def test_a_plan_that_is_to_be_written_is_tried_first(tmp_path):
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    with pytest.raises(SettingError, match=r"cannot write .*plan\.txt"):
        check_environment(Settings(plan=str(file / "plan.txt")), writes=False)
    check_environment(Settings(plan=str(file)), writes=False)
