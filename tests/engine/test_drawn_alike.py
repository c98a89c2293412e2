"""Native kernels with the draws of an emulation."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Training, check
from pytest_fp16.engine.drawn_alike import DrawnAlike
from pytest_fp16.engine.emulation.emulate import Emulation

DRAWS = {
    "randn_like": torch.randn_like,
    "rand_like": torch.rand_like,
    "normal_": lambda x: x.clone().normal_(),
    "dropout": lambda x: nn.functional.dropout(x, 0.5),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("size", [24, 100])  # no multiple of 16, which a CPU draws otherwise
def test_draws_are_those_of_an_emulation(draw, size):
    x, found = torch.ones(size, dtype=torch.bfloat16), []
    for mode in (Emulation("cuda"), DrawnAlike("cuda")):
        torch.manual_seed(0)
        with mode:
            found.append(draw(x) * 3)
    assert torch.equal(*found)
    assert mode.drew


def test_all_else_is_the_kernels_own():
    x = torch.linspace(-3, 3, 100).half()
    with DrawnAlike("cuda") as mode:
        assert torch.equal(x.exp() @ x, x.exp() @ x)
    assert not mode.drew


class Explores(nn.Module):
    """Adds noise of its own to three numbers for each input, as an actor does."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 3)

    def forward(self, x):
        found = self.net(x)
        return found + torch.randn_like(found) if self.training else found


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_a_canary_of_noise_sees_what_kernels_do(precision):
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    data = list(zip(x.split(16), (x[:, :3] * 2).split(16), strict=True))
    subject = Training(
        model=Explores,
        optimizer=lambda p: torch.optim.SGD(p, 0.1),
        loss=nn.functional.mse_loss,
        train_data=data,
        eval_data=data,
        epochs=3,
    )
    report = check(subject, precision=precision, seeds=1, budget=1.0)
    assert "emulation's gradient differs by" in report.run.canary
    assert not [w for w in report.warnings if "kernels part" in w]
