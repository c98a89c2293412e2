"""Names are followed into the user's modules, as far as the code names something there."""

from __future__ import annotations

import importlib
import math

import pytest

from pytest_fp16.engine.training.reached import is_library, reached

HELPER = """
import math

W = 1.0
UNASKED = 2.0

class Cfg:
    w = 3.0
"""

WAYS = {
    "import helper": ("import helperlib.helper", "helperlib.helper.W"),
    "from a package": ("from helperlib import helper", "helper.W"),
    "under another name": ("import helperlib.helper as h", "h.W"),
    "by a string": ("from helperlib import helper", "getattr(helper, 'W')"),
    "inside": ("", "IMPORT.W"),
    "of a class": ("from helperlib import helper", "helper.Cfg.w"),
}


@pytest.fixture
def helper(tmp_path, monkeypatch):
    folder = tmp_path / "helperlib"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "helper.py").write_text(HELPER)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return importlib.reload(importlib.import_module("helperlib.helper"))


def names(function):
    return dict(reached(function.__code__, function.__globals__))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_a_module(helper, way):
    above, asked = WAYS[way]
    scope = {"__package__": "helperlib"}
    body = f"return {asked}"
    if not above:
        body = "from . import helper\n    return helper.W"
    exec(f"{above}\ndef f():\n    {body}", scope)
    name, value = ("Cfg", helper.Cfg) if way == "of a class" else ("W", 1.0)
    found = names(scope["f"])
    assert found[f"helperlib.helper.{name}"] == value
    assert not any("UNASKED" in n for n in found)


def test_a_function_imported_inside(helper):
    scope = {}
    exec("def f():\n    from helperlib.helper import W\n    return W", scope)
    assert names(scope["f"])["helperlib.helper.W"] == 1.0


def test_libraries_are_named_and_not_entered(helper):
    def f():
        return math.pi, importlib.metadata

    assert names(f) == {"importlib": importlib, "math": math}


def test_whose_a_module_is(helper):
    assert is_library("math")
    assert is_library("torch.nn")
    assert not is_library("helperlib.helper")
    assert not is_library(__name__)
    assert not is_library("__main__")


def test_an_attribute_is_no_global_of_that_name():
    def ask(one):
        return one.started + math.pi

    scope = {"started": 7, "math": math}
    assert dict(reached(ask.__code__, scope)) == {"math": math}


def test_what_a_class_reads_in_its_body_is_followed():
    code = compile("class A:\n    w = W\n", "f.py", "exec").co_consts[0]
    assert dict(reached(code, {"W": 1.0})) == {"W": 1.0}
