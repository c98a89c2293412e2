"""In which arithmetic a training's steps run."""

import pytest
import torch

from pytest_fp16.engine.training.place import Amendment, Place
from pytest_fp16.precision import precision


@pytest.mark.parametrize(
    ("name", "emulated", "rounds"),
    [
        ("16-true", True, True),
        ("bf16-mixed", True, True),
        ("16-true", False, False),
        ("32-true", True, False),
    ],
)
def test_only_16_bits_are_emulated(name, emulated, rounds):
    place = Place(torch.device("cpu"), "cuda", emulated)
    with place.arithmetic(precision(name)) as emulation:
        assert (emulation is not None) is rounds


def test_a_cure_changes_nothing_unless_it_says_so():
    assert Amendment() == Amendment(model=None, loss_scale=None)
