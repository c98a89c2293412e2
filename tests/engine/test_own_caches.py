"""Tables that a program keeps outside its model, in the format of whichever run came first."""

import functools

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine import own_caches

SIZE = 2048


def made(like):
    """Places beside one, of which bfloat16 has few."""
    return torch.linspace(1.0, 2.0, SIZE).to(like.dtype)


IN_MODULE = {}


def in_module(x):
    if "grid" not in IN_MODULE:
        IN_MODULE["grid"] = made(x)
    return IN_MODULE["grid"]


def in_tuple(x, kept={}):  # noqa: B006
    if SIZE not in kept:
        kept[SIZE] = (made(x), SIZE)
    return kept[SIZE][0]


def in_attribute(x):
    if not hasattr(in_attribute, "grid"):
        in_attribute.grid = made(x)
    return in_attribute.grid


GRID = None


def in_global(x):
    global GRID
    if (GRID is None and len(x) > 3) or GRID is None:
        GRID = made(x)
    return GRID


@functools.lru_cache
def remembered(size):
    return torch.arange(size, dtype=FORMAT[0])


FORMAT = [torch.float32]


def in_memo(x):
    FORMAT[0] = x.dtype
    return 1 + remembered(SIZE).to(x.dtype) / SIZE


class Sines(nn.Module):
    """Counts the waves of a table that is kept somewhere."""

    kept = {}  # noqa: RUF012

    def __init__(self, table):
        super().__init__()
        self.table = table
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        table = in_class(x) if self.table is in_class else self.table(x)
        phase = (x * self.scale).sum(1, keepdim=True) * 0 + 900 * (table.float() - 1)
        wave = torch.sin(phase)
        return (wave.unsqueeze(1) * x[:, :3].float().unsqueeze(-1)).cumsum(-1)[..., ::511].sum(-1)


def in_class(x):
    if "grid" not in Sines.kept:
        Sines.kept["grid"] = made(x)
    return Sines.kept["grid"]


CONSTANTS = {"grid": torch.linspace(1.0, 2.0, SIZE), "unused": None}


def constant(x):
    return CONSTANTS["grid"].to(x.dtype)


KEPT = {
    "IN_MODULE": in_module,
    "in_tuple": in_tuple,
    "in_attribute": in_attribute,
    "GRID": in_global,
    "remembered": in_memo,
    "Sines.kept": in_class,
}


@pytest.fixture(autouse=True)
def empty():
    global GRID

    def clear():
        global GRID
        IN_MODULE.clear()
        in_tuple.__defaults__[0].clear()
        vars(in_attribute).clear()
        GRID = None
        remembered.cache_clear()
        Sines.kept.clear()
        FORMAT[0] = torch.float32

    clear()
    yield
    clear()


def checked(table, precision="bf16-true"):
    model = Sines(table)
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = model(x).argmax(-1)  # as tests do: in float32, before the check
    return check(Evaluation(model, [(x, labels)]), precision=precision)


@pytest.mark.parametrize("name", KEPT)
def test_each_run_makes_its_own(name):
    report = checked(KEPT[name])
    told = [w for w in report.warnings if "outside the model" in w]
    assert len(told) == 1
    assert told[0].startswith(f"{name} keeps tensors outside the model from one run to the next")
    alone = checked(lambda x: made(x))  # a table that nobody keeps
    assert report.metric.candidate == alone.metric.candidate
    assert report.verdict == alone.verdict
    assert not any("outside the model" in w for w in alone.warnings)


def test_what_was_there_is_there_afterwards():
    checked(in_module)
    assert IN_MODULE["grid"].dtype == torch.float32
    before = IN_MODULE["grid"]
    checked(in_module)
    assert IN_MODULE["grid"] is before
    checked(in_global)
    assert GRID.dtype == torch.float32
    assert not own_caches._ACTIVE


def test_constants_stay():
    report = checked(constant)
    assert not any("outside the model" in w for w in report.warnings)
    assert CONSTANTS["grid"].dtype == torch.float32


def test_a_model_that_keeps_nothing_is_run_no_more_often():
    runs = []

    def run():
        runs.append(1)
        return torch.zeros(1)

    assert own_caches.find_caches(nn.Linear(2, 2), None, run) == []
    assert not runs


def test_what_is_made_otherwise_again_is_no_cache():
    draws = {}

    def drawn(x):
        if "grid" not in draws:
            draws["grid"] = torch.rand(2)
        return draws["grid"]

    cache = own_caches.Cache("draws", draws)
    drawn(None)
    with own_caches.caches_apart():
        assert not own_caches._made_again(cache, lambda: drawn(None), draws["grid"].clone())
    assert len(draws["grid"]) == 2


SEEN = {}


def watched(x):
    SEEN["grid"] = made(x)
    return SEEN["grid"]


def test_what_each_run_writes_anew_is_left_where_it_is():
    """A hook's features, say, which a metric reads afterwards."""
    report = checked(watched)
    assert not any("outside the model" in w for w in report.warnings)
    assert SEEN["grid"].dtype == torch.bfloat16  # of the run that came last
