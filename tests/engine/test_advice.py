"""What is said of data that a float32 model does not take."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.advice import guarded, of_batch, of_data, of_task
from pytest_fp16.errors import DataError, FP16Error, ModelError
from pytest_fp16.task import Task

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
WRONG = RuntimeError("a shape")


def said(data, **keywords):
    torch.manual_seed(0)
    with pytest.raises(FP16Error) as told:
        check(Evaluation(nn.Sequential(nn.Linear(4, 3)), data, **keywords))
    return str(told.value)


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        ((X, Y), "if the data is one batch (inputs, labels), put it into a list"),
        ([X, Y], "if the data is one batch (inputs, labels), put it into a list"),
        (X, "the data is one tensor, whose rows are taken for batches"),
        (TensorDataset(X, Y), "a dataset (TensorDataset) yields single inputs: put it into a Data"),
        ([(X, 3)], "the second part of the batch (int) was taken for an input: labels are"),
        ([(X, ["a"])], "the second part of the batch (list) was taken for an input: labels are"),
        ([{"x": X, "y": Y}], "a dict's entries become keyword arguments: x, y"),
        ([(X.numpy(), Y)], "the batch holds NumPy arrays"),
        ([(X.double(), Y)], "the batch holds float64"),
        ([(X[:, :3], Y)], "check the batch and forward="),
        ([(X, X, Y)], "a batch of 3 was taken for 3 inputs; where the last are the labels, yield"),
        ([(X, X)], "a second input is no label: set labelled=False"),
        ([(X, Y[:8])], "a batch holds 12 inputs and 8 labels; yield one label for each input"),
        ([(X, Y), (X, Y[:8])], "a batch holds 12 inputs and 8 labels"),
    ],
)
def test_data_in_a_form_of_its_own(data, advice):
    assert advice in said(data)


def test_a_pair_whose_labels_are_to_be_left_out():
    assert "yield the inputs alone" in said([(X, Y)], labelled=False)


def test_two_inputs_of_which_one_was_taken_for_labels():
    with pytest.raises(ModelError, match="was taken for labels; where it is an input, set label"):
        check(Evaluation(nn.Bilinear(4, 4, 3), [(X, X)]))
    assert "taken for labels" not in of_batch(WRONG, X, None, taken=(X, Y))


def test_labels_are_needed_and_the_batch_has_three_parts():
    assert "it is tuple of 3: yield a pair, ((a, b), labels)" in said([(X, X, Y)], labelled=True)


class Warns(nn.Module):
    def forward(self, x):
        warnings.warn("an old way", UserWarning, stacklevel=1)
        return x


def test_a_warning_made_an_error_is_called_one():
    with pytest.raises(ModelError, match=r"UserWarning: an old way .*; it is a warning, mad") as e:
        check(Evaluation(Warns(), [(X, Y)]))
    assert "check the batch" not in str(e.value)
    with pytest.raises(ModelError, match=r"a step raised .*; it is a warning, made an error by"):
        guarded(lambda: Warns()(X), "a step")


def test_labels_that_were_taken_out_of_a_mapping():
    assert "labels were taken out" in of_batch(WRONG, {"x": X}, None, taken={"x": X, "labels": Y})


def test_data_that_are_what_they_should_be_get_no_advice():
    assert of_data([(X, Y)], read=False) is None
    assert of_data([X, X], read=False) is None  # two batches without labels
    assert of_data(np.zeros((2, 3)), read=True) is None
    assert of_data(TensorDataset(X, Y), read=True) is None
    assert said([(X, Y), (X, Y + 3)]).endswith("ignore_index is -100)")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_hot_labels_are_remarked(smoothing):
    one_hot = nn.functional.one_hot(Y, 3) * (1 - smoothing) + smoothing / 3
    torch.manual_seed(0)
    model = nn.Linear(4, 3).eval()
    said = "if they are classes, set task='classification'"
    assert said in " ".join(check(Evaluation(model, [(X, one_hot)])).warnings)
    report = check(Evaluation(model, [(X, one_hot)], task="classification"))
    assert report.task == "classification"
    assert said not in " ".join(report.warnings)
    plain = check(Evaluation(model, [(X, Y)]))
    assert report.metric.reference == plain.metric.reference


def test_several_labels_are_no_classes():
    several, logits = torch.ones(12, 3), torch.zeros(12, 3)
    assert of_task("auto", Task("multilabel"), several, logits) == []
    one_hot = nn.functional.one_hot(Y, 3)
    assert of_task("multilabel", Task("multilabel"), one_hot, logits) == []
    assert len(of_task("auto", Task("multilabel"), one_hot, logits)) == 1


class Decoder(nn.Module):
    """Images whose common part is far from zero: float16 loses it, and no channel's rank."""

    def __init__(self):
        super().__init__()
        self.chroma, self.luma = nn.Linear(16, 192), nn.Linear(16, 64)

    def forward(self, z):
        luma = (self.luma(z) + 4000) - 4000
        return self.chroma(z).view(-1, 3, 8, 8) + luma.view(-1, 1, 8, 8)


def test_values_without_labels_that_were_taken_for_classes_are_remarked():
    torch.manual_seed(0)
    model, data = Decoder().eval(), [torch.randn(50, 16)]
    said = (
        "outputs of shape (50, 3, 8, 8) were taken for 3 classes along dimension 1, as there are "
        "no labels; if they are values (an image, a forecast), set task='regression'"
    )
    assert said in check(Evaluation(model, data)).warnings
    report = check(Evaluation(model, data, task="regression"))
    assert not report.equivalent
    assert said not in report.warnings
    assert of_task("auto", Task("classification"), None, torch.zeros(4, 3)) == []


class Broken(nn.Module):
    def forward(self, x):
        raise KeyError("no such head")


def test_what_a_model_raises_is_told_with_its_line():
    with pytest.raises(ModelError, match=r"KeyError: .no such head. \(at .*test_advice\.py:\d+\)"):
        check(Evaluation(Broken(), [(X, Y)]))


def test_an_error_of_ours_passes_as_it_is():
    def refuse():
        raise DataError("no labels")

    with pytest.raises(DataError, match=r"^no labels$"):
        guarded(refuse, "a step")


def test_labels_that_do_not_fit_one_of_several_outputs_say_which():
    class Heads(torch.nn.Module):
        def forward(self, x):
            return {"embedding": x[:, :4], "class_scores": x}

    subject = Evaluation(Heads(), [(torch.randn(40, 10), torch.arange(40) % 10)])
    said = (
        r"labels run from 0 to 9, .*'embedding' of shape \(40, 4\), and not 'class_scores' is jud"
    )
    with pytest.raises(DataError, match=said + ".*let forward= return another"):
        check(subject)
    one = Evaluation(torch.nn.Linear(10, 4), [(torch.randn(40, 10), torch.arange(40) % 10)])
    with pytest.raises(DataError, match=r"ignore_index is -100\)$"):
        check(one)


def test_an_input_that_was_taken_for_labels_is_named():
    class Likes(nn.Module):
        def forward(self, history, target):
            return history * target

    batch = {"history": torch.randn(8, 3), "target": torch.randn(8, 3)}
    said = (
        r"out of the batch \('target'\): where that is an input, set labelled=False, or yield \(in"
    )
    with pytest.raises(ModelError, match=said):
        check(Evaluation(Likes(), [batch]))
    report = check(Evaluation(Likes(), [batch], labelled=False, task="regression"))
    assert report.equivalent


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AssertionError("Torch not compiled with CUDA enabled"), "leave .cuda() out"),
        (RuntimeError("No CUDA GPUs are available"), "leave .cuda() out"),
        (TypeError("'tuple' object is not callable"), "(model, batch)"),
    ],
)
def test_errors_of_a_steps_own_calls_have_a_hint(error, said):
    def step():
        raise error

    with pytest.raises(ModelError) as caught:
        guarded(step, "a step")
    assert str(caught.value).startswith(f"a step raised {type(error).__name__}: {error}")
    assert said in str(caught.value)
