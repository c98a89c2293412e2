import math

import pytest
import torch

from pytest_fp16 import Evaluation
from pytest_fp16.errors import DataError, ModelError
from pytest_fp16.telling import infer_task, task_of

CLASSES = torch.tensor([0, 2, 1, 2])


def infer(output, labels, kind="auto", ignore_index=-100):
    return infer_task(kind, output, labels, len(output), ignore_index)


@pytest.mark.parametrize(
    ("output", "labels", "kind", "class_dim", "many"),
    [
        (torch.randn(4, 3), CLASSES, "classification", -1, False),
        (torch.randn(4, 7, 3), torch.ones(4, 7, dtype=torch.long), "classification", -1, True),
        (torch.randn(4, 3, 7), torch.ones(4, 7, dtype=torch.long), "classification", 1, True),
        (torch.randn(4, 3, 5, 6), torch.ones(4, 5, 6, dtype=torch.long), "classification", 1, True),
        (torch.randn(4, 3, 5, 6), None, "classification", 1, True),
        (torch.randn(4, 3), None, "classification", -1, False),
        (torch.randn(4, 3), torch.tensor([[0.0, 1, 1]] * 4), "multilabel", -1, True),
        (torch.randn(4, 1), torch.tensor([0, 1, 1, 0]), "multilabel", -1, False),
        (torch.randn(4), torch.tensor([0.0, 1, 1, 0]), "multilabel", -1, False),
        (torch.randn(4, 1), torch.randn(4), "regression", -1, False),
        (torch.randn(4, 3), torch.randn(4, 3), "regression", -1, False),
        (torch.randn(4), None, "regression", -1, False),
    ],
)
def test_the_task_is_told_from_output_and_labels(output, labels, kind, class_dim, many):
    task = infer(output, labels)

    assert (task.kind, task.many) == (kind, many)
    if kind == "classification":
        assert task.class_dim == class_dim
        canonical = task.canonical(output)
        assert canonical.shape[0] == 4
        assert canonical.shape[-1] == output.shape[class_dim]


@pytest.mark.parametrize(
    ("output", "labels", "kind", "error", "words"),
    [
        (torch.randn(4, 3), torch.tensor([0, 1, 3, 0]), "auto", DataError, "from 0 to 3, but"),
        (torch.randn(4, 3), torch.tensor([-1, 1, 2, 0]), "auto", DataError, "3 classes"),
        (torch.randn(4, 3), torch.ones(4, 2, dtype=torch.long), "auto", DataError, "do not fit"),
        (torch.randn(4, 1), None, "classification", ModelError, "1 logit"),
        (torch.randn(4), CLASSES, "classification", ModelError, "no dimension of classes"),
        (torch.randn(4, 3), CLASSES, "multilabel", DataError, "multilabel labels have shape"),
        (torch.randn(4, 3), torch.full((4,), 0.5), "classification", DataError, "whole numbers"),
        (torch.randn(4, 3), torch.full((4,), math.nan), "classification", DataError, "are NaN"),
    ],
)
def test_what_does_not_fit_is_refused(output, labels, kind, error, words):
    with pytest.raises(error, match=words):
        infer(output, labels, kind)


def test_one_hot_labels_are_classes_where_the_user_says_so():
    output, classes = torch.randn(4, 3), torch.tensor([0, 2, 1, 2])
    one_hot = torch.nn.functional.one_hot(classes, 3)
    assert infer(output, one_hot).kind == "multilabel"
    for labels in (one_hot, one_hot * 0.8 + 0.1):
        task = infer(output, labels, "classification")
        assert (task.kind, task.class_dim, task.many) == ("classification", -1, False)
        assert torch.equal(task.canonical_labels(labels, 4), classes[:, None])


def test_one_hot_labels_of_pixels():
    classes = torch.randint(0, 3, (2, 5, 6))
    one_hot = torch.nn.functional.one_hot(classes, 3).movedim(-1, 1)
    task = infer(torch.randn(2, 3, 5, 6), one_hot, "classification")
    assert torch.equal(task.canonical_labels(one_hot, 2), classes.reshape(2, -1))


def test_an_output_that_does_not_run_over_the_inputs_is_refused():
    with pytest.raises(ModelError, match="first dimension must run over the inputs"):
        infer_task("auto", torch.randn(3, 2), None, 4, -100)
    with pytest.raises(ModelError, match="no logits per input"):
        infer_task("auto", torch.tensor(1.0), None, 4, -100)


def test_an_embedding_needs_others_in_its_first_batch():
    with pytest.raises(DataError, match="the first batch holds 1; make the batches larger"):
        infer(torch.randn(1, 8), None, "embedding")
    assert infer(torch.randn(3, 8), None, "embedding").kind == "embedding"


LABELS = torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize(
    ("output", "threshold"),
    [
        (torch.tensor([0.1, 0.9, 1.0, 0.0]), 0.5),
        (torch.tensor([0.1, 0.9, 1.0 + 1e-7, 0.0]), 0.5),  # a mean of probabilities, in float32
        (torch.tensor([0.1, 0.9, 1.0, -0.2]), 0.0),
        (torch.tensor([0.1, 0.9, 1.5, 0.0]), 0.0),
    ],
)
@pytest.mark.parametrize("kind", ["auto", "multilabel"])
def test_probabilities_are_decided_at_a_half(output, threshold, kind):
    for shape in ((4,), (4, 1), (1, 4), (1, 1, 2, 2)):
        task = infer(output.reshape(shape), LABELS.reshape(shape), kind)
        assert (task.kind, task.threshold) == ("multilabel", threshold), shape
    assert infer(output, LABELS.float() + 0.5).threshold == 0.0  # a regression
    assert infer(output.reshape(2, 2), LABELS[:2]).threshold == 0.0  # classes


@pytest.mark.parametrize("ignored", [255, -100])
@pytest.mark.parametrize("dtype", [torch.long, torch.float32])
def test_what_is_ignored_tells_nothing_of_the_task(ignored, dtype):
    output = torch.randn(2, 1, 3, 3)
    labels = (output > 0).to(dtype)
    labels[:, :, 0] = ignored
    for given in (labels, labels[:, 0]):
        task = infer(output, given, ignore_index=ignored)
        assert task.kind == "multilabel"
        read = task.canonical_labels(given, 2)
        assert task.valid(read, torch.zeros(2, 9)).sum() == 12
    if ignored == 255:
        assert infer(output, labels).kind == "regression"


@pytest.mark.parametrize(("output", "labels"), [((2, 1, 3, 4), (2, 3, 4)), ((2, 5, 1), (2, 5))])
def test_one_logit_each_needs_no_dimension_in_the_labels(output, labels):
    yes = torch.arange(torch.Size(labels).numel()).reshape(labels) % 2
    output = yes.reshape(output) - 0.5
    task = infer(output, yes)
    assert task.kind == "multilabel"
    assert torch.equal(task.canonical(output).argmax(-1), task.canonical_labels(yes, 2))
    with pytest.raises(ModelError, match="1 logit per decision"):
        infer(output, 2 * yes)


def test_values_are_not_left_out_by_ignore_index():
    subject = Evaluation(torch.nn.Identity(), [], ignore_index=-1)
    output, labels = torch.randn(4, 2), torch.randn(4, 2)
    with pytest.raises(DataError, match="ignore_index=-1 leaves out decisions, and these labels"):
        task_of(subject, output, labels, 4)
    for other in (Evaluation(None, []), Evaluation(None, [], ignore_index=-1, metric=max)):
        assert task_of(other, output, labels, 4).kind == "regression"


@pytest.mark.parametrize("labels", [{"animal": CLASSES}, [CLASSES, CLASSES], object()])
def test_labels_that_are_no_numbers_are_told(labels):
    said = f"labels are of type {type(labels).__name__}: they are a tensor, an array or a list"
    with pytest.raises(DataError, match=said):
        infer(torch.randn(4, 3), labels)
    subject = Evaluation(None, [], metric=max)
    assert task_of(subject, torch.randn(4, 3), labels, 4).kind == "classification"


def test_several_labels_of_a_row_tell_a_metric_of_ones_own_that_it_holds_no_logits():
    """Starts and ends side by side, say: their argmax is nothing that flips."""
    output, spans = torch.randn(6, 15), torch.zeros(6, 2, dtype=torch.long)
    subject = Evaluation(None, [], metric=lambda o, y: o[:, 0])
    assert task_of(subject, output, spans, 6).kind == "regression"
    assert task_of(subject, output, torch.zeros(6, dtype=torch.long), 6).kind == "classification"
    assert task_of(subject, output, ["a"] * 6, 6).kind == "classification"
    assert task_of(subject, torch.randn(6, 4, 15), spans, 6).kind == "classification"
    given = Evaluation(None, [], metric=subject.metric, task="classification")
    assert task_of(given, output, spans, 6).kind == "classification"
