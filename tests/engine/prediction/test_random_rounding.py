"""σ from runs rounded at random, beside the one that the reverse pass derives."""

import pytest
import torch
from torch import nn

from pytest_fp16.engine.prediction.random_rounding import NOISE_RUNS, noise_batch

N = 200


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 4)).eval()


@pytest.fixture
def x():
    return torch.randn(N, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["16-true", "bf16-true"])
def test_sigma_is_that_of_the_reverse_pass(theory_of, x, name):
    theory, reference = theory_of(mlp(), x, name)
    derived = theory.run(x, N, reference, 0)
    found = noise_batch(theory, x, N, reference, 0)
    torch.testing.assert_close(found.margin, derived.margin)
    # A mean square of R errors over R − 2 has the expectation that makes E[e²/σ̂²] one; the root
    # mean square over many inputs is √(R/(R−2)) too large, and varies by 1/√(2NR).
    ratio = float((found.sigma.square().mean() / derived.sigma.square().mean()).sqrt())
    assert ratio == pytest.approx((NOISE_RUNS / (NOISE_RUNS - 2)) ** 0.5, rel=0.15)


def test_it_certifies_no_worst_case(theory_of, x):
    theory, reference = theory_of(mlp(), x)
    found = noise_batch(theory, x, N, reference, 0)
    assert found.bound is None
    assert not bool(found.bounded.any())
    assert torch.equal(found.probable, found.margin > 4 * found.sigma)
    assert 0.5 < float(found.probable.float().mean()) <= 1


def test_the_classes_of_each_run_are_kept_and_nan_has_none(theory_of, x):
    class Poisoned(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            z = self.body(x)
            return torch.where(x[:, :1] > 1.5, z * torch.nan, z)

    theory, reference = theory_of(mlp(), x)
    classes = noise_batch(theory, x, N, reference, 0).noisy_classes
    assert classes.shape == (NOISE_RUNS, N, 1)
    assert (classes == reference.argmax(-1)).float().mean() > 0.95
    assert not noise_batch(theory, x, N, reference, 0).noisy_lost.any()
    theory, _ = theory_of(Poisoned().eval(), x)
    found = noise_batch(theory, x, N, reference, 0)
    classes = found.noisy_classes
    assert bool(found.noisy_lost.all())
    lost = x[:, 0] > 1.6
    assert bool((classes[:, lost] == -1).all())
    assert bool((classes[:, x[:, 0] < 1.4] >= 0).all())


class OnEdge(nn.Module):
    """An index that is in its table as long as chances add up to one."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, x):
        chances = (3 * x).softmax(-1)
        index = (32768 * (chances.sum(-1) - 1)).abs().round().long()
        return x[:, :4] + torch.arange(self.table, dtype=x.dtype)[index].unsqueeze(1)


def test_a_run_that_stops_the_program_has_lost_its_outputs(theory_of, x):
    theory, reference = theory_of(OnEdge(1).eval(), x)
    found = noise_batch(theory, x, N, reference, 0)
    lost = found.noisy_lost
    assert bool(lost.any())
    assert bool((found.noisy_classes[lost] == -1).all())
    assert bool((found.noisy_classes[~lost] >= 0).all())


def test_the_same_seed_gives_the_same_theory(theory_of, x):
    theory, reference = theory_of(mlp(), x)
    first, again, other = (noise_batch(theory, x, N, reference, seed) for seed in (0, 0, 1))
    assert torch.equal(first.sigma, again.sigma)
    assert not torch.equal(first.sigma, other.sigma)


def test_values_have_a_sigma_and_no_decision(theory_of, x):
    model = nn.Sequential(nn.Linear(10, 1)).eval()
    theory, reference = theory_of(model, x, kind="regression")
    found = noise_batch(theory, x, N, reference, 0)
    assert not bool(found.probable.any())
    assert bool((found.sigma > 0).any())


def test_mean_and_scatter_give_the_expected_squared_error(theory_of, x, monkeypatch):
    model = nn.Sequential(nn.Linear(10, 3)).eval()
    theory, reference = theory_of(model, x, "bf16-true", kind="regression")
    runs, trace = [], theory.trace

    def kept(*args, **keywords):
        found = trace(*args, **keywords)
        if "noise" in keywords:
            runs.append(found[1].detach().clone())
        return found

    monkeypatch.setattr(theory, "trace", kept)
    found = noise_batch(theory, x, N, reference, 0)
    assert found.noisy_classes is None
    labels = torch.randn(N, 1, 3, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([(run - labels).square().flatten(1).sum(1) for run in runs]).mean(0)
    assert len(runs) == NOISE_RUNS
    actual = (found.average - labels).square().flatten(1).sum(1) + found.scatter
    torch.testing.assert_close(actual, expected)
    assert bool((found.scatter > 0).any())


class Looked(nn.Module):
    """Values of a table, by clamped coordinates: the last one is the table's last."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.linspace(-1, 1, 21))

    def forward(self, x):
        place = (x.clamp(-5, 5) + 5) / 0.5
        low, high = place.floor().long(), place.ceil().long()
        part = place - low.to(place.dtype)
        return (self.table[low] * (1 - part) + self.table[high] * part)[:, :4]


@pytest.mark.parametrize("name", ["16-true", "bf16-true"])
def test_what_a_clamp_has_made_equal_has_no_error(theory_of, x, name):
    far = 20 * x
    theory, reference = theory_of(Looked().eval(), far, name)
    found = noise_batch(theory, far, N, reference, 0)  # an index beyond the table would raise
    ends = (far[:, :4].abs() >= 5).all(1)
    assert bool(ends.any())
    assert float(found.sigma[ends].max()) == 0
    assert bool((found.sigma[~ends] > 0).any())
