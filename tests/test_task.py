import pytest
import torch

from pytest_fp16.task import Task


def test_fast_path_is_no_decision_and_no_class():
    labels = torch.tensor([[0, -100], [1, 2]])
    task = Task("classification", many=True)
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
    assert Task("multilabel", threshold=0.5).canonical(output)[0, 0].tolist() == [0.5, 2.0]
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


def test_a_last_embedding_alone_decides_nothing():
    alone = Task("embedding").canonical(torch.randn(1, 8))
    assert alone.tolist() == [[[0.0, -torch.inf]]]


def test_values_are_looked_at_in_a_direction_of_their_own_that_moves_not():
    task, reference = Task("regression"), torch.randn(50, 1, 7)
    seeds, noisy = task.seeds(reference), reference + 0.1 * torch.randn(50, 1, 7)

    assert seeds.norm(dim=-1).sub(1).abs().max() < 1e-6
    moved = task.margins(noisy, reference) - task.margins(reference, reference)
    assert torch.allclose(moved, ((noisy - reference) * seeds).sum(-1), atol=1e-5)


def test_probabilities_are_decided_at_a_half_and_the_metric_says_so():
    task, p = Task("multilabel", threshold=0.5), torch.tensor([[0.2, 0.5, 0.75]])
    logits = task.canonical(p)

    assert logits.argmax(-1).tolist() == [[0, 0, 1]]
    assert torch.allclose(task.margins(logits, logits), (p - 0.5).abs())
    assert torch.equal(task.raw(logits, p.shape), p)
    assert (task.metric_name, Task("multilabel").metric_name) == ("accuracy at 0.5", "accuracy")
