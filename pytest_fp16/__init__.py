"""May this PyTorch model be evaluated, or trained, in 16 bits instead of 32?

The public names are loaded when first used (PEP 562): pytest imports this package in every run
of every project it is installed beside, so importing it must not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_fp16.conformance import check as check
    from pytest_fp16.decorator import fp16_equivalent as fp16_equivalent
    from pytest_fp16.metric.dataset import DatasetMetric as DatasetMetric
    from pytest_fp16.report.model import Report as Report
    from pytest_fp16.settings import Settings as Settings
    from pytest_fp16.subject import Evaluation as Evaluation
    from pytest_fp16.subject import Training as Training

_HOMES = {
    "DatasetMetric": "pytest_fp16.metric.dataset",
    "Evaluation": "pytest_fp16.subject",
    "Report": "pytest_fp16.report.model",
    "Settings": "pytest_fp16.settings",
    "Training": "pytest_fp16.subject",
    "check": "pytest_fp16.conformance",
    "fp16_equivalent": "pytest_fp16.decorator",
}

__all__ = [
    "DatasetMetric",
    "Evaluation",
    "Report",
    "Settings",
    "Training",
    "check",
    "fp16_equivalent",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("pytest-fp16")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
