"""Programs that branch by torch.cond."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_fp16 import Evaluation, Settings
from pytest_fp16.conformance import examine
from pytest_fp16.engine.emulation.branches import branches_as_python


class Branching(nn.Module):
    def __init__(self, factor=1.0):
        super().__init__()
        self.first, self.head, self.factor = nn.Linear(20, 16), nn.Linear(16, 4), factor

    def forward(self, x):
        x = self.first(x)
        x = torch.cond(x.mean() > -1, lambda x: x.relu() * self.factor, torch.sin, (x,))
        return self.head(x / self.factor)


class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextmanager
def followed():
    with Seen(), branches_as_python():
        yield


def examined(factor, **settings):
    """A network with random weights, and the inputs of which it is sure."""
    torch.manual_seed(0)
    model, x = Branching(factor).eval(), torch.randn(300, 20)
    with torch.no_grad(), followed():
        first, second = model(x).topk(2).values.unbind(-1)
        x = x[first - second > 0.05]
        labels = model(x).argmax(-1)
    data = list(zip(x.split(50), labels.split(50), strict=True))
    settings = Settings(precisions=("16-true", "16-mixed", "bf16-true"), **settings)
    return examine(Evaluation(model=model, data=data), settings)


@pytest.mark.parametrize("emulate", ["always", "never"])
def test_a_sound_model_is_followed(emulate):
    for report in examined(1.0, emulate=emulate):
        assert (report.verdict, report.forecast.verdict) == ("equivalent", "equivalent")
        assert report.forecast.method == "adjoint"


def test_what_overflows_in_a_branch_is_found():
    half, mixed, brain = examined(1e5)
    assert brain.verdict == "equivalent"
    for report in (half, mixed):
        assert (report.verdict, report.forecast.verdict) == ("not equivalent", "not equivalent")


def test_a_predicate_per_example_and_other_errors_are_torchs_own():
    rows = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    with followed(), pytest.raises(RuntimeError, match="ambiguous"):
        torch.cond(rows > 0, torch.sin, torch.cos, (rows,))
    with Seen(), branches_as_python():
        cond = torch.cond
    halved = torch.vmap(lambda x: cond(x.sum() > 0, lambda x: x / 2, lambda x: x * 2, (x,)))
    assert torch.equal(halved(rows), torch.tensor([[0.5, 0.5], [-2.0, -2.0]]))


def test_torchs_own_is_put_back_and_kept_where_nothing_follows():
    own = torch.cond
    with branches_as_python():
        assert torch.cond is own
    with Seen(), branches_as_python():
        outer = torch.cond
        assert outer is not own
        with branches_as_python():
            assert torch.cond is not own
        assert torch.cond is outer
    assert torch.cond is own
