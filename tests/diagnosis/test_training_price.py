"""What a cure of a training costs, counted on one step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_fp16 import Settings
from pytest_fp16.diagnosis.proposal import Proposal
from pytest_fp16.diagnosis.training_price import price_of
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.training.place import Amendment
from pytest_fp16.engine.training.runs import Runs
from pytest_fp16.engine.training.validation import validated
from pytest_fp16.mixing import keep_in_float32
from pytest_fp16.precision import PRECISIONS

CPU = torch.device("cpu")
HALF = PRECISIONS["16-true"]


@pytest.fixture
def runs(digits_training):
    with preserved_state():
        yield Runs(validated(digits_training(), CPU), Settings().with_(device="cpu"), CPU)


def price(runs, **cure):
    proposal = Proposal(kind="keep_in_float32", description="", **cure)
    return price_of(runs, HALF, 0, proposal)


def keeping(*names):
    return Amendment(model=lambda model: keep_in_float32(model, list(names)))


def test_a_layer_costs_its_share_of_the_products(runs):
    """64·32 and 32·10 multiply-adds forward, and about twice that backward."""
    large, small = (price(runs, amendment=keeping(name)) for name in ("1", "3"))
    assert large.float32_share_before == small.float32_share_before == 0
    assert large.float32_share == pytest.approx(64 * 32 / (64 * 32 + 32 * 10), abs=0.12)
    assert 0 < small.float32_share < 0.3 < large.float32_share < 1


def test_another_precision_has_its_own_share(runs):
    mixed = price(runs, precision=PRECISIONS["16-mixed"])
    assert 0 < mixed.float32_share < 0.6  # weights and optimizer
    assert mixed.float32_share_before == 0
    assert price(runs, precision=PRECISIONS["bf16-true"]).float32_share == 0


def test_another_training_is_counted_as_it_is(runs, digits_training):
    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs.float(), targets)

    assert 0 < price(runs, subject=digits_training(loss=loss)).float32_share < 0.1


def test_a_step_that_cannot_be_made_has_no_price(runs, digits_training):
    def broken(outputs, targets):
        raise ZeroDivisionError

    assert price(runs, subject=digits_training(loss=broken)) is None
