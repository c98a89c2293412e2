"""Several optimizers looked at as one."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_fp16.engine.training.several import Several, several
from pytest_fp16.errors import SettingError


@pytest.fixture
def two():
    layers = [nn.Linear(3, 2), nn.Linear(2, 1)]
    return Several(
        [torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9) for layer in layers], []
    )


def stepped(two):
    for part in two.parts:
        for group in part.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        part.step()


def test_their_groups_and_states_are_one(two):
    assert len(two.param_groups) == 2
    stepped(two)
    assert len(two.state) == 4
    assert all("momentum_buffer" in held for held in two.state.values())


def test_hooks_are_told_of_each_and_taken_from_all(two):
    seen = []
    handles = [
        two.register_step_pre_hook(lambda *_: seen.append("before")),
        two.register_step_post_hook(lambda *_: seen.append("after")),
    ]
    stepped(two)
    for handle in handles:
        handle.remove()
    stepped(two)
    assert seen == ["before", "after"] * 2


def test_their_gradients_are_forgotten_together(two):
    stepped(two)
    two.zero_grad()
    assert all(p.grad is None for group in two.param_groups for p in group["params"])


def test_what_is_configured_has_to_be_optimizers():
    with pytest.raises(SettingError, match=r"must return torch\.optim\.Optimizers"):
        several(SimpleNamespace(configure_optimizers=lambda: [3]))
