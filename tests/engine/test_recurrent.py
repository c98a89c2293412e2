"""cuDNN is kept out of recurrent layers while rounding is followed, and of nothing else."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_fp16.engine.emulate import Emulation
from pytest_fp16.engine.recurrent import recurrent_by_steps


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(torch.backends.cudnn.enabled)
        return func(*args, **(kwargs or {}))


def seen_by(layer, *inputs):
    with Watch() as watch, torch.no_grad():
        layer(*inputs)
    assert watch.seen
    return set(watch.seen)


def test_recurrent_layers_run_without_cudnn():
    for make in (nn.LSTM, nn.GRU, nn.RNN):
        with recurrent_by_steps():
            assert seen_by(make(4, 4), torch.ones(3, 2, 4)) >= {False}
            assert torch.backends.cudnn.enabled
    with recurrent_by_steps():
        assert seen_by(nn.Linear(4, 4), torch.ones(2, 4)) == {True}


def test_everything_is_as_it_was_afterwards():
    before = dict(vars(torch._VF))
    with recurrent_by_steps(), recurrent_by_steps():
        pass
    assert vars(torch._VF) == before
    assert seen_by(nn.LSTM(4, 4), torch.ones(3, 2, 4)) == {True}


def test_emulation_enters_it():
    model = nn.LSTM(4, 4).bfloat16()
    with Emulation("cuda"):
        assert False in seen_by(model, torch.ones(3, 2, 4, dtype=torch.bfloat16))
