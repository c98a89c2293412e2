"""cuDNN is kept out of recurrent layers while rounding is followed, and of nothing else."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.emulation.recurrent import padded_by_operations, recurrent_by_steps


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
    with Emulation("cpu"):
        assert False in seen_by(model, torch.ones(3, 2, 4, dtype=torch.bfloat16))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("total_length", [None, 9])
def test_sequences_are_unpacked_as_aten_unpacks_them(batch_first, total_length):
    sequences = [torch.randn(length, 2) for length in (3, 1, 6)]
    packed = nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False)
    options = {"batch_first": batch_first, "padding_value": -1.5, "total_length": total_length}
    expected = nn.utils.rnn.pad_packed_sequence(packed, **options)
    before = dict(vars(torch._VF))
    with padded_by_operations(), padded_by_operations():
        found = nn.utils.rnn.pad_packed_sequence(packed, **options)
    assert vars(torch._VF) == before
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_theory_follows_a_sequence_that_is_unpacked():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 5)

        def forward(self, x, lengths):
            x = nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
            return self.head(nn.utils.rnn.pad_packed_sequence(self.body(x)[0], True)[0])

    torch.manual_seed(0)
    data = [(torch.randn(12, 7, 6), torch.randint(1, 8, (12,)).index_fill(0, torch.tensor(2), 7))]
    report = check(Evaluation(model=Tagger().eval(), data=data, labelled=False), budget=0.1)
    assert report.forecast.verdict == "equivalent"
    assert 0.7 < report.standardised.spread < 1.5


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_cpus_whole_layer_is_taken_apart():
    """oneDNN's kernel was taken to round once, at the end of all steps."""
    model = nn.LSTM(8, 64, 2).eval().bfloat16()
    before = torch.backends.mkldnn.enabled
    with torch.no_grad(), recurrent_by_steps("cpu"), Names() as names:
        model(torch.randn(60, 4, 8, dtype=torch.bfloat16))
    assert "mkldnn_rnn_layer" not in names.seen
    assert "sigmoid_" in names.seen or "sigmoid" in names.seen
    assert torch.backends.mkldnn.enabled == before


class Listener(nn.Module):
    """Remembers all it has heard in a long sequence."""

    def __init__(self):
        super().__init__()
        self.read = nn.LSTM(8, 48, batch_first=True)
        with torch.no_grad():
            self.read.bias_ih_l0[48:96] += 6  # the forget gate stays open

    def forward(self, x):
        return self.read(x)[0][:, -1]


def test_a_cpus_own_layer_of_many_steps_errs_no_more_than_predicted():
    torch.manual_seed(0)
    subject = Evaluation(Listener().eval(), [torch.randn(40, 150, 8)], task="regression")
    report = check(subject, precision="bf16-true", emulate="never")
    assert [c.name for c in report.checks if not c.passed and c.name == "as predicted"] == []
