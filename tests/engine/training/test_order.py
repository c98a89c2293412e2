"""The data and its order belong to (seed, epoch), whatever a model draws in between."""

import random
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from pytest_fp16.engine.training.order import (
    generators,
    is_part_of,
    ordered,
    preserved_generators,
    same_batch,
    step_seed,
)

X = torch.arange(24.0)
DATA = TensorDataset(X)


class Jittered(torch.utils.data.Dataset):
    """Augments by every generator there is."""

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i] + torch.rand(()) + np.random.rand() + random.random()


def own():
    return torch.Generator().manual_seed(5)


LOADERS = {
    "global generator": lambda: DataLoader(DATA, 4, shuffle=True),
    "its own generator": lambda: DataLoader(DATA, 4, shuffle=True, generator=own()),
    "its sampler's": lambda: DataLoader(DATA, 4, sampler=RandomSampler(DATA, generator=own())),
    "sampler with epochs": lambda: DataLoader(
        DATA, 4, sampler=DistributedSampler(DATA, num_replicas=1, rank=0)
    ),
    "a list": lambda: [(x,) for x in X.split(4)],
    "augmentations": lambda: DataLoader(Jittered(), 4, shuffle=True),
}


def drawn(data, seed, epoch, between=lambda: None):
    found = []
    for batch in ordered(data, seed, epoch):
        found.append(batch[0] if isinstance(batch, (list, tuple)) else batch)
        between()
    return torch.cat(found)


def drop():
    torch.rand(7), np.random.rand(3), random.random()


@pytest.mark.parametrize("kind", LOADERS)
def test_a_seed_and_epoch_say_all(kind):
    data = LOADERS[kind]()
    first = drawn(data, 1, 0)
    torch.rand(5)
    assert torch.equal(drawn(data, 1, 0), first)
    assert torch.equal(drawn(LOADERS[kind](), 1, 0), first)
    assert torch.equal(drawn(data, 1, 0, between=drop), first)  # a model with dropout
    assert not torch.equal(drawn(data, 2, 0), first)
    assert not torch.equal(drawn(data, 1, 1), first)


@pytest.mark.parametrize("kind", [k for k in LOADERS if k != "augmentations"])
def test_an_epoch_is_all_of_the_data(kind):
    assert torch.equal(drawn(LOADERS[kind](), 3, 2).sort().values, X)


def test_what_a_model_draws_depends_on_the_step_alone():
    def dropped(data):
        return [torch.rand(()) for _ in ordered(data, 0, 0)]

    plain, hungry = dropped(LOADERS["a list"]()), dropped(LOADERS["augmentations"]())
    assert plain == hungry
    assert len(set(map(float, plain))) == len(plain)


@given(st.lists(st.tuples(*[st.integers(0, 999)] * 3), min_size=2, max_size=9, unique=True))
def test_steps_have_seeds_of_their_own(places):
    seeds = [step_seed(*place) for place in places]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_every_generator_is_found_once():
    one, two = own(), own()
    loader = DataLoader(DATA, 4, sampler=RandomSampler(DATA, generator=one), generator=two)
    assert {id(g) for g in generators(loader)} == {id(one), id(two)}
    assert len(generators(loader)) == 2  # the batch sampler holds the sampler, too
    assert generators([X]) == []


def test_the_users_generators_are_given_back():
    loader = LOADERS["its own generator"]()
    before = loader.generator.get_state()
    with suppress(ZeroDivisionError), preserved_generators(loader, [X]):
        drawn(loader, 0, 0)
        assert not torch.equal(loader.generator.get_state(), before)
        raise ZeroDivisionError
    assert torch.equal(loader.generator.get_state(), before)


def test_batches_are_the_same_by_their_tensors():
    assert same_batch((X, {"y": X}), (X.clone(), {"y": X.clone()}))
    assert not same_batch((X, X), (X, X + 1))
    assert not same_batch((X,), (X, X))
    assert not same_batch((X,), (X.reshape(4, 6),))


BATCHES = [(x, x > 3) for x in X.view(6, 4)]
MASKED = [(X, X > 3)]


@pytest.mark.parametrize(
    ("evaluated", "trained", "part"),
    [
        (BATCHES, BATCHES, True),
        (list(BATCHES), BATCHES, True),
        (BATCHES[:2], BATCHES, True),
        (BATCHES, BATCHES[:2], False),
        ([(x.clone(), y) for x, y in BATCHES], BATCHES, False),
        ([(X, X > 5)], MASKED, False),  # one graph, other labels
        ([X[4:]], [X[:4]], False),
        ([X.view(4, 6).t()], [X.view(6, 4)], False),
        ([X.to_sparse()], [X.to_sparse()], False),
        ([], BATCHES, False),
        (["some", "texts"], ["texts"], False),
        (DataLoader(DATA, 3), DataLoader(DATA, 4, shuffle=True), True),
        (DataLoader(DATA, 3), DataLoader(TensorDataset(X), 3), False),
        (
            DataLoader(DATA, sampler=SubsetRandomSampler(range(4))),
            DataLoader(DATA, sampler=SubsetRandomSampler(range(4, 24))),
            False,
        ),
        (DataLoader(DATA, 3), BATCHES, False),
    ],
)
def test_data_that_is_trained_on_is_known(evaluated, trained, part):
    assert is_part_of(evaluated, trained) is part
