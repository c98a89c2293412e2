"""One model at one precision: its own copy, its outputs, and the proof of what it ran in."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation
from pytest_fp16.engine.candidate import Candidate, DtypeObserver, fresh_model
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.untouched import untouched
from pytest_fp16.precision import precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _state():
    with preserved_state():
        yield


def candidate(model, name="16-true", **more):
    return Candidate(
        fresh_model(model), precision(name), Evaluation(model=model, data=[], **more), CPU, "cuda"
    )


def mlp(*parts):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), *parts, nn.Linear(8, 3)).eval()
    return model.requires_grad_(False)


@pytest.fixture
def x():
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["16-true", "bf16-true", "16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("emulated", [True, False])
def test_outputs_are_those_of_the_16_bit_model(x, name, emulated):
    model = mlp(nn.GELU())
    out = candidate(model, name).outputs(x, 0, emulated=emulated)
    assert out.dtype == torch.float32
    assert not out.requires_grad
    wanted = precision(name)
    assert torch.equal(out.to(wanted.dtype).float(), out)  # values of the format
    error = float((out - model(x)).abs().max())
    roundoff = 2.0**-11 if wanted.dtype_name == "float16" else 2.0**-8
    assert 0 < error < 8 * roundoff * float(model(x).abs().max())


def test_the_users_model_stays_in_float32(x):
    model = mlp()
    candidate(model).outputs(x, 0)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_all_who_ask_where_it_is_share_hooks(x):
    ours = candidate(mlp())
    where = ours.where
    assert ours.where is where
    seen = []
    ours.model[1].register_forward_pre_hook(lambda *_: seen.append(where()))
    ours.outputs(x, 0)
    assert seen == ["1"]


def test_hooks_that_were_taken_off_are_made_again(x):
    ours = candidate(mlp())
    with untouched(ours.model):  # afterwards it has no hooks, as before
        before = ours.where
    seen = []
    now = ours.where
    ours.model[1].register_forward_pre_hook(lambda *_: seen.append((before(), now())))
    ours.outputs(x, 0)
    assert seen == [("", "1")]


def test_one_seed_draws_the_same_in_every_run(x):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand(x.shape).to(x.dtype)

    ours = candidate(Noisy())
    assert torch.equal(ours.outputs(x, 3), ours.outputs(x, 3))
    assert not torch.equal(ours.outputs(x, 3), ours.outputs(x, 4))


def test_a_function_of_the_users_own_calls_it(x):
    ours = candidate(mlp(), forward=lambda model, inputs: {"logits": model(inputs) * 0})
    assert ours.outputs(x, 0).count_nonzero() == 0


def test_every_copy_of_a_function_that_makes_models_has_the_same_weights():
    def make():
        return nn.Linear(3, 3)

    first = fresh_model(make)
    torch.rand(5)
    assert torch.equal(fresh_model(make).weight, first.weight)
    with torch.no_grad():
        first.weight.add_(1.0)  # loaded, or trained by the user's function
    copy = fresh_model(make, like=first)
    assert copy is not first
    assert torch.equal(copy.weight, first.weight)


def test_what_cannot_be_copied_is_made_again_with_its_weights():
    class Unique(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("there is one")

    first = fresh_model(lambda: Unique(3, 3))
    with torch.no_grad():
        first.weight.mul_(2.0)
    again = fresh_model(lambda: Unique(3, 3), like=first)
    assert torch.equal(again.weight, first.weight)


class Island(nn.Module):
    def forward(self, x):
        return (x.float() * 1.5).to(x.dtype)


def observed(x, model, name="16-true", emulated=True):
    ours = candidate(model, name)
    seen = DtypeObserver(ours.where)
    ours.outputs(x, 0, emulated=emulated, observer=seen)
    return seen


@pytest.mark.parametrize("emulated", [True, False])
def test_an_observer_counts_what_the_operations_gave(x, emulated):
    seen = observed(x, mlp(nn.ReLU()), emulated=emulated)
    assert dict(seen.dtypes) == {"float16": 2}  # a rectifier moves values, and proves nothing
    assert seen.read
    assert not seen.float32_modules


def test_an_island_is_named(x):
    seen = observed(x, mlp(Island()))
    assert list(seen.float32_modules) == ["1"]
    assert set(seen.dtypes) == {"float16", "float32"}


@pytest.mark.parametrize("emulated", [True, False])
def test_statistics_that_a_kernel_gives_beside_its_result_are_no_island(x, emulated):
    """The mean and deviation of a layer norm are float32, whatever it normalises."""
    seen = observed(x, mlp(nn.LayerNorm(8)), emulated=emulated)
    assert not seen.float32_modules


def test_a_model_that_never_leaves_float32_is_seen(x):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = 2.0

        def forward(self, x):
            return torch.ones(len(x), 3) * self.scale

    seen = observed(x, Wide())
    assert "float16" not in seen.dtypes
    assert not seen.read


def test_a_kernel_from_outside_is_named(x):
    library = torch.library.Library("fp16witness", "FRAGMENT")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CPU")

    class Own(nn.Module):
        def forward(self, x):
            return torch.ops.fp16witness.twice(x)

    try:
        assert observed(x, mlp(Own()), emulated=False).opaque == {"twice"}
    finally:
        library._destroy()
