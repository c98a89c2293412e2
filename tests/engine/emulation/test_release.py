"""Which torch this is."""

import pytest
import torch

from pytest_fp16.engine.emulation.release import since


@pytest.mark.parametrize(
    ("version", "there"),
    [
        ("2.13.0", False),
        ("2.9.1+cu128", False),
        ("2.14.0", True),
        ("2.14.1+cpu", True),
        ("2.15.0a0+git1234", True),
        ("3.0.0", True),
    ],
)
def test_releases_are_in_order(version, there):
    assert since(2, 14, version) is there


def test_the_oldest_that_is_supported_is_behind_us():
    assert since(2, 6)
    assert since(*map(int, torch.__version__.split(".")[:2]))
