"""Pretrained models from packages: voices are voices, and what is not installed is said."""

import pytest
import torch

from benchmarks import packages


def test_voices_are_loud_enough_and_differ():
    made = packages.voices(3, 0.2)
    assert made.shape == (3, 3200)
    assert torch.allclose(made.abs().amax(1), torch.tensor(0.7))
    assert not torch.equal(made[0], made[1])
    assert torch.equal(made, packages.voices(3, 0.2))


def test_what_does_not_load_is_left_out_and_said(monkeypatch):
    def broken():
        raise ModuleNotFoundError("No module named 'crystal_ball'\nat all")

    monkeypatch.setattr(packages, "SUBJECTS", {"oracle": broken})
    seen = packages.judged("oracle", quick=True)
    assert seen.rows == ()
    assert seen.missing == "oracle (ModuleNotFoundError: No module named 'crystal_ball')"


@pytest.mark.parametrize("quick", [True, False])
def test_every_precision_is_told_beside_native_kernels(monkeypatch, quick):
    def loaded():
        torch.manual_seed(0)
        return packages.Evaluation(torch.nn.Linear(6, 3).eval(), [torch.randn(30, 6)])

    monkeypatch.setattr(packages, "SUBJECTS", {"line": loaded})
    seen = packages.judged("line", quick)
    assert [row[1] for row in seen.rows] == list(packages.ALL[: 1 if quick else None])
    for row in seen.rows:
        assert len(row) == len(packages.HEADERS)
        assert row[2:5] == ("equivalent",) * 3
