"""The functions of a user's own that a pass may call."""

import contextlib
import functools
import textwrap

import torch
from torch import nn

from pytest_fp16.engine.own_code import own_functions


def by_global(x):
    return by_helper(x)


def by_helper(x):
    return x


def never(x):
    return x


def logged(function):
    def wrapper(*args):
        return function(*args)

    return wrapper


def named(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


@logged
def in_a_cell(x):
    return x


@named
def in_a_wrapper(x):
    return x


class Base(nn.Module):
    def inherited(self, x):
        return x

    def uncalled(self, x):
        return never(x)


class Region:
    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None


class Helper:
    def helps(self, x):
        return x

    def idles(self, x):
        return x


class Model(Base):
    def __init__(self):
        super().__init__()
        self.inner, self.helper = nn.Sequential(Leaf(), nn.ReLU()), Helper()
        self.function = lambda x: x

    @property
    def size(self):
        return 1

    @staticmethod
    def static(x):
        return x

    def forward(self, x):
        with Region(), contextlib.nullcontext():
            x = self.inherited(self.static(x)) * self.size
        x = in_a_cell(in_a_wrapper(by_global(self.helper.helps(x))))
        return self.function(sum(self.inner(part) for part in [x]))


class Leaf(nn.Module):
    def forward(self, x):
        return x


class Loss(nn.Module):
    def forward(self, outputs, targets):
        return self.between(outputs, targets)

    def between(self, outputs, targets):
        return (outputs - targets).sum()


def step(model, batch):
    return model(batch)


def names(*given):
    return [function.__qualname__ for function in own_functions(*given)]


def test_everything_that_a_pass_calls_is_found():
    found = names(Model())
    wanted = {
        "Model.forward", "Leaf.forward", "Base.inherited", "Model.static", "Model.size",
        "Helper.helps", "by_global", "by_helper", "in_a_cell", "in_a_wrapper", "Region.__enter__",
        "Region.__exit__", "Model.__init__.<locals>.<lambda>",
    }  # fmt: skip
    assert wanted <= set(found)
    assert len(found) == len(set(found)) + 1  # in_a_wrapper, and what wraps it


def test_what_no_name_leads_to_is_left_out():
    found = names(Model())
    assert not {"never", "Base.uncalled", "Helper.idles", "Model.__init__", "step"} & set(found)


def test_what_is_called_beside_the_model_is_entered_too():
    found = names(nn.Linear(2, 2), Loss(), step, None, Helper().helps)
    assert found == ["Loss.forward", "step", "Helper.helps", "Loss.between"]


def test_nothing_of_torchs_own_is_read():
    assert names(nn.TransformerEncoderLayer(8, 2), nn.CrossEntropyLoss(), torch.relu) == []


def test_what_is_installed_is_not_the_users_own(tmp_path, monkeypatch):
    source = textwrap.dedent(
        """
        from torch import nn

        class Layer(nn.Module):
            def forward(self, x):
                return x
        """
    )
    for place, wanted in (("site-packages", []), ("project", ["Layer.forward"])):
        folder = tmp_path / place
        folder.mkdir()
        module = f"layers_of_{place[:4]}"
        (folder / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(folder)
        assert names(__import__(module).Layer()) == wanted
