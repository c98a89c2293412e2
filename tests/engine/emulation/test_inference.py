"""A program that enters inference mode itself is followed like any other."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.emulation.inference import inference_as_no_grad


class Inferring(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    @torch.inference_mode()
    def forward(self, x):
        return self.layers(x)


def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 5)).eval()


@pytest.mark.parametrize("precision", ["16-true", "16-mixed"])
def test_its_theory_is_that_of_the_same_program_without(precision):
    x = torch.randn(12, 16)
    plain, inside = (
        check(Evaluation(model=model, data=[x], labelled=False, name="m"), precision=precision)
        for model in (layers(), Inferring(layers()).eval())
    )
    assert inside.forecast == plain.forecast
    assert inside.forecast.method == "adjoint"
    assert inside.standardised == plain.standardised


def test_a_check_inside_it_is_like_one_outside():
    x = torch.randn(12, 16)
    outside = check(Evaluation(model=layers(), data=[x], labelled=False))
    with torch.inference_mode():
        made = Evaluation(model=layers(), data=[x.clone()], labelled=False)
        inside = check(made)
        assert torch.is_inference_mode_enabled()
    assert inside == outside


def test_it_is_no_grad_in_there_and_itself_again_afterwards():
    own = torch.inference_mode.__enter__
    with inference_as_no_grad(), inference_as_no_grad(), torch.inference_mode():
        assert not torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        with torch.inference_mode(False):
            assert torch.is_grad_enabled()
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    with Emulation("cuda"), torch.inference_mode():
        assert not torch.is_inference_mode_enabled()
    assert torch.inference_mode.__enter__ is own
    with torch.inference_mode():
        assert torch.is_inference_mode_enabled()
