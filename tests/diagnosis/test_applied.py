"""What a trial of a line did is told in the program's own words."""

import pytest
import torch
from torch import nn

from pytest_fp16.diagnosis.applied import as_called, moves
from pytest_fp16.diagnosis.upcast import applied_to, lines_in_float32


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("mul", "mul"),
        ("div_", "div"),
        ("__rsub__", "sub"),
        ("__rtruediv__", "div"),
        ("__iadd__", "add"),
        ("__matmul__", "matmul"),
        ("__getitem__", "getitem"),
        ("_softmax", "softmax"),
    ],
)
def test_a_function_is_called_as_it_is_written(function, said):
    assert as_called(function) == said


@pytest.mark.parametrize(
    ("function", "expected"),
    [("reshape", True), ("getitem", True), ("mul", False), ("softmax", False), ("nowhere", False)],
)
def test_what_moves_values_is_not_computed(function, expected):
    assert moves(function) is expected


class Net(nn.Module):
    """The first line of its forward computes, the second only casts, the third does both."""

    def __init__(self):
        super().__init__()
        self.register_buffer("base", torch.tensor([1.0, 0.1, 0.01, 0.001]))
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        x = (x * 3)[:, :4].exp()
        places = torch.arange(4).type_as(self.base).float() * self.base.float()
        turned = torch.einsum("i,j->ij", torch.arange(4).type_as(self.base), self.base)
        return self.last(x + 0 * places.to(x.dtype)) + 0 * turned.sum()


FIRST = Net.forward.__code__.co_firstlineno


def applied(offset, autocast=False):
    torch.manual_seed(0)
    model = Net() if autocast else Net().half()
    watched = lines_in_float32(model, [f"{__file__}:{FIRST + offset}"])
    x = torch.randn(3, 5)
    with torch.no_grad(), torch.autocast("cpu", torch.float16, enabled=autocast):
        watched(x if autocast else x.half())
    return applied_to(watched)


def test_what_is_computed_and_the_layer_that_takes_it_in_16_bits():
    done = applied(1)
    assert [name for name in done.computed if not moves(name)] == ["mul", "exp"]
    assert (list(done.made), list(done.taken), done.uncast) == ([], ["last"], False)


def test_a_product_that_is_in_float32_already_is_not_told_of():
    done = applied(2)
    assert (list(done.computed), list(done.made)) == ([], ["type_as"])


@pytest.mark.parametrize("autocast", [False, True])
def test_what_autocast_would_cast_again(autocast):
    done = applied(3, autocast)
    assert list(done.computed) == ["einsum"]
    assert list(done.made) == ([] if autocast else ["type_as"])
    assert done.uncast is autocast


def test_what_refuses_a_result_itself_is_told_with_its_line():
    class Product(nn.Module):
        def forward(self, x):
            y = x * 2
            return torch.mm(y, x.T)

    line = f"{__file__}:{Product.forward.__code__.co_firstlineno + 1}"
    watched = lines_in_float32(Product(), [line])
    watched(torch.ones(2, 2).half())
    (place,) = applied_to(watched).taken
    assert place.startswith("matmul at ")
    assert place.endswith(f"test_applied.py:{Product.forward.__code__.co_firstlineno + 2}")
