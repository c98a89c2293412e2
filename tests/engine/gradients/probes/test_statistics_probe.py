"""Running statistics alone, beside the recurrence written down."""

import pytest
import torch
from torch import nn

from pytest_fp16.engine.gradients.probes.statistics_probe import StatisticsRecorder
from pytest_fp16.engine.gradients.rules.buffer_rules import END_LAG


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.fixed = nn.BatchNorm1d(4, track_running_stats=False)
        self.average = nn.BatchNorm1d(4, momentum=None)
        self.norm = nn.LayerNorm(4)


def recorded(norm, scale=1.0, shift=0.0, steps=8):
    norm.train()
    recorder = StatisticsRecorder(norm)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        norm(shift + scale * torch.randn(64, 4, generator=generator))
        recorder.keep()
    return {lag.name: lag for lag in recorder.lags(1000, torch.float16)}, recorder


def test_norms_that_track_with_a_momentum_are_followed():
    assert StatisticsRecorder(Nested()).names == {"stem.1.running_mean", "stem.1.running_var"}
    assert StatisticsRecorder(nn.BatchNorm1d(4)).names == {"running_mean", "running_var"}
    assert StatisticsRecorder(nn.Linear(2, 2)).names == set()


def test_one_look_shows_no_way():
    assert StatisticsRecorder(nn.BatchNorm1d(4)).lags(100, torch.float16) == []


def test_ordinary_statistics_arrive():
    lags, _ = recorded(nn.BatchNorm1d(4))
    assert set(lags) == {"running_mean", "running_var"}
    assert all(lag.share < 0.05 and lag.lost == 0 for lag in lags.values())
    assert lags["running_mean"].momentum == 0.1


@pytest.mark.parametrize(("momentum", "stuck"), [(0.1, False), (1e-4, True)])
def test_a_step_below_half_an_ulp_is_no_step(momentum, stuck):
    """From 1 towards 9: momentum 1e-4 steps by 8e-4 of values whose ulp is 1e-3 and more."""
    norm = nn.BatchNorm1d(4, momentum=momentum)
    norm.train()
    recorder = StatisticsRecorder(norm)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        norm(3 * torch.randn(4096, 4, generator=generator))
        recorder.keep()
    var = {lag.name: lag for lag in recorder.lags(1500, torch.bfloat16)}["running_var"]
    assert (var.share > 0.3) == stuck
    wide = {lag.name: lag for lag in recorder.lags(1500, torch.float32)}["running_var"]
    assert wide.share < 1e-5


def test_a_variance_that_leaves_the_range_long_after_the_first_steps():
    lags, recorder = recorded(nn.BatchNorm1d(4, momentum=0.01), scale=500.0)
    assert bool(recorder.kept[-1][""][1].max() < 65504)  # not yet
    assert lags["running_var"].lost == 1
    assert lags["running_mean"].lost == 0
    inside, _ = recorded(nn.BatchNorm1d(4, momentum=0.01), scale=200.0)
    assert inside["running_var"].lost == 0  # it would end at 40000, and does
    bfloat16 = {lag.name: lag for lag in recorder.lags(1000, torch.bfloat16)}
    assert bfloat16["running_var"].lost == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_channel_that_is_dead_is_held_against_the_epsilon(dtype):
    """A constant has a variance of zero: what rounding leaves of it is far below the epsilon."""
    lags, recorder = recorded(nn.BatchNorm1d(4), scale=0.0, shift=0.0464)
    found = {lag.name: lag for lag in recorder.lags(1000, dtype)}
    assert all(lag.share < END_LAG for lag in found.values())
    assert lags["running_var"].share > 0  # float16 does not get below its least numbers
