"""A forward pass that leaves no trace in what a model keeps beside its weights."""

from collections import Counter, OrderedDict, defaultdict, deque
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.check import gradient_check
from pytest_fp16.engine.untouched import State, formats_of, plain_tensors, untouched
from pytest_fp16.precision import precision
from pytest_fp16.settings import Settings


class Keeper(nn.Module):
    """Keeps something in every way there is."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("replaced", torch.zeros(3))
        self.plain, self.count, self.ratio = torch.zeros(3), 0, 1.0
        self.queue, self.recent, self.named = [], deque(maxlen=2), {}

    def forward(self, x):
        with torch.no_grad():
            self.mean.lerp_(x.mean(0), 0.5)
            self.replaced = x.mean(0)
            self.plain += 1
            self.frozen.weight.lerp_(self.body.weight, 0.5)
        self.count += 1
        self.ratio *= 0.5
        self.queue.append(x)
        self.recent.append(x)
        self.named["last"] = x
        self.lazy = x
        return self.body(x)


def kept(model):
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    sizes = [len(held) for held in (model.queue, model.recent, model.named)]
    return tensors | {"plain": model.plain.clone()}, (model.count, model.ratio, sizes)


def test_without_values_what_is_kept_is_as_it_was_but_not_what_is_written():
    model = Keeper()
    _, (count, ratio, sizes) = kept(model)
    with untouched(model, values=False):
        model(torch.ones(2, 3))
    after, (*numbers, lengths) = kept(model)
    assert (numbers, lengths) == ([count, ratio], sizes)
    assert not hasattr(model, "lazy")
    assert not after["replaced"].any()
    assert after["mean"].all()


def test_everything_is_as_it_was():
    model = Keeper()
    before, counts = kept(model)
    with untouched(model):
        model(torch.ones(2, 3))
        assert kept(model)[1] == (1, 0.5, [1, 1, 1])
    after, counted = kept(model)
    assert [n for n in before if not torch.equal(after[n], before[n])] == []
    assert counted == counts
    assert not hasattr(model, "lazy")


def test_it_is_after_an_error_too():
    model = Keeper()
    with pytest.raises(RuntimeError, match="size of tensor"), untouched(model):
        model(torch.ones(2, 4))
    assert (model.count, len(model.queue)) == (0, 0)


class Mean(nn.Module):
    """Evaluates with the plain mean of its weights since some step."""

    def __init__(self, start):
        super().__init__()
        self.body, self.mean = nn.Linear(4, 3), nn.Linear(4, 3).requires_grad_(False)
        self.start, self.step = start, 0

    def forward(self, x):
        self.step += 1
        with torch.no_grad():
            for kept, new in zip(self.mean.parameters(), self.body.parameters(), strict=True):
                kept += (new - kept) / max(1, self.step - self.start)
        return self.body(x) if self.training else self.mean(x)


class Annealed(nn.Module):
    """A second output whose weight grows with the steps that it has seen."""

    def __init__(self):
        super().__init__()
        self.body, self.other, self.step = nn.Linear(4, 3), nn.Linear(4, 3), 0

    def forward(self, x):
        self.step += self.training
        return self.body(x) + 0.2 * min(self.step, 50) * self.other(x)


class Memory(nn.Module):
    """Keeps the inputs that it has seen."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(0, 4))

    def forward(self, x):
        if self.training:
            self.seen = torch.cat([self.seen, x.detach()])[-100:]
        return self.body(x)


class Teacher(nn.Module):
    """Follows averages of its own weights, which it keeps in a plain list."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.averages = [p.detach().clone() for p in self.body.parameters()]

    def forward(self, x):
        if self.training:
            for kept, new in zip(self.averages, self.body.parameters(), strict=True):
                kept.lerp_(new.detach().to(kept.dtype), 0.5)
        weight, bias = (a.to(x.dtype) for a in self.averages)
        return self.body(x) + 4 * nn.functional.linear(x, weight, bias)


def scripted():
    return torch.jit.script(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))


def found(make, name):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 4, generator=generator)
    y = x[:, :3].argmax(-1)
    data = list(zip(x.split(32), y.split(32), strict=True))
    subject = Training(
        model=make,
        optimizer=partial(torch.optim.SGD, lr=0.01),
        loss=nn.functional.cross_entropy,
        train_data=data,
        eval_data=data,
        epochs=6,
    )
    return gradient_check(subject, precision(name), Settings(), torch.device("cpu"))


@pytest.mark.parametrize("make", [partial(Mean, 20), Annealed, Memory, Teacher])
@pytest.mark.parametrize("name", ["16-true", "16-mixed", "bf16-mixed"])
def test_the_check_leaves_what_a_model_keeps_alone(make, name):
    answer = found(make, name)
    assert answer.verdict == "equivalent", answer.reason


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, and says so from inside, too
def test_the_check_follows_a_scripted_model():
    assert found(scripted, "16-true").verdict == "equivalent"


class Adversary(nn.Module):
    """Has an optimizer of its own for a part of it."""

    def __init__(self):
        super().__init__()
        self.draws, self.tells = nn.Linear(4, 4), nn.Linear(4, 1)
        self.own = torch.optim.SGD(self.tells.parameters(), lr=0.1, momentum=0.9)

    def step(self, x):
        self.own.zero_grad()
        nn.functional.softplus(self.tells(self.draws(x).detach())).mean().backward()
        self.own.step()


def test_an_optimizer_of_the_models_own_has_not_stepped():
    model = Adversary()
    model.step(torch.ones(2, 4))
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    (momentum, _) = (s["momentum_buffer"].clone() for s in model.own.state.values())
    with untouched(model):
        model.step(torch.ones(2, 4))
        assert not torch.equal(model.tells.weight, weights["tells.weight"])
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert torch.equal(model.own.state[model.tells.weight]["momentum_buffer"], momentum)


def test_tensors_that_cannot_be_written_are_left_alone():
    class Expanded(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.ones(1).expand(4))
            self.scale = torch.full((1,), 2.0).expand(3)

    model = Expanded()
    with untouched(model):
        pass
    assert model.mask.stride() == (0,)
    assert torch.equal(model.scale, torch.full((3,), 2.0))


def test_what_was_kept_at_another_time_takes_its_place_meanwhile():
    model = Keeper()
    start = State(model, weights=False)
    with torch.no_grad():
        model(torch.ones(2, 3))
    now, count = model.mean.clone(), model.count
    with untouched(model, weights=False, since=start):
        assert model.count == 0
        assert (model.mean == 0).all()
        model(torch.ones(2, 3))
    assert model.count == count
    assert torch.equal(model.mean, now)


def test_what_has_moved_is_told():
    keeper = Keeper()
    state = State(keeper, weights=False)
    assert not state.moved
    keeper.mean += 1
    assert state.moved
    state.restore()
    assert not state.moved
    keeper.count += 1
    assert state.moved


def test_an_attribute_of_several_formats_has_none_of_its_own():
    model = nn.Module()
    model.kept = [torch.ones(2), torch.ones(2).half()]
    assert formats_of(model) == {"kept[0]": torch.float32, "kept[1]": torch.float16}


def test_nested_containers_are_as_they_were_and_weights_under_another_name_are_not_copied():
    model = nn.LSTM(3, 3)
    model.nested = {"averages": [torch.zeros(3)], "none": None}
    model.recent = deque([torch.zeros(3)])
    with untouched(model, weights=False):
        model.nested["averages"][0] += 1
        model.recent[0] += 1
        model.nested["averages"].append(torch.ones(3))
        with torch.no_grad():
            model.weight_ih_l0.zero_()
    assert len(model.nested["averages"]) == 1
    assert not model.nested["averages"][0].any()
    assert not model.recent[0].any()
    assert not model.weight_ih_l0.any()  # though `_flat_weights` holds it as well


@pytest.mark.parametrize("made", [OrderedDict, partial(defaultdict, list), Counter])
@pytest.mark.parametrize("before", [{}, {"old": [1]}])
def test_caches_in_dictionaries_of_other_types_are_as_they_were(made, before):
    model, helper = nn.Linear(3, 3), SimpleNamespace(average=torch.zeros(3))
    model.cache, model.helper = made(), helper
    model.cache.update(before)
    helper.seen = made()
    with untouched(model, values=False):
        for cache in (model.cache, helper.seen):
            cache["new"] = torch.ones(3)
            cache.pop("old", None)
    assert (model.cache, helper.seen) == (before, {})


def test_weights_are_remembered_from_a_model_that_has_them_still():
    source, model = nn.Linear(3, 3), nn.Linear(3, 3).half()
    start = State(model, weights=False)
    start.remember(source)
    start.restore()
    assert torch.equal(model.weight, source.weight.half())


def test_tensors_in_plain_attributes_have_names():
    keeper = Keeper()
    keeper.queue, keeper.named = [torch.ones(2)], {"a": (torch.ones(1), 3)}
    keeper.weights = [keeper.body.weight, keeper.body.weight.detach()]
    keeper.cache = OrderedDict(b=torch.ones(1))
    outer = nn.Sequential(keeper)
    names = {"0.plain", "0.queue[0]", "0.named[a][0]", "0.cache[b]"}
    assert set(plain_tensors(outer)) == names
