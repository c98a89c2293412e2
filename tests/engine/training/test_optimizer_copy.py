"""Copies of optimizers: everything they are made of, and nothing of the original's."""

import torch
from torch import nn

from pytest_fp16.engine.training.optimizer_copy import copied_over


class Ascent(torch.optim.Optimizer):
    """Wraps another optimizer, and reads attributes of its own."""

    def __init__(self, params):
        self.base = torch.optim.SGD(params, lr=0.5, momentum=0.9)
        super().__init__(self.base.param_groups, {})
        self.sign, self.seen, self.scale = -1.0, [], torch.ones(())

    @torch.no_grad()
    def step(self, closure=None):
        self.seen.append(len(self.seen))
        self.scale += 1
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.mul_(self.sign)
        self.base.step()


def copy_of(optimizer, tensor):
    groups = {id(g): {**g, "params": [tensor]} for g in optimizer.param_groups}
    return copied_over(optimizer, groups)


def test_a_wrapped_optimizer_steps_the_tensors_of_the_copy():
    own, other = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    original = Ascent([own])
    made = copy_of(original, other)
    own.grad, other.grad = torch.ones(3), torch.ones(2)
    made.step()
    assert torch.equal(other.detach(), torch.full((2,), 0.5))
    assert torch.equal(own.detach(), torch.zeros(3))
    assert not original.base.state
    assert made.base.state[other]["momentum_buffer"].shape == (2,)


def test_what_the_copy_changes_stays_its_own():
    original = Ascent([nn.Parameter(torch.zeros(3))])
    other = nn.Parameter(torch.zeros(2))
    made = copy_of(original, other)
    other.grad = torch.ones(2)
    made.step()
    assert (made.seen, original.seen) == ([0], [])
    assert (float(made.scale), float(original.scale)) == (2, 1)


def test_neither_hooks_nor_a_scheduler_come_along():
    own, other = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    original, called = torch.optim.SGD([own], lr=0.5), []
    original.register_step_pre_hook(lambda *_: called.append(1))
    torch.optim.lr_scheduler.ConstantLR(original)
    made = copy_of(original, other)
    own.grad, other.grad = torch.ones(3), torch.ones(2)
    made.step()
    assert not called
    assert torch.equal(own.detach(), torch.zeros(3))
    assert bool((other < 0).all())
