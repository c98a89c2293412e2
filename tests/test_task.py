import math

import pytest
import torch

from pytest_fp16.errors import DataError, ModelError
from pytest_fp16.task import Task, infer_task

CLASSES = torch.tensor([0, 2, 1, 2])


def infer(output, labels, kind="auto"):
    return infer_task(kind, output, labels, len(output), -100)


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


def test_padding_is_no_decision_and_no_class():
    labels = torch.tensor([[0, -100], [1, 2]])
    task = infer(torch.randn(2, 2, 3), labels)
    margins = torch.zeros(2, 2)

    assert task.valid(labels, margins).tolist() == [[True, False], [True, True]]
    assert task.valid(None, margins).all()


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("classification", (4, 5)),
        ("multilabel", (4, 3)),
        ("regression", (4, 3)),
        ("embedding", (4, 6)),
    ],
)
def test_seeds_are_the_derivative_of_margins(kind, shape):
    task = Task(kind)
    output = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    reference = task.canonical(output)
    logits = reference.clone().requires_grad_()
    task.margins(logits, reference).sum().backward()

    assert torch.equal(task.seeds(reference), logits.grad)


def test_canonical_forms():
    output = torch.tensor([[2.0, -1.0], [0.5, 0.25]])

    assert Task("classification").canonical(output).shape == (2, 1, 2)
    assert Task("multilabel").canonical(output).shape == (2, 2, 2)
    assert Task("multilabel").canonical(output)[0, 0].tolist() == [0.0, 2.0]
    assert Task("regression").canonical(output).shape == (2, 1, 2)
    image = torch.arange(24.0).view(1, 2, 3, 4)
    assert Task("classification", 1).canonical(image)[0, 5].tolist() == [5.0, 17.0]


def test_an_embedding_decides_its_nearest_neighbour():
    output = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 3.0]])
    similarity = Task("embedding").canonical(output)

    assert similarity.argmax(-1).flatten().tolist() == [1, 0, 3, 2]
    assert similarity.diagonal(dim1=0, dim2=2).eq(-torch.inf).all()
    assert Task("embedding").batchwise


def test_neighbours_are_told_beside_a_large_common_part():
    """Cosines themselves are one to within float32's own rounding here."""
    random = torch.Generator().manual_seed(0)
    apart = torch.rand(40, 24, generator=random)
    likeness = Task("embedding").canonical(apart + 200).squeeze(1)
    unit = torch.nn.functional.normalize((apart + 200).double(), dim=-1)
    exact = (unit @ unit.T - 1).fill_diagonal_(-torch.inf)
    assert torch.equal(likeness.argmax(-1), exact.argmax(-1))
    torch.testing.assert_close(likeness.double(), exact, rtol=1e-2, atol=0.0)

    distance = Task("embedding").magnitude(likeness.unsqueeze(1)).squeeze(1).double()
    torch.testing.assert_close(distance, torch.cdist(unit, unit).amax(-1), rtol=1e-2, atol=0.0)

    lost = apart.clone()
    lost[3] = torch.nan
    kept = [i for i in range(40) if i != 3]
    assert Task("embedding").canonical(lost).squeeze(1)[kept][:, kept].isnan().sum() == 0


def test_a_last_embedding_alone_decides_nothing_and_a_first_is_refused():
    alone = Task("embedding").canonical(torch.randn(1, 8))
    assert alone.tolist() == [[[0.0, -torch.inf]]]
    with pytest.raises(DataError, match="the first batch holds 1; make the batches larger"):
        infer(torch.randn(1, 8), None, "embedding")
    assert infer(torch.randn(3, 8), None, "embedding").kind == "embedding"


def test_values_are_looked_at_in_a_direction_of_their_own_that_moves_not():
    task, reference = Task("regression"), torch.randn(50, 1, 7)
    seeds, noisy = task.seeds(reference), reference + 0.1 * torch.randn(50, 1, 7)

    assert seeds.norm(dim=-1).sub(1).abs().max() < 1e-6
    moved = task.margins(noisy, reference) - task.margins(reference, reference)
    assert torch.allclose(moved, ((noisy - reference) * seeds).sum(-1), atol=1e-5)
