"""Whole numbers beyond those that a format has every one of."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.check import gradient_check
from pytest_fp16.engine.gradients.origins.whole_numbers import (
    WholeNumbers,
    miscounted,
    whole_numbers,
)
from pytest_fp16.precision import precision
from pytest_fp16.settings import Settings
from pytest_fp16.theory.rounding import BFLOAT16, FLOAT16


def noted(function, *arguments):
    seen = WholeNumbers(nn.Identity())
    with seen:
        function(*arguments)
    return seen


def places(count, dtype):
    return noted(lambda: torch.ones(count, dtype=dtype).cumsum(0).long())


@pytest.mark.parametrize(
    ("dtype", "form", "count", "wrong"),
    [
        (torch.bfloat16, BFLOAT16, 256, None),
        (torch.bfloat16, BFLOAT16, 400, 257),
        (torch.float16, FLOAT16, 400, None),
        (torch.float16, FLOAT16, 4000, 2049),
    ],
)
def test_a_count_is_wrong_beyond_the_digits_of_its_format(dtype, form, count, wrong):
    found = miscounted(places(count, torch.float32), places(count, dtype), form)
    assert (found.number if found else None) == wrong
    if wrong:
        assert found.became in (wrong - 1, wrong + 1)
        finding = whole_numbers(found, form)
        assert (finding.mechanism, finding.variant) == ("absorption", "whole numbers")
        assert f"({wrong} becomes {found.became})" in finding.reason
        assert "test_whole_numbers.py" in finding.source
    else:
        assert whole_numbers(found, form) is None


def test_small_numbers_that_round_to_others_are_no_miscount():
    """A value between two levels may fall to either; that is rounding, and no want of digits."""
    low = noted(lambda: torch.tensor([2.4], dtype=torch.bfloat16).long())
    exact = noted(lambda: torch.tensor([3.4]).long())
    assert miscounted(exact, low, BFLOAT16) is None


def test_another_way_through_the_program_is_not_compared():
    assert miscounted(noted(lambda: None), places(400, torch.bfloat16), BFLOAT16) is None


@pytest.mark.parametrize(("number", "changes"), [(600, False), (601, True)])
def test_a_cast_that_changes_a_whole_number_is_noted(number, changes):
    seen = noted(lambda: torch.tensor([number]).to(torch.bfloat16))
    assert (seen.changed is not None) is changes
    assert noted(lambda: torch.tensor([1, 0]).bool().to(torch.bfloat16)).changed is None
    assert noted(lambda: torch.tensor([70000]).half()).changed is None  # out of range, not digits


class Queue(nn.Module):
    """Each input takes its place behind those before it."""

    def __init__(self):
        super().__init__()
        self.line, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.line(x).relu()
        place = torch.ones_like(h[:, 0]).cumsum(0).long() - 1
        slots = h.new_zeros(2 * len(h), 4).index_put((place,), h, accumulate=True)
        return self.head(slots[place])


@pytest.mark.parametrize(("name", "found"), [("bf16-true", True), ("16-true", False)])
def test_places_that_collide_are_found_before_training(name, found):
    x = torch.randn(800, 4, generator=torch.Generator().manual_seed(0))
    data = [(part, part[:, :3].argmax(1)) for part in x.split(400)]
    subject = Training(
        model=Queue,
        optimizer=partial(torch.optim.SGD, lr=0.1),
        loss=F.cross_entropy,
        train_data=data,
        eval_data=data,
        epochs=4,
    )
    said = gradient_check(subject, precision(name), Settings(), torch.device("cpu"))
    assert (said.verdict == "not equivalent") is found
    if found:
        assert said.culprit.variant == "whole numbers"
        assert "becomes" in said.culprit.evidence


class Table(nn.Module):
    """A category in the first column."""

    def __init__(self):
        super().__init__()
        self.kinds, self.head = nn.Embedding(600, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.kinds(x[:, 0].long()))


def test_an_index_out_of_range_is_told_by_the_number_that_was_rounded():
    kind = torch.arange(600).roll(1)[:, None].float()  # 599 comes first, and becomes 600
    data = [(part, part[:, 0].long() % 3) for part in kind.split(40)]
    subject = Training(
        model=Table,
        optimizer=partial(torch.optim.SGD, lr=0.1),
        loss=F.cross_entropy,
        train_data=data,
        eval_data=data,
        epochs=4,
    )
    found = gradient_check(subject, precision("bf16-true"), Settings(), torch.device("cpu"))
    assert found.verdict == "not equivalent"
    assert "IndexError" in found.reason
    assert "becomes" in found.culprit.evidence
    assert (found.culprit.operation, found.culprit.variant) == ("_to_copy", "whole numbers")


def test_what_raised_has_made_fewer():
    exact, low = places(400, torch.float32), places(400, torch.bfloat16)
    exact.made.append(exact.made[0])
    assert miscounted(exact, low, BFLOAT16) is None
    assert miscounted(exact, low, BFLOAT16, ended=True) is not None
    assert miscounted(low, exact, BFLOAT16, ended=True) is None
