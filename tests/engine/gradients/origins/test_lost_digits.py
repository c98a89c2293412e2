"""The operation that loses the digits of a loss."""

import linecache
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.check import gradient_check
from pytest_fp16.engine.gradients.origins.lost_digits import Digits, lost_digits
from pytest_fp16.engine.gradients.origins.own_checks import observed
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.precision import REFERENCE, precision
from pytest_fp16.settings import Settings

CPU = torch.device("cpu")


class Gaps(nn.Module):
    """What lies between two large numbers."""

    def __init__(self, far=1000.0, steep=False):
        super().__init__()
        self.head, self.far, self.steep = nn.Linear(2, 2), far, steep

    def forward(self, x):
        if self.steep:
            return self.head((x * 2000).sin())
        return self.head((x + self.far) - self.far)


def subject(model, **changes):
    x = torch.rand(256, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    y = (x.sum(-1) > 0).long()
    data = list(zip(x.split(32), y.split(32), strict=True))
    given = {"train_data": data, "eval_data": data, "loss": F.cross_entropy, "epochs": 10}
    rate = partial(torch.optim.SGD, lr=0.5)
    return Training(**{**given, "model": model, "optimizer": rate, **changes})


def lost(model, name="bf16-true", **changes):
    held = subject(model, **changes)
    state = initial_state(held, 0)
    exact = Trainee(held, REFERENCE, 0, state, Place(CPU))
    low = Trainee(held, precision(name), 0, state, Place(CPU, "cuda", True))
    with low.installed():
        return lost_digits(exact, low, held.train_data[0])


class Shifted(nn.Module):
    """Where a picture is read: at its places, and a little beside them."""

    def __init__(self, places=256.0):
        super().__init__()
        self.shift, self.head = nn.Linear(2, 2), nn.Linear(2, 2)
        self.register_buffer("place", torch.tensor([places, places / 2]))

    def forward(self, x):
        return self.head(torch.tanh((self.place + self.shift(x)) / 100))


def test_a_small_number_beside_a_large_one():
    found = lost(Shifted)
    assert (found.module, found.operation, found.mechanism) == ("", "add", "absorption")
    assert "self.place + self.shift" in linecache.getline(*at(found.line))
    assert found.size < 1 < 150 < found.of
    assert "are added to values of 2e+02" in found.said()
    assert not found.late
    assert lost(partial(Shifted, 1.0)) is None
    assert lost(Shifted, "16-true") is None


def test_a_large_number_that_was_rounded_before_it():
    found = lost(partial(Shifted, 389.0))
    assert (found.operation, found.mechanism) == ("add", "absorption")
    assert found.said().endswith(
        "of their size is error, as they had been rounded to 16 bits before it"
    )


def test_a_difference_that_cancels_is_told_before_a_sum_that_absorbs():
    class Both(Shifted):
        def forward(self, x):
            read = self.place + self.shift(x)
            return self.head((x + 1000) - 1000 + 0 * read)

    assert lost(Both).mechanism == "cancellation"


def at(line):
    name, _, number = line.rpartition(":")
    return name, int(number)


def test_a_difference_of_nearly_equal_numbers():
    found = lost(Gaps)
    assert (found.module, found.operation, found.mechanism) == ("", "sub", "cancellation")
    assert "test_lost_digits.py" in found.line
    assert found.size < 1 < 900 < found.of
    assert "is left of values of 1e+03" in found.said()


class Elsewhere(nn.Module):
    """Adds as many numbers in either precision, of which one has been spread out before."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        far = torch.full((2,), 1000.0, dtype=x.dtype)
        if x.dtype != torch.float32:
            far = far.expand_as(x)
        return self.head((x + far) - far)


def test_operands_of_other_shapes_are_another_way():
    assert lost(Elsewhere) is None


class Times(nn.Module):
    """The times themselves are large."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 2)

    def forward(self, x):
        return self.head(x[:, :1] - x[:, 1:])


def test_arguments_that_were_rounded_before():
    x = 1000 + torch.rand(64, 2, generator=torch.Generator().manual_seed(0))
    data = [(x, (x[:, 0] > x[:, 1]).long())]
    found = lost(Times, train_data=data, eval_data=data)
    assert found.late
    assert found.said().endswith("as they had been rounded to 16 bits before it")
    assert not lost(partial(Gaps, steep=True)).late


class Waves(Gaps):
    """Its angles come from somewhere, and are moved before they are read."""

    def __init__(self, made=True):
        super().__init__()
        self.made = made

    def forward(self, x):
        angles = x * 2000 if self.made else x
        angles = torch.cat([angles, angles], 1)
        return self.head(angles[:, :2].sin())


def test_what_makes_large_arguments_of_a_wave_loses_their_digits():
    found = lost(Waves)
    assert (found.operation, found.mechanism, found.then) == ("mul", "precision-loss", "sin")
    assert "angles = x * 2000" in linecache.getline(*at(found.line))
    assert "it rounds numbers of 5" in found.said()
    assert "of which sin is off by" in found.said()


def test_no_more_memory_is_held_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr("pytest_fp16.engine.gradients.origins.lost_digits._ROOM", 10)
    found = lost(Waves)
    assert (found.operation, found.then) == ("sin", "")


def test_a_function_that_is_steep_at_large_arguments():
    """Whoever made them."""
    x = 2000 * torch.rand(64, 2, generator=torch.Generator().manual_seed(0)) - 1000
    data = [(x, (x[:, 0] > x[:, 1]).long())]
    found = lost(partial(Waves, made=False), train_data=data, eval_data=data)
    assert (found.operation, found.mechanism, found.then) == ("sin", "precision-loss", "")
    assert "it is off by" in found.said()


@pytest.mark.parametrize(
    ("far", "name"), [(0.0, "bf16-true"), (1.0, "bf16-true"), (1e3, "bf16-mixed")]
)
def test_nothing_is_lost(far, name):
    """Beside small numbers, and in float32."""
    assert lost(partial(Gaps, far), name) is None


class Other(Gaps):
    """Goes another way in 16 bits."""

    def forward(self, x):
        return super().forward(x if x.dtype == torch.float32 else x + 0)


def test_programs_that_part_are_not_compared():
    assert lost(Other) is None


def test_the_gradient_check_names_it():
    found = gradient_check(subject(Gaps), precision("bf16-true"), Settings(), CPU)
    assert found.verdict == "not equivalent"
    assert (found.culprit.operation, found.culprit.mechanism) == ("sub", "cancellation")
    assert "batch noise" in found.culprit.evidence


def test_a_format_of_float32s_range_loses_no_gradient_by_underflow():
    """x + 1e-3 is x, and so the two halves of a gradient cancel altogether."""

    def slopes(model, batch):
        x, _ = batch
        x = x + 1
        return ((model(x + 1e-3) - model(x - 1e-3)).sum(-1) / 2e-3 - 1).square().mean()

    given = {"loss": None, "training_step": slopes}
    for name in ("bf16-true", "bf16-mixed"):
        found = gradient_check(
            subject(lambda: nn.Linear(2, 2), **given), precision(name), Settings(), CPU
        )
        assert found.verdict == "not equivalent"
        assert (found.culprit.module, found.culprit.mechanism) == ("<loss>", "cancellation")


class ByHand(torch.autograd.Function):
    """A slope written by hand, in which a difference of large numbers is left."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        far = x * 0 + 300
        return grad * ((far + 0.3) - far)


class Sloped(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)

    def forward(self, x):
        return ByHand.apply(super().forward(x))


def test_a_slope_by_hand_is_looked_at():
    found = lost(Sloped, "bf16-true")
    assert (found.operation, found.mechanism) == ("sub", "cancellation")
    line = ByHand.backward.__code__.co_firstlineno
    assert found.line.endswith(f"test_lost_digits.py:{line + 4}")


class Spread(nn.Module):
    """Outputs over squared gaps, of which every other row's are lost beside the larger ones."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        small = torch.arange(len(x), device=x.device)[:, None] % 2 == 1
        gap = (torch.where(small, x, 100 * x) + 1000) - 1000
        return self.head(x) / (gap * gap + 0.01)


def test_a_quotient_of_which_few_divisors_have_lost_their_digits():
    found = lost(Spread)
    assert (found.operation, found.mechanism) == ("div", "precision-loss")
    assert "test_lost_digits.py" in found.line


class Twice(nn.Linear):
    """Takes its own result twice, so that slopes are added up."""

    def __init__(self):
        super().__init__(2, 2)

    def forward(self, x):
        h = super().forward(x)
        return h.tanh() * h.sigmoid()


def test_torchs_own_sums_of_slopes_are_nobodys_line():
    """Called from here, the backward pass has this file below it."""
    held = subject(Twice)
    exact = Trainee(held, REFERENCE, 0, initial_state(held, 0), Place(CPU))
    digits = Digits(exact.model)
    observed(exact, held.train_data[0], digits, backwards=True)
    assert not [made.place for made in digits.made if "test_lost_digits" in str(made.place[2])]
