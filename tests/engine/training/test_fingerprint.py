"""A fingerprint changes with what a training depends on, and with nothing else."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pytest_fp16.engine.training import fingerprint as home
from pytest_fp16.engine.training.fingerprint import Fingerprint, feed_data

RATE = 0.1


def of(*values):
    made = Fingerprint()
    for value in values:
        made.feed(value)
    return made.hexdigest()


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(plain, plain)
def test_plain_values_are_told_apart_by_type_and_value(one, two):
    assert (of(one) == of(two)) == (repr(one) == repr(two))


def test_what_is_fed_is_delimited():
    assert Fingerprint().text("ab", "c").hexdigest() != Fingerprint().text("a", "bc").hexdigest()
    assert of([1, 2], [3]) != of([1], [2, 3])
    assert of([1], [1]) != of([[1], [1]])


def test_tensors_are_told_by_every_value_their_shape_and_dtype():
    x = torch.arange(6.0)
    changed = x.clone()
    changed[4] += 1e-6
    assert of(x) == of(x.clone()) == of(x.clone().requires_grad_())
    assert len({of(v) for v in (x, changed, x.reshape(2, 3), x.double(), x.half())}) == 5
    assert of(x.reshape(2, 3).t()) == of(x.reshape(2, 3).t().contiguous())
    assert of(x.to_sparse()) != of(changed.to_sparse())


def test_a_tensor_larger_than_memory_allows_is_told_by_some_of_its_rows(monkeypatch):
    monkeypatch.setattr(home, "_WHOLE", 64)
    x = torch.zeros(1000, 2)
    last = x.clone()
    last[-1] = 1.0
    assert of(x) != of(last)
    assert of(x.numpy()) != of(last.numpy())
    assert of(x) == of(x.clone())


def test_arrays_are_told_by_their_values():
    x = np.arange(3.0)
    assert of(x) == of(x.copy())
    assert len({of(v) for v in (x, x + 1, x.astype("f4"), x.reshape(1, 3))}) == 4
    assert of(np.array(["a", None], object)) != of(np.array(["b", None], object))


def made(factor):
    def loss(z, y, weight=2.0, *, power=1):
        return (z - y) * factor * RATE * weight**power

    return loss


def test_functions_are_told_by_code_defaults_closure_and_globals(monkeypatch):
    before = of(made(1.0))
    assert of(made(1.0)) == before
    assert of(made(2.0)) != before
    for name, value in (("__defaults__", (3.0,)), ("__kwdefaults__", {"power": 2})):
        changed = made(1.0)
        setattr(changed, name, value)
        assert of(changed) != before
    assert of(lambda x: x + 1) != of(lambda x: x + 2)
    monkeypatch.setitem(globals(), "RATE", 0.2)
    assert of(made(1.0)) != before


def test_partials_and_methods_are_told_by_what_they_hold():
    base = of(functools.partial(made(1.0), weight=2.0))
    assert base != of(functools.partial(made(1.0), weight=3.0))
    assert base != of(functools.partial(made(2.0), weight=2.0))
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    assert of(one.forward) != of(two.forward)


def test_of_a_library_the_version_counts_and_not_the_code(monkeypatch):
    before = of(nn.functional.cross_entropy)
    assert before != of(nn.functional.mse_loss)
    monkeypatch.setattr(home, "_package_version", lambda name: "0.0")
    assert of(nn.functional.cross_entropy) != before


class Scaled(nn.Module):
    factor = 1.0

    def forward(self, x):
        return x * self.factor


@dataclass
class Options:
    rate: float
    name: str = "a"


class Plain:
    def __init__(self, value):
        self.value = value


def test_objects_are_told_by_what_they_hold_and_their_class(monkeypatch):
    assert of(Options(0.1)) == of(Options(0.1))
    assert len({of(v) for v in (Options(0.1), Options(0.2), Options(0.1, "b"))}) == 3
    assert of(Plain(1)) == of(Plain(1)) != of(Plain(2))
    before = of(Scaled())
    changed = Scaled()
    changed.extra = 3
    assert of(changed) != before
    monkeypatch.setattr(Scaled, "factor", 2.0)
    assert of(Scaled()) != before


def test_a_module_is_told_by_its_weights_and_its_shape():
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    two = nn.Sequential(one[0], nn.Tanh())
    assert of(one) != of(two)
    before = of(one)
    with torch.no_grad():
        one[0].bias.add_(1e-3)
    assert of(one) != before


def test_what_refers_to_itself_ends():
    ring = [1]
    ring.append(ring)
    assert of(ring) == of(ring)


def test_generators_have_no_setting():
    assert of(torch.Generator().manual_seed(1)) == of(torch.Generator().manual_seed(2))
    assert of(np.random.default_rng(1)) == of(np.random.default_rng(2))


class Squares(Dataset):
    def __init__(self, count, offset=0):
        self.count, self.offset = count, offset

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return torch.tensor(float(i**2 + self.offset))


def data(value, first=()):
    into = Fingerprint()
    feed_data(into, value, list(first))
    return into.hexdigest()


@pytest.mark.parametrize("made", [list, tuple], ids=["a list", "a tuple"])
def test_batches_are_fed_whole(made):
    batches = made(torch.arange(100.0).split(10))
    changed = made([*batches[:-1], batches[-1] + 1e-3])
    assert data(batches) == data(made(torch.arange(100.0).split(10))) != data(changed)


def test_a_loader_is_told_by_a_look_at_its_data():
    x = torch.arange(100.0)
    loaders = [
        DataLoader(TensorDataset(x), 10),
        DataLoader(TensorDataset(x + 1e-3), 10),
        DataLoader(TensorDataset(x), 20),
        DataLoader(TensorDataset(x), 10, drop_last=True),
        DataLoader(TensorDataset(x), 10, shuffle=True),
        DataLoader(Squares(100), 10),
        DataLoader(Squares(100, offset=1), 10),
        DataLoader(Squares(101), 10),
    ]
    assert len({data(loader) for loader in loaders}) == len(loaders)
    assert data(loaders[5]) == data(DataLoader(Squares(100), 10))
    assert data(loaders[0], [x]) != data(loaders[0], [x + 1])  # transforms show in the first


def test_sets_and_addresses_do_not_depend_on_the_process():
    code = (
        "from pytest_fp16.engine.training.fingerprint import Fingerprint\n"
        "f = lambda x: x in {'a', 'b', 'c', 'd'} or object\n"
        "print(Fingerprint().feed(f).feed({'x', 'y', 'z'}).feed(object()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_a_path_is_no_setting():
    assert Fingerprint().feed(Path("/a")).hexdigest() == Fingerprint().feed(Path("/b")).hexdigest()
    assert Fingerprint().feed("/a").hexdigest() != Fingerprint().feed("/b").hexdigest()


class Nested:
    class Inner:
        rate = 1.0

    rates: ClassVar = [1.0]

    @functools.cached_property
    def cached(self):
        return 1.0


@functools.lru_cache
def kept(x):
    return x * RATE


def test_a_class_is_told_by_all_it_holds(monkeypatch):
    before = of(Nested)
    monkeypatch.setattr(Nested.Inner, "rate", 2.0)
    inner = of(Nested)
    monkeypatch.setattr(Nested, "rates", [2.0])
    listed = of(Nested)
    monkeypatch.setattr(Nested.cached, "func", lambda self: 2.0)
    assert len({before, inner, listed, of(Nested)}) == 4


@pytest.mark.parametrize("name", ["__annotations_cache__", "__annotations__", "__firstlineno__"])
def test_what_python_notes_on_a_class_is_none_of_it(name):
    """Python 3.14 remembers annotations once somebody has asked for them."""

    def a_class(**more):
        return type("Same", (), {"width": 3, **more})

    assert of(a_class(**{name: {"width": int}})) == of(a_class())
    assert of(a_class(other={"width": int})) != of(a_class())


def test_a_function_that_keeps_its_results_is_told_by_what_it_wraps(monkeypatch):
    before = of(kept)
    monkeypatch.setitem(globals(), "RATE", 0.3)
    assert of(kept) != before


def chain(length, last):
    """A function that calls another, and so on, each in a namespace that holds them all."""
    scope = {"last": last}
    for i in range(length):
        called = f"f{i - 1}(x)" if i else "x * last"
        exec(f"def f{i}(x): return {called}", scope)
    return scope[f"f{length - 1}"]


def test_calls_are_followed_however_deep():
    assert of(chain(500, 1.0)) == of(chain(500, 1.0)) != of(chain(500, 2.0))


def test_of_a_module_that_is_handed_about_the_text_counts(tmp_path, monkeypatch):
    file = tmp_path / "handed_about.py"
    file.write_text("RATE = 1.0")
    monkeypatch.syspath_prepend(tmp_path)
    import handed_about

    before = of(functools.partial(print, handed_about))
    file.write_text("RATE = 2.0")
    assert of(functools.partial(print, handed_about)) != before
    assert of(np) == of(np)
