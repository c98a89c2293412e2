"""Names of modules in wrapped models: as the wrapper has them, or as the model itself has."""

import pytest
import torch
from torch import nn

from pytest_fp16.errors import ModelError
from pytest_fp16.mixing import keep_in_float32
from pytest_fp16.module_names import module_named


class Compiled(nn.Module):
    """As torch.compile wraps a module."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module

    def forward(self, x):
        return self._orig_mod(x)


def net(part=None):
    return nn.ModuleDict({"body": part or nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))})


WRAPPERS = [nn.DataParallel, Compiled, lambda m: nn.DataParallel(Compiled(m))]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_every_name_of_a_wrapped_model_is_known(wrap):
    own = net()
    model = wrap(own)
    for name, module in model.named_modules():
        assert module_named(model, name) in (module, own)
        assert module_named(model, name) in [*own.modules()]
    for name, module in own.named_modules():
        assert module_named(model, name) is module


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_part_may_be_named_without_its_wrapper(wrap):
    part = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    model = nn.DataParallel(net(wrap(part)))
    assert module_named(model, "body.1") is part[1]
    for name, module in model.named_modules():
        if module in part.modules():
            assert module_named(model, name) is module


def test_a_name_of_the_models_own_comes_first():
    own = nn.ModuleDict(
        {"module": nn.ModuleDict({"norm": nn.LayerNorm(4)}), "norm": nn.Linear(4, 4)}
    )
    assert module_named(nn.DataParallel(own), "module.norm") is own["module"]["norm"]


def test_what_is_not_there_is_not_found():
    with pytest.raises(ModelError, match=r"ModuleDict has no module .body.norm.; did you mean"):
        module_named(nn.DataParallel(net()), "body.norm")


@pytest.mark.parametrize("name", ["module.1", "1"])
def test_a_wrapped_model_keeps_what_is_named(name):
    model = nn.DataParallel(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
    keep_in_float32(model, [name]).half()
    assert model.module[1].weight.dtype == torch.float32
    assert model.module[0].weight.dtype == torch.float16
