"""The front door: what it refuses before any work."""

import pytest
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.errors import SettingError


def test_one_precision_at_a_time():
    subject = Evaluation(model=nn.Linear(2, 2), data=[])
    with pytest.raises(SettingError, match="precision="):
        check(subject, precisions=("16-true",))


def test_a_bare_model_is_told_what_to_wrap_it_in():
    with pytest.raises(SettingError, match=r"got Linear.*Evaluation\(model="):
        check(nn.Linear(2, 2))
    with pytest.raises(SettingError, match="wrap the model and its data: Evaluation"):
        check(nn.Linear(2, 2), [])
