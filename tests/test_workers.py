"""Whether a worker can count on all items of a test coming to it."""

from types import SimpleNamespace

import pytest

from pytest_fp16.workers import Workers, stands_apart


@pytest.mark.parametrize(
    ("dist", "apart"), [("load", True), ("worksteal", True), ("loadfile", False), ("each", False)]
)
def test_a_worker_knows_how_tests_are_distributed(dist, apart):
    node = SimpleNamespace(workerinput={}, config=SimpleNamespace(getoption={"dist": dist}.get))
    Workers().pytest_configure_node(node)
    assert stands_apart(SimpleNamespace(workerinput=node.workerinput)) is apart


def test_without_workers_items_stay_together():
    assert not stands_apart(SimpleNamespace())
    assert stands_apart(SimpleNamespace(workerinput={}))
