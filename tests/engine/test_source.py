"""The user's own line: of the program, and of nobody who called this package."""

import linecache

import torch
from torch import nn

from pytest_fp16 import Evaluation, Settings
from pytest_fp16.conformance import examine
from pytest_fp16.engine.emulation.interception import Carrier
from pytest_fp16.engine.models import call_as_is
from pytest_fp16.engine.source import (
    calling_line,
    entrance,
    raised_at,
    raised_by_program,
    user_line,
)


class Asks(nn.Module):
    """Asks from inside its forward, and through one of torch's containers."""

    def __init__(self, ask) -> None:
        super().__init__()
        self.ask = ask
        self.seen = []

    def forward(self, x):
        self.seen.append(self.ask())
        return x


def test_the_innermost_line_of_the_users_code():
    model = Asks(user_line)
    call_as_is(nn.Sequential(model), torch.ones(1), None)
    (line,) = model.seen
    assert line is not None
    assert str(line).endswith(f"test_source.py:{line.number}")
    assert "seen.append" in linecache.getline(*line)


@entrance
def enters(ask):
    return torch.compiler.disable(ask)()  # a frame of torch's in between


def test_who_called_this_package_is_no_part_of_the_program():
    assert user_line() is not None
    assert enters(user_line) is None
    assert enters(calling_line) is None


def test_what_a_module_of_torchs_own_does_is_called_by_no_line_of_the_users():
    torchs = {}
    exec(compile("def forward(ask): return ask()", nn.modules.linear.__file__, "exec"), torchs)
    assert torchs["forward"](user_line) is not None
    assert torchs["forward"](calling_line) is None


def test_whether_the_program_itself_raised():
    def kernel():
        torch.ones(2) @ torch.ones(3)

    def states():
        raise ValueError("no")

    def asserts():
        assert not torch.ones(2).all()

    def says_it_again():
        try:
            kernel()
        except RuntimeError as error:
            raise ValueError("no") from error

    def checked():
        # torch.compile, once used, switches such checks off for the rest of the process.
        torch.distributions.Categorical(torch.tensor([float("nan")]), validate_args=True)

    def dispatched():
        torch.ops.aten.no_such_operator(torch.ones(2))

    def ours():
        torch.nn.functional.linear(Carrier.like(torch.ones(2), torch.float16), torch.ones(2))

    told = {}
    for function in (kernel, states, asserts, says_it_again, checked, dispatched, ours):
        try:
            function()
        except Exception as error:
            told[function.__name__] = raised_by_program(error)
    assert told == {
        "kernel": False,
        "states": True,
        "asserts": True,
        "says_it_again": False,
        "checked": True,
        "dispatched": False,
        "ours": False,
    }
    assert not raised_by_program(ValueError("never raised"))


def test_where_an_exception_came_from():
    def fails():
        return torch.ones(2) @ torch.ones(3)

    try:
        fails()
    except RuntimeError as error:
        said = raised_at(error)
    assert "test_source.py" in said


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = x + self.step(x).tanh()
        return self.head(x * 2.0 + 1.0)


def sites(model):
    data = [torch.randn(32, 8)]
    subject = Evaluation(model=model.eval(), data=data, task="classification")
    (report,) = examine(subject, Settings(precisions=("16-true",)))
    return {(s.module, s.operation): s.source for s in report.sites}


def test_sites_name_the_line_that_runs_them():
    torch.manual_seed(0)
    named = sites(Loop())
    assert "test_source.py" in named["", "mul"]
    assert "test_source.py" in named["", "tanh"]
    assert named["", "add"] is None, "two lines add here: neither is the one"


def test_sites_of_a_plain_sequential_name_no_line_of_the_caller():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    assert set(sites(plain).values()) == {None}
