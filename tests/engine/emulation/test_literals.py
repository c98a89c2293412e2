"""Tensors made of lists of carried ones: the values go on, and torch is as it was afterwards."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.emulation.interception import Carrier
from pytest_fp16.engine.emulation.literals import made_by_operations, stated

MAKERS = {
    "tensor": lambda h, parts: torch.tensor(parts),
    "as_tensor": lambda h, parts: torch.as_tensor(parts, dtype=h.dtype, device=h.device),
    "new_tensor": lambda h, parts: h.new_tensor(parts),
    "numbers": lambda h, parts: torch.tensor([parts[0], 1.0, *parts[2:]]),
    "nested": lambda h, parts: torch.tensor([[part] for part in parts]).squeeze(1),
}


class Pooled(nn.Module):
    """Divides each row by a scale that a loop has collected."""

    def __init__(self, maker, scale):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.maker, self.scale = maker, scale

    def forward(self, x):
        h = self.body(x)
        parts = [(row * self.scale).square().mean() for row in h]
        scales = MAKERS[self.maker](h, parts).to(h.dtype)
        return self.head(h / (scales[:, None] / self.scale**2 + 1)) * 20


def checked(maker, scale, precision):
    torch.manual_seed(0)
    return check(Evaluation(Pooled(maker, scale).eval(), [torch.randn(61, 6)]), precision=precision)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("precision", ["16-true", "bf16-mixed"])
def test_theory_follows_them(maker, precision):
    report = checked(maker, 1.0, precision)
    assert report.verdict == report.forecast.verdict == "equivalent"


@pytest.mark.parametrize("maker", ["tensor", "new_tensor"])
def test_what_overflows_on_its_way_there_is_found(maker):
    report = checked(maker, 600.0, "16-true")
    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert report.culprit.mechanism == "overflow"


def test_everything_else_is_made_as_ever_and_torch_is_left_as_it_was():
    methods = {"new_tensor", "__setitem__"}
    before = torch.tensor, torch.as_tensor, methods & vars(torch.Tensor).keys()
    with made_by_operations(Carrier, []), made_by_operations(Carrier, []):
        assert torch.equal(
            torch.tensor([1, 2], dtype=torch.int8), torch.ones(2).cumsum(0).to(torch.int8)
        )
        assert torch.tensor([[1.5]], requires_grad=True).requires_grad
        assert torch.ones(2, dtype=torch.float64).new_tensor([1, 2]).dtype == torch.float64
        assert torch.as_tensor([torch.tensor(2.0)]).item() == 2.0
    assert before == (torch.tensor, torch.as_tensor, methods & vars(torch.Tensor).keys())


@pytest.mark.parametrize(
    ("value", "said", "known"),
    [
        (torch.tensor(0.0, dtype=torch.float16), [1e-8], True),
        (torch.tensor([[0.0, 1.0]], dtype=torch.float16), [3.0, [[1e-8, 0.9999]]], True),
        (torch.tensor(0.0, dtype=torch.float16), [1.0], False),  # an index beside what is assigned
        (torch.tensor(0.0), [1e-8], False),  # float32 holds it
        (torch.tensor(0.0, dtype=torch.float16), ["not a number"], False),
        (torch.tensor(0.0, dtype=torch.float16), [], False),
    ],
)
def test_what_a_constant_is_said_to_be(value, said, known):
    wide = stated(value, said)
    assert (wide is not None) == known
    assert wide is None or torch.equal(wide, torch.tensor(said[-1]))


class Slopes(nn.Module):
    """Gradients with respect to a tensor that a loop has collected."""

    def __init__(self, own):
        super().__init__()
        self.body, self.own = nn.Linear(6, 3), own

    def forward(self, x):
        h = self.body(x)
        make = h.new_tensor if self.own else torch.tensor
        rows = make([[h[i, 0], h[i, 1], h[i, 2]] for i in range(len(h))], requires_grad=True)
        return torch.autograd.grad(rows.square().sum(), rows)[0]


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("own", [True, False])
def test_what_is_made_to_be_differentiated_by_is(own):
    torch.manual_seed(0)
    report = check(Evaluation(Slopes(own).eval(), [torch.randn(20, 6)], labelled=False))
    assert report.forecast.method != "unavailable", report.forecast.reason
    assert report.verdict == report.forecast.verdict == "equivalent"


class Cut(nn.Module):
    """Rows end to end, cut where a tensor says."""

    def __init__(self, split):
        super().__init__()
        self.body, self.split = nn.Linear(6, 3), split

    def forward(self, x):
        ends = (x[:, 0] > 5).long().cumsum(0) + torch.arange(1, len(x) + 1)
        parts = self.split(self.body(x.flatten(0, 1).view(-1, 6)), ends[:-1].cpu())
        return torch.stack([part.sum(0) for part in parts])


@pytest.mark.parametrize(
    "split",
    [
        lambda x, ends: torch.tensor_split(x, ends),
        lambda x, ends: x.tensor_split(ends),
        lambda x, ends: torch.tensor_split(x, tensor_indices_or_sections=ends),
    ],
)
def test_a_tensor_tells_where_to_cut(split):
    torch.manual_seed(0)
    own = torch.tensor_split, "tensor_split" in vars(torch.Tensor)
    report = check(Evaluation(Cut(split).eval(), [torch.randn(20, 6)], labelled=False))
    assert report.forecast.method != "unavailable", report.forecast.reason
    assert report.verdict == report.forecast.verdict == "equivalent"
    assert (torch.tensor_split, "tensor_split" in vars(torch.Tensor)) == own
