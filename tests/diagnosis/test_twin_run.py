"""The two programs of a twin run are the emulated one and the float32 one, and cuts lie between."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16.diagnosis.replay import healed


class Views(nn.Module):
    """Writes in place, through views, in lists and out= arguments."""

    def forward(self, x):
        y = x * 1.1
        y[:, :8] += 0.3
        first, second = y.chunk(2, -1)
        first.mul_(second.sigmoid())
        y.t_()
        y.t_()
        out = torch.empty_like(y)
        torch.add(y, 0.1, out=out)
        return torch.cat([out, torch.stack([first, second]).sum(0)], -1)[:, :32]


class Attend(nn.Module):
    def forward(self, x):
        h = x.unflatten(-1, (4, 8)).unsqueeze(1)
        return F.scaled_dot_product_attention(h, h, h).flatten(1)


PARTS = [Views(), Attend(), nn.LayerNorm(32), nn.BatchNorm1d(32), nn.GELU(), nn.Softmax(-1)]


@pytest.mark.parametrize("name", ["16-true", "16-mixed", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("part", PARTS, ids=lambda p: type(p).__name__)
def test_healed_from_the_start_it_is_the_reference_and_never_the_emulation(
    make_net, comparison, part, name
):
    found = comparison(make_net(part, steps=0), name)
    few = found.sample
    emulated = found.candidate.outputs(few.inputs, few.seed, emulated=True)
    torch.testing.assert_close(found.run(), emulated, rtol=0, atol=0)
    torch.testing.assert_close(found.run(0), found.wanted, rtol=1e-5, atol=1e-5)
    assert not torch.equal(found.run(), found.wanted)


def test_damage_grows_with_the_cut(make_net, comparison):
    found = comparison(make_net(nn.LayerNorm(32)), "bf16-true")
    found.run()
    count = len(found.last.operations)
    errors = [float((found.run(i) - found.wanted).abs().max()) for i in range(count + 1)]
    assert errors[0] < 1e-5 < errors[-1]
    assert min(errors[count // 2 :]) > errors[0]


def test_a_recurrent_net_of_packed_sequences_can_be_followed(comparison):
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 10)

        def forward(self, x):
            x = x[:, 0]
            lengths = torch.full((len(x),), 8)
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            _, (hidden, _) = self.cell(packed)
            return self.head(hidden[-1])

    torch.manual_seed(0)
    found = comparison(Packed().eval())
    torch.testing.assert_close(found.run(0), found.wanted, rtol=1e-5, atol=1e-5)


def test_watched_operations_carry_line_and_measures(make_net, comparison):
    found = comparison(make_net(nn.ReLU(), gain=1e6))
    operations = found.side_by_side(lambda i: True)
    scaled = next(o for o in operations if o.name == "mul" and not o.module)
    assert "conftest.py" in scaled.source
    assert scaled.finding.scalars == [1e6]
    assert scaled.finding.own[0].infinite > 0
    assert scaled.finding.own[0].largest > 65504


def test_a_recording_is_the_emulation_and_plays_as_the_program_runs(make_net, comparison):
    for part in PARTS:
        for name in ("16-true", "bf16-mixed"):
            found = comparison(make_net(part, steps=0), name)
            torch.testing.assert_close(found.record(), found.run(), rtol=0, atol=0)
            for until in range(len(found.operations) + 1):
                torch.testing.assert_close(healed(found.tape, until), found.run(until))
