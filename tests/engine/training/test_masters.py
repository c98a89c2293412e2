"""Float32 copies of 16-bit weights: an optimizer of anybody's own steps on them."""

import pytest
import torch
from torch import nn

from pytest_fp16.engine.training.masters import Masters


class Plain(torch.optim.Optimizer):
    """Momentum by hand; it notes what it sees."""

    def __init__(self, params, rate=1e-3):
        super().__init__(params, {"lr": rate})
        self.seen = set()

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.mul_(0.5).add_(p.grad, alpha=0.5)
                p.add_(mean, alpha=-group["lr"])
                self.seen |= {p.dtype, p.grad.dtype, mean.dtype}


class Heir(Plain):
    """Its step is wrapped in that of its parent."""

    def step(self, closure=None):
        super().step(closure)


def steps(kind, dtype, masters, count=100):
    weight, still = (nn.Parameter(torch.ones(3, dtype=dtype)) for _ in range(2))
    optimizer = kind([weight, still])
    if masters:
        Masters(optimizer)
    for _ in range(count):
        optimizer.zero_grad()
        weight.sum().backward()
        optimizer.step()
    return weight, optimizer


@pytest.mark.parametrize("kind", [Plain, Heir])
def test_small_updates_come_together(kind):
    weight, optimizer = steps(kind, torch.bfloat16, True)
    assert optimizer.seen == {torch.float32}
    assert weight.dtype == weight.grad.dtype == torch.bfloat16
    assert weight[0].item() == pytest.approx(0.901, abs=2**-9)
    assert steps(kind, torch.bfloat16, False)[0][0].item() == 1.0


def test_weights_of_float32_are_left_alone():
    plain, mastered = (steps(Plain, torch.float32, masters)[0] for masters in (False, True))
    assert torch.equal(plain, mastered)
