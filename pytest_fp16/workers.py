"""What xdist's controller and its workers tell each other. Imports no pytest, no xdist.

Workers are not told how tests are distributed, and the controller does not know which there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_TESTS = "fp16_tests"
_TOGETHER = "fp16_together"
#: Distributions that leave all items of a test to one worker.
_LEAVES_TOGETHER = ("loadfile", "loadscope", "each")


class Workers:
    """The hooks of a controller; to be registered only where xdist declares them.

    Args:
        tests: to which the tests that workers have found are added, without precisions.
    """

    def __init__(self, tests: set[str]) -> None:
        self.tests = tests

    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker whether the items of a test come to it together."""
        node.workerinput[_TOGETHER] = node.config.getoption("dist") in _LEAVES_TOGETHER

    def pytest_testnodedown(self, node: Any) -> None:
        """Hear from a worker that has ended; one that has crashed says nothing."""
        self.tests.update(getattr(node, "workeroutput", {}).get(_TESTS, ()))


def tell_tests(config: Any, tests: Iterable[str]) -> None:
    """Tell the controller which tests there are, where this process is a worker."""
    output: dict[str, Any] | None = getattr(config, "workeroutput", None)
    if output is not None:
        output[_TESTS] = sorted(tests)


def stands_apart(config: Any) -> bool:
    """Whether this process is a worker that may be given some items of a test and not others."""
    told: dict[str, Any] | None = getattr(config, "workerinput", None)
    return told is not None and not told.get(_TOGETHER, False)
