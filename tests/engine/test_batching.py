from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_fp16.engine.batching import (
    FEWEST,
    PRIMES,
    batch_dim,
    cast_batch,
    cast_inputs,
    cast_module,
    chunks,
    count_inputs,
    holds,
    one_by_one,
    require_kept,
    split_batch,
    take,
)
from pytest_fp16.engine.containers import all_tensors
from pytest_fp16.errors import DataError, ModelError, SettingError

X, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])


def test_a_pair_is_inputs_and_labels():
    for batch in ((X, Y), [X, Y]):
        inputs, labels = split_batch(batch, None)
        assert inputs is X
        assert labels is Y
    assert split_batch(({"a": X}, Y), None)[0] == {"a": X}


def test_a_dict_with_labels_is_a_labelled_batch():
    for key in ("labels", "label"):
        inputs, labels = split_batch({"a": X, key: Y}, None)
        assert list(inputs) == ["a"]
        assert labels is Y
    assert split_batch({"a": X}, None) == ({"a": X}, None)
    assert set(split_batch({"a": X, "labels": Y}, False)[0]) == {"a", "labels"}


def test_unlabelled_batches():
    assert split_batch(X, None) == (X, None)
    assert split_batch([X], None) == (X, None)
    assert split_batch((X, X), False) == ((X, X), None)


def test_labels_that_are_missing_are_an_error():
    with pytest.raises(DataError, match="labelled=True"):
        split_batch(X, True)


def test_inputs_are_counted_by_their_labels():
    assert count_inputs(torch.zeros(7, 4), Y) == 4
    assert count_inputs(torch.zeros(7, 4), torch.zeros(0, 6)) == 7  # pictures without a box
    assert count_inputs(torch.zeros(0, 4), torch.zeros(0, 6)) == 0
    assert count_inputs({"scale": torch.tensor(1.0), "x": X}, None) == 4
    with pytest.raises(DataError, match=r"no tensor .* holds str"):
        count_inputs("text", None)


def test_the_batch_may_come_second():
    assert batch_dim(torch.zeros(4, 9), 4) == 0
    assert batch_dim(torch.zeros(9, 4, 2), 4) == 1
    assert batch_dim(torch.zeros(9, 2, 4), 4) is None
    time_first = torch.arange(8.0).view(2, 4)
    assert take({"x": time_first, "k": torch.ones(3)}, 4, [3, 3])["x"].tolist() == [[3, 3], [7, 7]]


@given(n=st.integers(0, 300), size=st.sampled_from(PRIMES[1:]))
def test_chunks_cover_every_input_once_and_are_prime(n, size):
    parts = chunks(n, size)

    assert [i for indices, kept in parts for i in indices[:kept]] == list(range(n))
    assert all(len(indices) in PRIMES and len(indices) <= size for indices, _ in parts)
    assert all(set(indices[kept:]) <= {indices[kept - 1]} for indices, kept in parts)
    assert len(parts) == -(-n // size)  # rounded up


def test_chunks_are_of_one_size_so_that_no_small_one_is_left_over():
    assert [len(indices) for indices, _ in chunks(250, 131)] == [127, 127]
    assert [len(indices) for indices, _ in chunks(128, 131)] == [131]
    assert [kept for _, kept in chunks(140, 131)] == [70, 70]


def test_one_that_is_left_over_does_not_stand_alone():
    assert [kept for _, kept in chunks(32, 31, FEWEST)] == [16, 16]
    assert chunks(7, 5, FEWEST)[1] == ([4, 5, 6, 6, 6], 3)
    assert chunks(1, 31, FEWEST) == [([0] * 5, 1)]
    assert chunks(2, 1, FEWEST) == [([0], 1), ([1], 1)]
    assert chunks(1, 31) == [([0], 1)]


def test_a_model_that_refuses_to_be_cast():
    class ByName(torch.nn.Linear):
        def half(self):
            raise ValueError("`.half()` is not supported")

    class AtAll(ByName):
        def to(self, *_):
            raise ValueError("`.to` is not supported")

    assert cast_module(ByName(2, 2), torch.float16).weight.dtype == torch.float16
    with pytest.raises(ModelError, match=r"to float16 \(ValueError: `.half\(\)` is not.*mixed"):
        cast_module(AtAll(2, 2), torch.float16)


class Graph:
    def __init__(self, nodes):
        self.nodes = nodes


class Pair(NamedTuple):
    first: Graph
    second: Graph


def test_a_list_of_objects_holds_one_for_each_input():
    graphs = [Graph(torch.ones(5)) for _ in range(3)]
    assert one_by_one(graphs, 3)
    assert one_by_one([{"image": torch.ones(3, 4, 4)}] * 2, 2)
    assert not one_by_one(graphs, 5)
    assert not one_by_one([torch.ones(3), torch.ones(3)], 2)
    assert not one_by_one([graphs[0], torch.ones(3)], 2)
    assert not one_by_one({"x": torch.ones(1)}, 1)
    texts, summaries = {"ids": torch.ones(2, 9)}, {"ids": torch.arange(10).view(2, 5)}
    assert not one_by_one((texts, summaries), 2)  # arguments for a batch of two
    assert take((texts, summaries), 2, [1])[1]["ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert not one_by_one(Pair(graphs[0], graphs[1]), 2)
    assert take(graphs, 3, [2, 0, 0]) == [graphs[2], graphs[0], graphs[0]]


def test_merged_graphs_say_how_many_they_were():
    merged = Graph(torch.ones(12))
    assert not holds(merged, 3)
    merged.num_graphs = 3
    assert holds(merged, 3)
    assert not holds(merged, 12)
    assert holds([Graph(torch.ones(5))] * 2, 2)


T, IDS = torch.full((2,), 999.7), torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("inputs", "keep", "dtypes"),
    [
        ((X, T, IDS), [1], [torch.float16, torch.float32, torch.int64]),
        ([X, T], [], [torch.float16, torch.float16]),
        ({"x": X, "t": T}, ["t"], [torch.float16, torch.float32]),
        ({"x": X, "more": {"t": [T]}}, ["more"], [torch.float16, torch.float32]),
        (Pair(X, T), ["second"], [torch.float16, torch.float32]),
        (Graph(X), ["nodes"], [torch.float32]),
        (T, [0], [torch.float32]),
    ],
)
def test_inputs_that_are_kept_are_not_cast(inputs, keep, dtypes):
    require_kept(inputs, keep)
    made = cast_inputs(inputs, torch.float16, keep)
    assert type(made) is type(inputs)
    assert [t.dtype for t in all_tensors(made)] == dtypes


def test_a_name_that_no_input_has_is_refused():
    with pytest.raises(SettingError, match="keep_inputs names 'time'; the inputs have 'x', 't'"):
        require_kept({"x": X, "t": T}, ["time"])
    with pytest.raises(SettingError, match="keep_inputs names 2; the inputs have 0, 1"):
        require_kept((X, T), [2])


@pytest.mark.parametrize(
    ("batch", "keep", "whole", "kept"),
    [
        (((X, T), X), [1], False, 1),
        ((X, T), [1], True, 1),
        ({"x": X, "t": T, "labels": IDS}, ["t"], False, 1),
        (((X, T), X), [], False, 0),
    ],
)
def test_of_a_training_the_inputs_are_meant_or_the_batch_itself(batch, keep, whole, kept):
    made = all_tensors(cast_batch(batch, torch.bfloat16, keep, whole))
    assert sum(t.dtype == torch.float32 for t in made) == kept
