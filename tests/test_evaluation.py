"""Batches that cannot be cut, kernels the target lacks, scripted modules, lost regressions."""

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from pytest_fp16 import Evaluation, check


class Graph(nn.Module):
    """One mean over neighbours; `gain` is taken back after the sum."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 16)
        self.leave = nn.Linear(16, 3)
        self.gain = gain

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        messages = (self.enter(x).relu() * self.gain)[source]
        total = torch.zeros_like(messages[: len(x)]).index_add(0, target, messages)
        return 10 * self.leave(total / self.gain)


def graph(gain: float) -> Evaluation:
    torch.manual_seed(0)
    model, x = Graph(gain).eval(), torch.randn(60, 8) + 2
    edges = torch.randint(0, 60, (2, 400))
    with torch.no_grad():
        labels = model(x, edges).argmax(-1)
    return Evaluation(model=model, data=[{"x": x, "edges": edges, "labels": labels}])


def test_a_graph_is_never_cut():
    report = check(graph(1.0), precision="16-true")
    assert report.verdict == "equivalent", str(report)
    assert not report.warnings, "the canary runs on all nodes, or the edges point nowhere"


def test_a_graph_that_overflows_is_diagnosed():
    report = check(graph(5000.0), precision="16-true")
    assert report.verdict == "not equivalent"
    assert report.culprit is not None, report.warnings
    assert report.culprit.mechanism == "overflow"


class Histogram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.stack([torch.histc(row, bins=8, min=0.0, max=1.0) for row in x]))


@pytest.mark.parametrize(("target", "verdict"), [("cuda", "not equivalent"), ("cpu", "equivalent")])
def test_a_kernel_the_target_lacks_is_no_matter_of_this_device(target, verdict):
    torch.manual_seed(0)
    model, x = Histogram().eval(), torch.rand(40, 20)
    report = check(
        Evaluation(model=model, data=[x], labelled=False), precision="16-true", target=target
    )
    assert report.verdict == verdict, str(report)
    if target == "cuda":
        assert report.culprit is not None
        assert report.culprit.mechanism == "unsupported-op"
        assert report.forecast.verdict == verdict


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_a_scripted_module_is_examined_without_a_warning():
    model = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not a leaf Tensor.*")
        report = check(
            Evaluation(model=model, data=[torch.randn(30, 8)], labelled=False), precision="16-true"
        )
    assert report.verdict == "equivalent", str(report)


def test_a_regression_lost_to_infinity_has_no_finite_r2():
    torch.manual_seed(0)
    model, x = nn.Linear(8, 1), torch.randn(60, 8)
    nn.init.constant_(model.bias, 2e5)
    with torch.no_grad():
        labels = model(x)
    report = check(Evaluation(model=model.eval(), data=[(x, labels)]), precision="16-true")
    assert report.verdict == "not equivalent"
    assert report.metric.candidate == -math.inf
    assert "R² -infinite" in str(report)
