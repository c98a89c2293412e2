"""The predicted error of what a model compares, beside the error that rounding really makes."""

import pytest
import torch
from torch import nn

from pytest_fp16.engine.prediction.decision_errors import decision_errors
from pytest_fp16.theory.rounding import FORMATS

N = 24


class Gate(nn.Module):
    """Compares a difference: its operands are 64 times as large as what is compared."""

    def __init__(self, lift=64.0):
        super().__init__()
        self.a, self.b, self.lift = nn.Linear(6, 8), nn.Linear(8, 3), lift

    def compared(self, x):
        return (self.a(x) + self.lift) - self.lift

    def forward(self, x):
        y = self.compared(x)
        return self.b(torch.where(y > 0.1, y + 1.0, y))


def errors(theory_of, model, x, name="16-true"):
    theory, _ = theory_of(model.eval(), x, name)
    return decision_errors(theory, x, len(x), list(range(len(x))), 0)


@pytest.fixture
def x():
    return torch.randn(N, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["16-true", "bf16-true"])
@pytest.mark.parametrize("lift", [64.0, 1.0])
def test_it_is_of_the_size_of_the_operands_rounding(theory_of, x, name, lift):
    torch.manual_seed(0)
    ((key, error),) = errors(theory_of, Gate(lift), x, name)
    assert key == ("", "gt")
    dtype = torch.bfloat16 if name.startswith("bf") else torch.float16
    # Values between lift/2 and 2·lift round by up to half an ulp there, uniformly: ulp/√12.
    at = lift * 2 * FORMATS[dtype].unit_roundoff / 12**0.5
    assert at / 3 < error < 4 * at


def test_every_decision_is_listed_in_the_programs_order(theory_of, x):
    class Two(Gate):
        def forward(self, x):
            y = self.compared(x)
            y = torch.where(y > 0.1, y + 1.0, y)
            return self.b(y * (y.argmax(-1, keepdim=True) > 3))

    found = errors(theory_of, Two(), x)
    assert [key[1] for key, _ in found][:2] == ["gt", "argmax"]


def test_a_model_without_decisions_has_none(theory_of, x):
    assert errors(theory_of, nn.Linear(6, 3), x) == []
