"""A frozen base in 16 bits: float32 in the reference, as it is in a mixed precision."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training, check
from pytest_fp16.engine.training.frozen_base import frozen_low
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.errors import ModelError
from pytest_fp16.precision import precision


class Adapted(nn.Module):
    """A frozen layer in float16 with an adapter in float32 that starts at zero."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 3).half().requires_grad_(False)
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x.to(self.base.weight.dtype)) + self.up(self.down(x))


def training(model=Adapted):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 4, generator=generator)
    y = x[:, :3].argmax(1)
    data = list(zip(x.split(16), y.split(16), strict=True))
    return Training(
        model=model,
        optimizer=partial(torch.optim.SGD, lr=0.1),
        loss=F.cross_entropy,
        train_data=data,
        eval_data=data,
        epochs=2,
    )


@pytest.mark.parametrize(
    ("name", "base", "adapter"),
    [
        ("32-true", torch.float32, torch.float32),
        ("16-mixed", torch.float16, torch.float32),
        ("bf16-mixed", torch.float16, torch.float32),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
    ],
)
def test_the_base_is_what_the_precision_has(name, base, adapter):
    subject = training()
    state = initial_state(subject, 0)
    model = Trainee(subject, precision(name), 0, state, Place(torch.device("cpu"))).model
    assert {p.dtype for p in model.base.parameters()} == {base}
    assert {p.dtype for p in model.up.parameters()} == {adapter}
    assert torch.equal(model.base.weight.float(), state["base.weight"].to(base).float())


def test_a_training_of_adapters_is_compared_and_its_base_told():
    report = check(training(), precision="16-mixed", seeds=2)
    assert report.verdict != "not equivalent"
    assert report.forecast.verdict == "equivalent"
    assert any("2 frozen tensor(s) of the model are float16 already" in w for w in report.warnings)


def test_a_trained_weight_in_16_bits_is_no_base():
    model = Adapted()
    model.up.half()
    assert frozen_low(model) == {}
    with pytest.raises(ModelError, match="in 16 bits already"):
        check(training(model), precision="16-mixed", seeds=2)
    assert frozen_low(nn.Linear(2, 2)) == {}
    assert frozen_low(nn.Linear(2, 2).half().requires_grad_(False)) == {}
