"""What is spent on trying cures, and what is remembered of those that fell short."""

from collections import OrderedDict
from types import SimpleNamespace

from torch import nn

from pytest_fp16.diagnosis.remedy import Remedy
from pytest_fp16.diagnosis.trials import Recheck, Trials
from pytest_fp16.errors import ModelError

BAD = SimpleNamespace(equivalent=False)
GOOD = SimpleNamespace(equivalent=True)


def trials(judge, **options):
    model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())
    return Trials(model, "16-true", judge, lambda *_: None, lambda _: None, **options)


def test_a_sibling_that_was_run_already_costs_nothing():
    found = trials(lambda _: Recheck(BAD), siblings={"16-mixed": GOOD})
    before = found.budget
    assert found.judged(Remedy("16-mixed")) is GOOD
    assert found.budget == before
    assert found.judged(Remedy("16-mixed", ("0",))) is BAD  # with a module kept it is another
    assert found.budget == before - 1


def test_what_falls_short_is_remembered_and_told_of_its_own_precision():
    kept = object()
    found = trials(lambda remedy: Recheck(GOOD if remedy.lines else BAD, kept))
    module, line, other = Remedy("16-true", ("1",)), Remedy("16-true", lines=("a:1",)), "bf16-true"
    assert found.judged(line) is GOOD
    found.judged(Remedy(other))
    found.judged(module)
    assert {remedy: again.kept for remedy, again in found.short.items()} == {
        module: kept,
        Remedy(other): kept,
    }
    assert found.shortfall(lambda _: True) == (module, BAD)
    assert found.shortfall(lambda remedy: bool(remedy.lines)) is None


def test_nothing_is_judged_once_the_budget_is_spent_or_where_it_cannot_be_applied():
    def refuses(_):
        raise ModelError("no such module")

    found = trials(refuses)
    assert found.judged(Remedy("16-true", ("1",))) is None
    assert found.budget > 0
    found = trials(lambda _: Recheck(BAD))
    found.budget = 1
    assert found.judged(Remedy("16-true", ("1",))) is BAD
    assert found.judged(Remedy("16-true", ("0",))) is None


def test_a_table_stays_in_16_bits_where_all_that_computes_does_not():
    model = nn.Sequential(OrderedDict(table=nn.Embedding(50, 4), score=nn.Linear(4, 4)))
    trials = Trials(model, "16-true", lambda _: None, lambda *_: None, lambda _: None)
    assert trials.stores(Remedy("16-true", ("score",)))
    assert not trials.stores(Remedy("16-true", ("table",)))
    assert not trials.stores(Remedy("16-true", ("score", "table")))
    assert not trials.stores(Remedy("16-mixed", ("score",)))
    assert not trials.stores(Remedy("16-true", lines=("net.py:3",)))
