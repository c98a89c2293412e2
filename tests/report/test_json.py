import json
import math
import os
import stat
import tempfile

import pytest
import torch

import pytest_fp16
from pytest_fp16.errors import SettingError
from pytest_fp16.report.json import read_json, require_writable, write_json


def test_what_is_written_is_read_back(tmp_path, failed, passed):
    path = tmp_path / "report.json"
    write_json(path, [("test_a", failed()), ("test_b", passed())])
    found = read_json(path)
    assert [(e.test, e.report) for e in found.reports] == [
        ("test_a", failed()),
        ("test_b", passed()),
    ]
    assert found.schema_version == 1
    assert found.package_version == pytest_fp16.__version__
    assert found.torch_version == torch.__version__.partition("+")[0] or found.torch_version
    assert found.created.endswith("+00:00")


def test_nan_and_infinity_are_words_in_strict_json_and_numbers_again_when_read(
    tmp_path, failed, metric
):
    nan, inf = float("nan"), float("inf")
    report = failed(
        metric=metric(candidate=nan, loss=-inf, budget=inf),
        training={"losses": [nan, 1.5], "deep": {"scale": inf}, "note": "infinite"},
    )
    path = tmp_path / "report.json"
    write_json(path, [("t", report)])

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    raw = json.loads(path.read_text(), parse_constant=refuse)
    assert raw["reports"][0]["report"]["metric"]["candidate"] == "nan"
    back = read_json(path).reports[0].report
    assert math.isnan(back.metric.candidate)
    assert (back.metric.loss, back.metric.budget) == (-inf, inf)
    assert math.isnan(back.training["losses"][0])
    assert back.training["losses"][1] == 1.5
    assert back.training["deep"] == {"scale": inf}
    assert back.training["note"] == "infinite"


def test_a_report_alone_reads_back_its_own_dump(failed, metric):
    report = failed(metric=metric(candidate=float("inf")))
    assert type(report).model_validate_json(report.model_dump_json()) == report


def test_missing_folders_are_made(tmp_path, failed):
    path = tmp_path / "a" / "b" / "report.json"
    require_writable(path)
    write_json(path, [("t", failed())])
    assert read_json(path).reports[0].test == "t"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, failed, monkeypatch):
    path = tmp_path / "report.json"
    write_json(path, [("old", failed())])

    def broken(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(SettingError) as raised:
        write_json(path, [("new", failed())])
    assert str(raised.value) == f"cannot write {path}: No space left on device"
    assert read_json(path).reports[0].test == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_the_file_has_the_permissions_of_any_other(tmp_path, failed):
    path, other = tmp_path / "report.json", tmp_path / "other"
    write_json(path, [("t", failed())])
    other.write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
    path.chmod(0o640)
    write_json(path, [("t", failed())])
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_folder_is_refused_before_the_run(tmp_path):
    with pytest.raises(SettingError) as raised:
        require_writable(tmp_path)
    assert str(raised.value) == f"cannot write {tmp_path}: it is a folder; name a file in it"


def test_a_path_below_a_file_is_refused_before_the_run(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(SettingError) as raised:
        require_writable(file / "report.json")
    assert str(raised.value) == (
        f"cannot write {file / 'report.json'}: {file} is a file, not a folder"
    )


def test_a_folder_without_permission_is_refused_before_the_run(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(SettingError) as raised:
        require_writable(tmp_path / "report.json")
    assert str(raised.value) == (
        f"cannot write {tmp_path / 'report.json'}: the folder {tmp_path} may not be written to "
        "(Permission denied)"
    )


def test_a_file_without_permission_is_refused_before_the_run(tmp_path, monkeypatch):
    file = tmp_path / "report.json"
    file.write_text("")
    monkeypatch.setattr(os, "access", lambda path, mode: path != file)
    with pytest.raises(SettingError) as raised:
        require_writable(file)
    assert str(raised.value) == (
        f"cannot write {file}: the file is there and may not be written to"
    )


def test_asking_leaves_no_trace(tmp_path):
    require_writable(tmp_path / "new" / "report.json")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Invalid JSON: EOF while parsing an object at line 1 column 1"),
        ('{"schema_version": 2}', "schema_version: Input should be 1"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, text, reason):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(SettingError) as raised:
        read_json(path)
    assert str(raised.value) == (f"{path} is not a report document of schema version 1 ({reason})")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SettingError) as raised:
        read_json(tmp_path / "no.json")
    assert str(raised.value) == f"cannot read {tmp_path / 'no.json'}: No such file or directory"
