"""Tensors are reached in what people keep them in, and the containers stay what they are."""

from collections import UserDict, namedtuple
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.batching import cast_floating, count_inputs, split_batch, take
from pytest_fp16.engine.containers import (
    all_tensors,
    dataclass_fields,
    foreign,
    leaves,
    map_tensors,
    mapping_like,
    named_parts,
    with_parts,
)

X, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])


@dataclass(frozen=True)
class Sample:
    x: Tensor
    names: list[str] = field(default_factory=list)


class Graph:
    """Like a graph library's: attributes, and a `to` for devices."""

    def __init__(self, **held):
        self.__dict__.update(held)

    def to(self, device):
        return self


class Encoding(UserDict):
    """Like a tokenizer's: keys that are attributes."""

    def __getattr__(self, name):
        return self.data[name]


def packed():
    return pack_padded_sequence(X[..., None], torch.tensor([1, 3, 2, 2]), True, False)


def test_every_tensor_of_a_nest_is_reached():
    Pair = namedtuple("Pair", "a b")
    nest = {"x": [X, (Y, None)], "p": Pair(X, "text"), "s": Sample(X), "g": Graph(x=X, n=3)}
    changed = cast_floating(nest, torch.float16)

    dtypes = [torch.float16, torch.int64, *[torch.float16] * 3]
    assert [t.dtype for t in all_tensors(changed)] == dtypes
    assert isinstance(changed["p"], Pair)
    assert changed["p"].b == "text"
    assert isinstance(changed["s"], Sample)
    assert changed["g"].n == 3
    assert nest["g"].x is X, "what the user handed over is not changed"
    assert map_tensors(3, lambda t: t) == 3


def test_a_mapping_stays_what_it_is():
    batch = Encoding(ids=X, mask=Y, labels=Y)
    inputs, labels = split_batch(batch, None)

    assert labels is Y
    assert isinstance(inputs, Encoding)
    assert inputs.ids is X
    assert "labels" not in inputs
    assert "labels" in batch, "what the user handed over is not changed"
    assert cast_floating(inputs, torch.float16).ids.dtype == torch.float16
    assert mapping_like({"a": 1}, {"b": 2}) == {"b": 2}


def test_packed_sequences_are_cast_counted_and_cut():
    low = cast_floating(packed(), torch.float16)
    assert isinstance(low, PackedSequence)
    assert low.data.dtype == torch.float16

    few = take((packed(), Y), 4, [1, 1, 0])
    padded, lengths = pad_packed_sequence(few[0], batch_first=True)
    assert lengths.tolist() == [3, 3, 1]
    assert torch.equal(padded[0, :, 0], X[1])
    assert few[1].tolist() == [1, 1, 0]
    assert count_inputs(packed(), None) == 4


def test_what_cannot_be_looked_into_is_known():
    assert foreign((X, packed(), "text", Sample(X), None)) == []
    assert foreign([Graph(inner=Graph(x=X)), X]) == ["Graph"]
    assert list(leaves({"a": 3, "b": [X]})) == [3, X]


class Attribute(nn.Module):
    """Reads a tensor from an object."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(10, 3)

    def forward(self, batch):
        return self.layer(batch.store.x if hasattr(batch, "store") else batch.x)


class Recurrent(nn.Module):
    """Reads packed sequences."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(1, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, batch):
        return self.head(self.cell(batch)[1][-1])


def test_a_batch_in_a_dataclass_is_cast_with_the_model():
    torch.manual_seed(0)
    report = check(Evaluation(model=Attribute(), data=[Sample(torch.randn(9, 10))]))
    assert report.verdict == "equivalent"


def test_a_packed_batch_is_checked():
    torch.manual_seed(0)
    lengths = torch.tensor([1, 5, 2, 2])
    batch = pack_padded_sequence(torch.randn(4, 5, 1), lengths, True, False)
    report = check(Evaluation(model=Recurrent().eval(), data=[batch]), precision="bf16-true")
    assert report.verdict == "equivalent"
    assert report.inputs == 4


def test_an_object_that_cannot_be_cast_is_said():
    torch.manual_seed(0)
    inner = type("Store", (), {})()
    inner.x = torch.randn(4, 10)
    evaluation = Evaluation(model=Attribute(), data=[(Graph(store=inner), Y)])
    assert any("type Graph" in w and "stay float32" in w for w in check(evaluation).warnings)
    mixed = check(evaluation, precision="16-mixed")
    assert not any("Graph" in w for w in mixed.warnings)


class Node:
    """Of a tree, as people keep it: it knows its children and its parents."""

    def __init__(self, x=None):
        self.x, self.children, self.parents = x, [], []

    @classmethod
    def pair(cls, *held):
        root, child = map(cls, held)
        root.children.append(child)
        child.parents.append(root)
        return root


def test_what_holds_itself_is_walked_once():
    root, loop = Node.pair(X, Y), [X]
    loop.append(loop)
    assert [id(t) for t in all_tensors(root)] == [id(X), id(Y)]
    assert [id(t) for t in leaves(loop)] == [id(X)]
    changed = map_tensors(root, lambda t: t + 1)
    assert torch.equal(changed.x, X + 1)
    assert torch.equal(changed.children[0].x, Y + 1)
    assert torch.equal(root.x, X)


def test_a_model_may_keep_a_tree_whose_nodes_know_their_parents():
    class Keeps(nn.Linear):
        def __init__(self, *held):
            super().__init__(3, 2)
            self.tree, self.log = Node.pair(*held), []
            self.log.append(self.log)

    torch.manual_seed(0)
    for model in (Keeps(None, None).eval(), lambda: Keeps(torch.ones(2), torch.ones(2))):
        assert check(Evaluation(model, [torch.randn(16, 3)], labelled=False)).equivalent


def doubled(inner, depth):
    for _ in range(depth):
        inner = [inner, inner]
    return inner


def test_what_is_held_in_two_ways_is_gone_through_once():
    """Ways to a part double with each level: beyond some twenty no walk along each comes back."""
    held = Graph(deep=doubled([X], 8), other=doubled([], 8))
    assert len(all_tensors(held)) == 1
    made = map_tensors(held, lambda t: t + 1)
    assert made.deep[0] is made.deep[1] is not held.deep[0]
    assert len(all_tensors(made)) == 1
    assert torch.equal(all_tensors(made)[0], X + 1)
    assert made.other is held.other


def test_a_model_may_keep_the_same_list_in_very_many_ways():
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    model.empty, model.deep = doubled([], 60), doubled([X], 60)
    model.kept = Graph(deep=doubled([X.clone()], 60))
    assert check(Evaluation(model=model, data=[X], labelled=False)).verdict == "equivalent"


@dataclass
class Guarded:
    """A configuration that refuses what its layers have each of their own."""

    size: int = 3
    head: int = 0
    table: Tensor | None = None

    def __getattribute__(self, name):
        if name == "head":
            raise RuntimeError("'head' may vary across layers")
        return super().__getattribute__(name)


def test_an_attribute_that_is_refused_is_passed_over():
    config = Guarded(table=X)
    assert all(t is X for t in all_tensors([config]))
    assert len(all_tensors([config])) == 1
    assert dataclass_fields(config) == {"size": 3, "head": None, "table": X}

    class Configured(nn.Linear):
        def __init__(self):
            super().__init__(3, 3)
            self.config = Guarded()

    assert check(Evaluation(Configured(), [X], labelled=False), precision="bf16-true").forecast


class Keyed:
    """Is read by keys, which are attributes too, and keeps what they name in a store."""

    def __init__(self, **parts):
        self._store = parts

    def keys(self):
        return list(self._store)

    def __getitem__(self, key):
        return self._store[key]

    def __setitem__(self, key, part):
        self._store = {**self._store, key: part}

    def __getattr__(self, name):
        if name.startswith("_") or name not in self._store:
            raise AttributeError(name)
        return self._store[name]


class Kinds(Keyed):
    """Whose keys are those of its parts."""

    def keys(self):
        return ["x"]

    def __getitem__(self, key):
        raise AssertionError("it makes one")


def test_an_object_that_is_read_by_keys_has_its_parts_by_them():
    graph = Keyed(x=torch.ones(3), pos=torch.ones(2))
    assert list(named_parts(graph)) == ["x", "pos"]
    other = with_parts(graph, {"x": graph["x"].half(), "pos": graph["pos"]})
    assert (type(other), other.x.dtype, other.pos.dtype) == (Keyed, torch.float16, torch.float32)
    assert graph.x.dtype is torch.float32
    assert list(named_parts(Kinds(paper=torch.ones(1)))) == ["_store"]
