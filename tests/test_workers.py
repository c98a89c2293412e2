"""Whether a worker can count on all items of a test coming to it."""

from types import SimpleNamespace

import pytest

from pytest_fp16.workers import Workers, stands_apart, tell_tests


@pytest.mark.parametrize(
    ("dist", "apart"), [("load", True), ("worksteal", True), ("loadfile", False), ("each", False)]
)
def test_a_worker_knows_how_tests_are_distributed(dist, apart):
    node = SimpleNamespace(workerinput={}, config=SimpleNamespace(getoption={"dist": dist}.get))
    Workers(set()).pytest_configure_node(node)
    assert stands_apart(SimpleNamespace(workerinput=node.workerinput)) is apart


def test_without_workers_items_stay_together():
    assert not stands_apart(SimpleNamespace())
    assert stands_apart(SimpleNamespace(workerinput={}))


def test_a_controller_hears_which_tests_there_are():
    worker, found = SimpleNamespace(workeroutput={}), set()
    tell_tests(worker, {"test_it.py::test_b", "test_it.py::test_a"})
    tell_tests(SimpleNamespace(), {"no worker"})
    controller = Workers(found)
    controller.pytest_testnodedown(worker)
    controller.pytest_testnodedown(SimpleNamespace())  # it has crashed
    assert found == {"test_it.py::test_a", "test_it.py::test_b"}
