"""One process at a time, and none that is gone."""

import os

import pytest

from pytest_fp16.errors import SettingError
from pytest_fp16.plan_lock import locked


def test_a_lock_is_held_and_let_go_of(tmp_path):
    lock = tmp_path / "new" / "plan.txt.lock"
    with locked(tmp_path / "new" / "plan.txt"):
        assert lock.exists()
    assert not lock.exists()


def test_a_lock_left_behind_is_taken_over_and_a_held_one_is_an_error(tmp_path, monkeypatch):
    path, lock = tmp_path / "plan.txt", tmp_path / "plan.txt.lock"
    lock.touch()
    os.utime(lock, (1.0, 1.0))
    with locked(path):
        pass
    assert not lock.exists()
    monkeypatch.setattr("pytest_fp16.plan_lock._ABANDONED", 0.05)
    monkeypatch.setattr("pytest_fp16.plan_lock._take_over", lambda lock: None)
    lock.touch()
    with pytest.raises(SettingError, match=r"plan.txt.lock held by another process"), locked(path):
        pass


def test_a_lock_released_between_two_looks_is_another_try(tmp_path, monkeypatch):
    """The other process is done just after this one was refused."""
    own, tries = os.open, []

    def refused_once(name, *arguments):
        if str(name).endswith(".lock") and not tries:
            tries.append(name)
            raise FileExistsError(17, "File exists", name)
        return own(name, *arguments)

    monkeypatch.setattr("pytest_fp16.plan_lock.os.open", refused_once)
    with locked(tmp_path / "plan.txt"):
        assert tries
