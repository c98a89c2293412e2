"""The mistakes a user can make."""

import pytest

from pytest_fp16 import errors

KINDS = [k for k in vars(errors).values() if isinstance(k, type) and k is not errors.FP16Error]


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_caught_by_our_base_and_by_one_of_pythons(kind):
    assert issubclass(kind, errors.FP16Error)
    # No value is wrong where torch lacks something.
    assert issubclass(kind, RuntimeError if kind is errors.TorchError else ValueError)
    assert kind.__doc__
