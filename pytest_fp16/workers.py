"""What xdist's controller tells its workers, and what they make of it. Imports no pytest, no xdist.

Workers are not told how tests are distributed.
"""

from __future__ import annotations

from typing import Any

_TOGETHER = "fp16_together"
#: Distributions that leave all items of a test to one worker.
_LEAVES_TOGETHER = ("loadfile", "loadscope", "each")


class Workers:
    """The hooks of a controller; to be registered only where xdist declares them."""

    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker whether the items of a test come to it together."""
        node.workerinput[_TOGETHER] = node.config.getoption("dist") in _LEAVES_TOGETHER


def stands_apart(config: Any) -> bool:
    """Whether this process is a worker that may be given some items of a test and not others."""
    told: dict[str, Any] | None = getattr(config, "workerinput", None)
    return told is not None and not told.get(_TOGETHER, False)
