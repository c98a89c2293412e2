"""The sweep over architectures, on architectures of torch alone."""

import sys
import warnings

import torch
from torch import nn

from benchmarks import architectures, zoo
from benchmarks.architectures import HEADERS, Tally, examined
from benchmarks.zoo.base import Architecture, image, pairs, tokens

COLUMNS = len(HEADERS) + 2


def network():
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


SOUND = Architecture("sound", "vision", "torch", network, image)


def test_a_sound_architecture_keeps_every_claim():
    tally = Tally()
    row, reports = examined(SOUND)
    tally.take(reports)
    assert row[:6] == ("sound", "vision", "torch", "equivalent", "the same", "adjoint")
    assert len(row) == COLUMNS
    assert tally.checks == tally.forecast == tally.agreed == tally.passed == tally.judged == 3
    assert tally.strayed == tally.crashed == 0
    assert "Of 3 checks 0 crashed; 3 of 3 (100.0%) had a forecast" in tally.said()


def test_what_breaks_is_counted():
    class Solves(nn.Module):
        def forward(self, x):
            return torch.linalg.inv(x[:, 0] + 30 * torch.eye(32, dtype=x.dtype)).flatten(1)

    tally = Tally()
    row, reports = examined(Architecture("solves", "vision", "torch", Solves, image))
    tally.take(reports)
    assert row[3].startswith("16-true: RuntimeError: linalg_inv_ex has no float16 kernel")
    assert row[6] == "—"
    assert (tally.agreed, tally.ran) == (3, 1)  # mixed precision leaves it in float32

    def missing():
        raise OSError("no such configuration")

    row, reports = examined(Architecture("missing", "vision", "torch", missing, image))
    tally.take(reports)
    assert row[3] == "crashed: OSError: no such configuration"
    assert len(row) == COLUMNS
    assert (tally.checks, tally.crashed) == (6, 3)
    assert tally.said()


def test_every_part_of_a_random_network_is_alive():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.full((8,), 1e-6))
            self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 4)
            nn.init.zeros_(self.head.weight)

        def forward(self, x):
            return self.head(self.norm(x * self.scale))

    model, x = Architecture("scaled", "", "torch", Scaled, lambda: torch.randn(50, 8)).build()
    assert not model.training
    assert float(model.scale.detach().min()) > 0.1
    assert float(model(x).detach().std()) > 0.1
    hidden = model.norm(x * model.scale)
    assert torch.allclose(hidden.mean(0), torch.zeros(8), atol=1e-4)


def test_the_zoo_is_large_and_its_names_are_unique():
    counted = [one.library for one in zoo.ALL]
    assert counted.count("transformers") >= 40
    assert counted.count("timm") >= 25
    assert len({(one.library, one.kind, one.name) for one in zoo.ALL}) == len(zoo.ALL)
    assert len({one.kind for one in zoo.ALL}) >= 10
    assert tokens()["attention_mask"].sum(1).unique().tolist() == [9, 10, 11, 12]
    assert set(pairs()) == {"input_ids", "attention_mask", "decoder_input_ids"}


def test_a_library_that_is_missing_is_left_out_with_a_reason(monkeypatch, capsys):
    absent = Architecture("resnet18", "vision", "no_such_library", network, image)
    here = Architecture("vit", "vision", "torch", network, image)
    monkeypatch.setattr(architectures, "ALL", (here, absent))
    monkeypatch.setattr(sys, "argv", ["architectures", "--quick"])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    with warnings.catch_warnings():
        architectures.main()
    said = capsys.readouterr().out
    assert "no_such_library is not installed: left out." in said
    assert "| vit " in said
    assert "Of 3 checks" in said
