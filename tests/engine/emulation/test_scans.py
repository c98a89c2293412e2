"""Running sums and products in 16 bits, against each thread of CUDA's kernels written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.emulation.scans import is_short, threads_along
from pytest_fp16.engine.models import autocast
from pytest_fp16.precision import precision

DTYPES = (torch.float16, torch.bfloat16)
COMBINED = {"cumsum": torch.add, "cumprod": torch.mul, "logcumsumexp": torch.logaddexp}
NEUTRAL = {"cumsum": 0.0, "cumprod": 1.0, "logcumsumexp": -torch.inf}


def emulated(name, x, dim, target="cuda", **options):
    with Emulation(target):
        return getattr(torch, name)(x, dim, **options)


def thread_by_thread(name, row, threads):
    """One row, as a block of threads scans it along the last dimension; every result is 16-bit."""
    neutral = torch.tensor(NEUTRAL[name], dtype=row.dtype)
    total, found = neutral, []
    for start in range(0, len(row), 2 * threads):
        values = [*row[start : start + 2 * threads]]
        values += [neutral] * (2 * threads - len(values))
        values[0] = COMBINED[name](values[0], total)
        half = 1
        while half <= threads:
            for thread in range(threads):
                behind = thread // half * 2 * half + half
                at = behind + thread % half
                values[at] = COMBINED[name](values[at], values[behind - 1])
            half *= 2
        total = values[-1]
        found += values
    return torch.stack(found[: len(row)])


@given(
    name=st.sampled_from(sorted(COMBINED)),
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 5),
    size=st.integers(1, 80),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_along_the_last_dimension_blocks_are_scanned_by_halves(name, dtype, rows, size, seed):
    x = torch.rand(rows, size, generator=torch.Generator().manual_seed(seed)).add(0.5).to(dtype)
    threads = 1 << min(threads_along(rows, size), 6)  # no more than the row has pairs
    wanted = torch.stack([thread_by_thread(name, row, threads) for row in x])
    assert torch.equal(emulated(name, x, -1), wanted)


def test_many_rows_are_scanned_in_small_blocks():
    rows, size = 4000, 75
    assert 2 << threads_along(rows, size) == 32
    x = torch.rand(rows, size).half()
    found = emulated("cumsum", x, 1)
    for i in (0, 1234, rows - 1):
        assert torch.equal(found[i], thread_by_thread("cumsum", x[i], 16))


@pytest.mark.parametrize(
    ("rows", "size", "log"), [(1, 10, 9), (8, 512, 7), (512, 8, 4), (2**20, 4, 9), (2, 2**20, 9)]
)
def test_threads_of_a_row(rows, size, log):
    assert threads_along(rows, size) == log


@pytest.mark.parametrize("name", COMBINED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_along_others_every_sum_is_rounded(name, dtype):
    x = torch.rand(2, 50, 3).add(0.5).to(dtype)
    total, found = x[:, 0], [x[:, 0]]
    for i in range(1, 50):
        found.append(total := COMBINED[name](total, x[:, i]))
    assert torch.equal(emulated(name, x, 1), torch.stack(found, 1))
    assert torch.equal(emulated(name, x, -2), torch.stack(found, 1))


def test_a_count_stalls_along_others_and_not_along_the_last():
    ones = torch.ones(3000, 2, dtype=torch.float16)
    assert float(emulated("cumsum", ones, 0)[-1, 0]) == 2048
    assert float(emulated("cumsum", ones.T.contiguous(), 1)[0, -1]) == pytest.approx(
        3000, abs=2
    )  # one step
    assert float(emulated("cumsum", ones, 0, target="cpu")[-1, 0]) == 3000


def test_in_place_of_another_type_and_of_nothing():
    x = torch.rand(4, 9).half()
    wanted = emulated("cumsum", x, 1)
    with Emulation("cuda"):
        again = x.clone().cumsum_(1)
        asked = x.clone().cumsum_(1, dtype=torch.float16)
        wide = x.cumsum(1, dtype=torch.float32)
        narrow = x.float().cumsum(1, dtype=torch.float16)
    assert torch.equal(again, wanted)
    assert torch.equal(asked, wanted)
    assert torch.equal(wide, x.float().cumsum(1))
    assert narrow.dtype == torch.float16
    for empty in (torch.zeros(0, 3), torch.zeros(3, 0), torch.tensor(1.5)):
        assert torch.equal(emulated("cumsum", empty.half(), 0), empty.half())


def test_under_autocast_it_is_float32():
    class Summed(nn.Module):
        def forward(self, x):
            return x.half().cumsum(0)

    with (
        autocast(precision("16-mixed"), torch.device("cpu"), "cuda"),
        Emulation("cuda", mixed=True),
    ):
        assert Summed()(torch.ones(3000, 2)).dtype == torch.float32


class Position(nn.Module):
    """Classes by how far a walk has come, along time or along a row."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.register_buffer("turns", torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def forward(self, x):
        walked = (x.abs() + 0.01).cumsum(self.dim)
        place = walked[:, -1] if self.dim == 1 else walked[..., -1].unsqueeze(-1)
        return (place[:, :1] * 4 * self.turns).sin()


@pytest.mark.parametrize("name", ["16-true", "bf16-true"])
def test_theory_and_diagnosis_follow_each_step(name):
    torch.manual_seed(0)
    x = torch.rand(120, 200, 2) * 0.1
    model = Position(1).eval()
    report = check(Evaluation(model, [x], labelled=False), precision=name)
    (checked,) = (c for c in report.checks if c.name == "as predicted")
    assert checked.passed, checked.detail
    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert report.culprit.operation == "cumsum"


@pytest.mark.parametrize("name", COMBINED)
@pytest.mark.parametrize("shape", [(3, 400, 2), (500, 600)])
def test_a_long_one_is_no_loop_and_gives_the_same(name, shape):
    x = torch.rand(shape).add(0.5).bfloat16()
    assert not is_short(x, 1)
    found = emulated(name, x, 1)
    if len(shape) > 2:
        wanted = [x[:, 0]]
        for i in range(1, 400):
            wanted.append(COMBINED[name](wanted[-1], x[:, i]))
        assert torch.equal(found, torch.stack(wanted, 1))
    else:
        threads = 1 << threads_along(*shape)
        assert torch.equal(found[7], thread_by_thread(name, x[7], threads))


def test_the_error_of_a_long_one_is_forecast_and_explained():
    torch.manual_seed(0)
    x = torch.rand(60, 1000, 2) * 0.02
    report = check(Evaluation(Position(1).eval(), [x], labelled=False), precision="bf16-true")
    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert (report.culprit.operation, report.culprit.mechanism) == ("cumsum", "absorption")
