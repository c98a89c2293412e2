"""The program is traced as it would run, without rounding it and without leaving a trace in it."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from pytest_fp16.engine.emulation.cast_cache import nothing_kept
from pytest_fp16.engine.prediction.reverse import NotDifferentiableError
from pytest_fp16.engine.prediction.tracer import Tracer
from pytest_fp16.engine.untouched import Habits
from pytest_fp16.precision import precision
from pytest_fp16.subject import Evaluation
from pytest_fp16.telling import infer_task
from pytest_fp16.theory.rounding import FLOAT16

N = 12


@pytest.fixture
def x():
    return torch.randn(N, 6, generator=torch.Generator().manual_seed(0))


def tracer_of(model, x, name="16-true", **options):
    with torch.no_grad():
        out = model(x)
    task = infer_task("auto", out, None, len(x), -100)
    wanted, cpu = precision(name), torch.device("cpu")
    cast = model if wanted.mixed else model.half()
    return Tracer(
        cast, wanted, "cuda", cpu, Evaluation(model=model, data=[x]), task, **options
    ), task.canonical(out)


@pytest.mark.parametrize("name", ["16-true", "16-mixed"])
def test_values_are_those_of_float32_but_for_what_storage_rounds(x, name):
    torch.manual_seed(0)
    tracer, reference = tracer_of(
        nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), x, name
    )
    trace, canonical = tracer.trace(x, N, 0)
    assert tracer.formats == (FLOAT16,)
    assert canonical.shape == reference.shape
    assert torch.allclose(canonical, reference, atol=5e-3)
    assert not torch.equal(canonical, reference)
    assert trace.recorder.leaves  # where 16 bits would round
    assert tracer.dtypes["float16"] > 0


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.seen = nn.Linear(6, 3), 0

    def forward(self, x):
        self.seen += 1
        return self.body(x) + 0.1 * self.seen


@pytest.mark.parametrize("carries", [True, False])
def test_what_is_carried_along_is_left_for_the_next_batch(x, carries):
    model = Counting()
    tracer, _ = tracer_of(model, x, habits=Habits(carries))
    tracer.trace(x, N, 0)
    assert model.seen == 1  # the first run was not the tracer's


class Memoized(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.cache = nn.Linear(6, 3), {}

    def forward(self, x):
        if "weight" not in self.cache:
            self.cache["weight"] = self.body.weight * 1.1
        return x @ self.cache["weight"].T


def test_every_run_rounds_at_random_what_another_has_in_a_cache(x):
    model = Memoized()
    tracer, _ = tracer_of(model, x)
    model.cache.clear()
    noise = torch.Generator().manual_seed(0)
    first, second = (tracer.trace(x, N, 0, noise=noise)[0] for _ in range(2))
    assert not model.cache
    assert first.recorder.signature == second.recorder.signature


class OfTheWholeBatch(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y if len(x) == N else y[:1]


class NotInParts(nn.Linear):
    def forward(self, x):
        return super().forward(x.reshape(N, 6))


@pytest.mark.parametrize(
    ("kind", "said"),
    [(OfTheWholeBatch, "its part of the outputs"), (NotInParts, "does not run on a part")],
)
def test_a_part_of_a_batch_must_give_its_part_of_the_outputs(x, kind, said):
    tracer, _ = tracer_of(kind(6, 3), x)
    with pytest.raises(NotDifferentiableError, match=said):
        tracer.trace_part(x, N, [0, 1, 2], 0)


class Moving(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 3, bias=False)

    def forward(self, x):
        first = self.body(x)
        kept = self.body.weight.detach().clone()
        with torch.no_grad():
            self.body.weight.zero_()
        second = self.body(x)
        with torch.no_grad():
            self.body.weight.copy_(kept)
        return first + second


@pytest.mark.parametrize("kept", [True, False])
def test_a_weight_that_moves_within_a_pass_is_followed(x, kept):
    """By its old cast, where autocast keeps that; and by its new value, where it does not."""
    torch.manual_seed(0)
    tracer, reference = tracer_of(Moving(), x, "16-mixed", habits=Habits(writes=True))
    with nullcontext() if kept else nothing_kept():
        _, canonical = tracer.trace(x, N, 0)
    assert torch.allclose(canonical, reference * (2 if kept else 1), atol=5e-3)
