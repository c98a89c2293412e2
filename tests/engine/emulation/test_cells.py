"""Recurrent layers and cells in CUDA's own steps: the same function, rounded where CUDA rounds."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_fp16 import Evaluation, Settings
from pytest_fp16.conformance import examine
from pytest_fp16.engine.emulation import cells
from pytest_fp16.engine.emulation.autocast import target_autocast
from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.emulation.recurrent import recurrent_by_steps

LAYERS = (nn.LSTM, nn.GRU)


def states_of(out):
    return [out] if isinstance(out, torch.Tensor) else [s for part in out for s in states_of(part)]


@pytest.fixture
def in_float32(monkeypatch):
    """The steps taken where nothing rounds, so that what they compute can be compared."""

    def lstm(inputs, hidden, state, biases):
        return cells.fused_lstm_cell(inputs, hidden, state[1], *biases)[:2]

    def gru(inputs, hidden, state, biases):
        return cells.fused_gru_cell(inputs, hidden, state[0], *biases)[:1]

    monkeypatch.setattr(cells, "LOW", frozenset({torch.float32}))
    monkeypatch.setattr(cells, "_CELLS", {"lstm": lstm, "gru": gru})


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_layers_compute_what_aten_computes(make, bias, bidirectional, batch_first, in_float32):
    torch.manual_seed(0)
    options = {"bias": bias, "bidirectional": bidirectional, "batch_first": batch_first}
    layer = make(5, 7, num_layers=2, **options).eval()
    x, start = torch.randn(4, 3, 5), torch.randn(4 if bidirectional else 2, 3, 7)
    start = start if not batch_first else torch.randn(len(start), 4, 7)
    initial = start if make is nn.GRU else (start, start.flip(0))
    with torch.no_grad():
        for given in ((x,), (x, initial)):
            expected = states_of(layer(*given))
            with recurrent_by_steps("cuda"):
                found = states_of(layer(*given))
            for a, b in zip(found, expected, strict=True):
                assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(("make", "bias"), [(nn.LSTMCell, True), (nn.GRUCell, False)])
def test_cells_compute_what_aten_computes(make, bias, in_float32):
    torch.manual_seed(0)
    cell, x = make(5, 7, bias=bias), torch.randn(3, 5)
    with torch.no_grad():
        expected = states_of(cell(x))
        with recurrent_by_steps("cuda"):
            found = states_of(cell(x))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def rounded(x, dtype):
    return x.to(dtype).float()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_round_and_then_the_states_alone(dtype):
    torch.manual_seed(0)
    cell = nn.LSTMCell(5, 7).to(dtype)
    x, h, c = (torch.randn(3, size).to(dtype) for size in (5, 7, 7))
    with torch.no_grad(), Emulation("cuda"):
        found = cell(x, (h, c))
    w_input, w_hidden, b_input, b_hidden = (p.detach().float() for p in cell.parameters())
    gates = rounded(x.float() @ w_input.T, dtype) + rounded(h.float() @ w_hidden.T, dtype)
    i, f, g, o = (gates + b_input + b_hidden).chunk(4, -1)
    after = f.sigmoid() * c.float() + i.sigmoid() * g.tanh()
    assert torch.equal(found[1], after.to(dtype))
    assert torch.equal(found[0], (o.sigmoid() * after.tanh()).to(dtype))


@pytest.mark.parametrize("make", LAYERS)
def test_autocast_casts_them_as_cudnns_are_cast(make):
    torch.manual_seed(0)
    layer, x = make(5, 7).eval(), torch.randn(4, 3, 5)
    with torch.no_grad(), target_autocast("cpu", torch.float16, "cuda"), Emulation("cuda"):
        found = layer(x)[0]
    with torch.no_grad(), Emulation("cuda"):
        assert torch.equal(layer.half()(x.half())[0], found)
    assert found.dtype == torch.float16


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", LAYERS)
def test_other_forms_are_left_to_aten(make):
    x = torch.randn(4, 3, 5).half()
    layer = make(5, 7, num_layers=2, dropout=0.5).half()
    plain = make(5, 7).half()
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 3, 2]))
    cases = [(layer.train(), x), (plain, packed), (make(5, 7), x.float())]
    cases += [(nn.LSTM(5, 7, proj_size=3).half(), x)]
    for model, given in cases:
        with torch.no_grad(), Count() as count, recurrent_by_steps("cuda"):
            model(given)
        assert not any("thnn" in name for name in count.names)
    with Count() as count, recurrent_by_steps("cuda"):
        plain(x)  # it may be trained
    assert not any("thnn" in name for name in count.names)
    with torch.no_grad(), recurrent_by_steps("cpu"), Count() as count:
        plain(x)
    assert not any("thnn" in name for name in count.names)


class Reader(nn.Module):
    """Reads a sequence, and says what it was about."""

    def __init__(self, make):
        super().__init__()
        self.read, self.head = (
            make(6, 16, 2, batch_first=True, bidirectional=True),
            nn.Linear(32, 4),
        )

    def forward(self, x):
        return self.head(self.read(x)[0][:, -1]) * 20


@pytest.mark.parametrize("make", LAYERS)
def test_theory_predicts_what_emulation_does(make):
    torch.manual_seed(0)
    model, x = Reader(make).eval(), torch.randn(300, 12, 6)
    with torch.no_grad():
        data = [(x, model(x).argmax(-1))]
    for report in examine(Evaluation(model, data), Settings(precisions=("16-true", "bf16-mixed"))):
        assert report.verdict == report.forecast.verdict == "equivalent"
        assert 0.5 < report.standardised.spread < report.standardised.spread_allowed
