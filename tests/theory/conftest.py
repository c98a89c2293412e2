"""Looks at runs over seeds, one after the other."""

import pytest

from pytest_fp16.theory.seeds import sequential
from pytest_fp16.theory.seeds_ahead import further_runs


def looked(losses, metrics, resolution, allowance, budget=None):
    """The look that settles it, or the last; 32-bit runs beyond the allowance are the further."""
    for n in range(1, allowance + 1):
        look = sequential(losses[:n], metrics[:n], resolution, allowance, budget)
        if look.outcome != "undecided":
            return look
    arguments = (losses[:allowance], resolution, allowance, budget)
    while look.runs < len(metrics) and further_runs(look, losses[:allowance], allowance):
        look = sharpened(metrics, look, *arguments)
    return look


def sharpened(metrics, look, losses, resolution, allowance, budget):
    """The next look at further 32-bit runs."""
    runs = metrics[: look.runs + allowance]
    return sequential(losses, runs, resolution, allowance, budget, further=look.further + 1)


@pytest.fixture(scope="session")
def settled():
    """Looks until one settles it, or is the last."""
    return looked
