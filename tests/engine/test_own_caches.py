"""Tables that a program keeps outside its model, in the format of whichever run came first."""

import functools

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, Training, check
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

    assert own_caches.find_caches(nn.Linear(2, 2), (), run) == []
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


class Shifted(nn.Module):
    """Adds a table that it keeps outside."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = self.first(x)
        return self.second(torch.relu(h + in_module(h)[:8]))


class Plain(Shifted):
    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def with_a_table(model, batch):
    """A training step that weighs with a table of its own."""
    x, y = batch
    weights = in_class(x)[:2]
    return nn.functional.cross_entropy(model(x), y, weight=weights)


def batches(count):
    random = torch.Generator().manual_seed(3)
    x = torch.randn(count, 32, 4, generator=random)
    return [(rows, (rows[:, 0] > 0).long()) for rows in x]


@pytest.mark.parametrize("precision", ["bf16-true", "16-mixed"])
@pytest.mark.parametrize("where", ["IN_MODULE", "Sines.kept"])
def test_each_run_of_a_training_makes_its_own(where, precision):
    """With the reference's table a step meets two dtypes, and raises."""
    own = where == "Sines.kept"
    report = check(
        Training(
            model=Plain if own else Shifted,
            train_data=batches(12),
            eval_data=batches(4),
            loss=None if own else nn.CrossEntropyLoss(),
            optimizer=lambda p: torch.optim.SGD(p, 0.5),
            training_step=with_a_table if own else None,
        ),
        precision=precision,
        seeds=3,
    )
    assert report.verdict == report.forecast.verdict == "equivalent", str(report)
    told = [w for w in report.warnings if "outside the model" in w]
    assert len(told) == 1
    assert told[0].startswith(f"{where} keeps tensors outside the model")
    assert not any("expected a failure" in w for w in report.warnings)
    assert not own_caches._ACTIVE


def test_a_run_goes_on_with_its_own_and_another_begins_without():
    bank = {"rows": torch.zeros(1)}
    one, other = own_caches.OwnTables(), own_caches.OwnTables()

    def step():
        bank["rows"] = bank.get("rows", torch.ones(1)) + 1
        return float(bank["rows"])

    with own_caches.caches_apart():
        own_caches._ACTIVE.append(own_caches.Cache("bank", bank))
        found = []
        for run in (one, other, one, one, other):
            with run.lent(), own_caches.without_caches():  # a part of the run
                found.append(step())
        assert found == [2.0, 2.0, 3.0, 4.0, 3.0]
        with own_caches.without_caches():
            assert step() == 2.0
        assert float(bank["rows"]) == 0.0
        with pytest.raises(ZeroDivisionError), one.lent():
            raise ZeroDivisionError
        with other.lent():
            assert step() == 4.0
    assert float(bank["rows"]) == 0.0


def test_a_check_within_another_goes_on_with_what_that_has_found():
    with own_caches.caches_apart():
        own_caches._ACTIVE.append(own_caches.Cache("IN_MODULE", IN_MODULE))
        with own_caches.caches_apart():
            assert [cache.name for cache in own_caches._ACTIVE] == ["IN_MODULE"]
            in_module(torch.ones(1))
            found = own_caches.find_caches(Shifted(), (), lambda: torch.zeros(1))
            assert found == []
            own_caches._ACTIVE.clear()
        assert len(own_caches._ACTIVE) == 1
    assert not own_caches._ACTIVE
