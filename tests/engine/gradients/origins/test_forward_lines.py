"""The line of an operation of a backward pass is that of the forward one it belongs to."""

import runpy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_fp16.engine.gradients.origins import forward_lines
from pytest_fp16.engine.gradients.origins.forward_lines import (
    ForwardLines,
    backward_pass,
    forward_name,
    goes_backwards,
)
from pytest_fp16.engine.source import Line


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.lines, self.seen, self.running = ForwardLines(), {}, ""
        self.places = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.running = func.__name__.partition(".")[0]
        self.lines.note(f"in {self.running}")
        self.places[self.running] = self.lines.place
        line, of = self.lines.here()
        self.seen[self.running, of] = line
        return func(*args, **(kwargs or {}))


def watched(monkeypatch, program):
    """Lines by (operation, forward operation); that of one that runs forwards has its name."""
    watch = Watch()
    monkeypatch.setattr(forward_lines, "user_line", lambda: Line(watch.running, 1))
    x = torch.ones(3, requires_grad=True)
    with watch:
        program(x).backward()
    return watch.seen


def test_each_has_the_line_of_its_forward(monkeypatch):
    found = watched(monkeypatch, lambda x: x.exp().sin().sum())
    assert found["cos", "sin"] == "sin:1"
    assert found["mul", "exp"] == "exp:1"
    assert found["expand", "sum"] == "sum:1"


def test_an_operation_without_a_node_takes_no_line_from_one_with_it(monkeypatch):
    def program(x):
        y = x.exp()
        torch.zeros(3).cos()
        return y.sum()

    assert watched(monkeypatch, program)["mul", "exp"] == "exp:1"


@pytest.mark.parametrize(
    ("node", "name"),
    [("NllLossBackward0", "nll_loss"), ("DivBackward0", "div"), ("OwnBackward", "own")],
)
def test_names(node, name):
    assert forward_name(node) == name


def test_where_torch_does_not_number_its_nodes_the_calling_line_stands(monkeypatch):
    monkeypatch.setattr(forward_lines, "_NEXT", None)
    monkeypatch.setattr(forward_lines, "_CURRENT", None)
    found = watched(monkeypatch, lambda x: x.exp().sin().sum())
    assert found["cos", None] == "cos:1"  # of the operation itself, and no forward one


def test_each_is_in_the_module_of_its_forward():
    watch = Watch()
    x = torch.ones(3, requires_grad=True)
    with watch:
        x.exp().sin().sum().backward()
    assert watch.places["exp"] is None  # it runs forwards
    assert (watch.places["cos"], watch.places["expand"]) == ("in sin", "in sum")


def test_a_backward_pass_has_a_number_of_its_own():
    x, seen = torch.ones(3, requires_grad=True), []
    x.register_hook(lambda grad: seen.append((backward_pass(), goes_backwards())))
    x.exp().sum().backward()
    x.exp().sum().backward()
    assert (backward_pass(), goes_backwards()) == (-1, False)
    assert [backwards for _, backwards in seen] == [True, True]
    assert -1 < seen[0][0] != seen[1][0]


def test_where_torch_does_not_number_its_backward_passes_all_run_forwards(monkeypatch):
    monkeypatch.delattr(torch._C, "_current_graph_task_id")
    anew = runpy.run_path(forward_lines.__file__)
    seen, x = [], torch.ones(3, requires_grad=True)
    x.register_hook(lambda grad: seen.append((anew["goes_backwards"](), goes_backwards())))
    x.exp().sum().backward()
    assert seen == [(False, True)]
