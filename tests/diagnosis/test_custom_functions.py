"""Functions with a gradient of their own that autocast does not reach."""

import sys

import pytest
import torch
from torch import nn

from pytest_fp16 import check
from pytest_fp16.diagnosis.custom_functions import advised, function_at
from pytest_fp16.precision import precision
from pytest_fp16.report.model import Culprit


class Product(torch.autograd.Function):
    """A product whose gradient is written out: autocast hands it 16 bits, and saved float32."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad.mm(weight), grad.T.mm(x)


class Below(Product):
    pass


def line_of(words):
    with open(__file__, encoding="utf-8") as file:
        numbers = [n for n, line in enumerate(file, 1) if words in line]
    return f"{__file__}:{numbers[0]}"


def test_a_function_is_found_by_a_line_of_either_pass():
    assert function_at(line_of("ctx.save_for_backward(x, weight)")) == "Product"
    assert function_at(line_of("return grad.mm(weight)")) == "Product"
    assert function_at(line_of("class Below(Product)")) is None
    assert function_at(f"{__file__}:{sys._getframe().f_lineno}") is None
    assert function_at(None) is None
    assert function_at("a place") is None


@pytest.mark.parametrize(
    ("variant", "name", "told"),
    [("mixed dtypes", "16-mixed", True), ("mixed dtypes", "16-true", False), (None, "16-mixed", 0)],
)
def test_advice_is_for_dtypes_that_meet_under_autocast(variant, name, told):
    culprit = Culprit(
        module="a", operation="mm", mechanism="unsupported-op", evidence="",
        source=line_of("return grad.mm(weight)"), variant=variant,
    )  # fmt: skip
    cure = advised(culprit, precision(name), "cuda")
    assert (cure is not None) == bool(told)
    if cure is not None:
        assert not cure.verified
        assert cure.description.startswith(
            "decorate Product.forward with torch.amp.custom_fwd(device_type='cuda', cast_inputs="
        )


class Written(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 64) / 8)

    def forward(self, x):
        return Product.apply(x.flatten(1), self.weight)


def test_a_training_is_told_of_torchs_own_remedy(digits_training):
    subject = digits_training(
        model=Written, optimizer=lambda params: torch.optim.SGD(params, lr=0.1)
    )
    report = check(subject, precision="bf16-mixed", seeds=2)
    assert report.verdict == "not equivalent"
    assert report.culprit.variant == "mixed dtypes"
    assert "cure:  decorate Product.forward with torch.amp.custom_fwd(" in str(report)
    assert "; not tried: it changes a class of your program" in str(report)
