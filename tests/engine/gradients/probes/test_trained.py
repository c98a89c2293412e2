"""The weights that a training moves."""

import torch
from torch import nn

from pytest_fp16.engine.gradients.probes.trained import all_finite, trained_weights


def test_a_frozen_weight_is_no_matter():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False).requires_grad_(False))
    tensors = dict(model.named_parameters())
    assert trained_weights(model) == ["0.weight", "0.bias"]
    assert all_finite(model, tensors | {"1.weight": torch.tensor(torch.nan)})
    assert not all_finite(model, tensors | {"0.bias": torch.tensor(torch.inf)})
