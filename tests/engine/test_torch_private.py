"""Nothing that torch keeps to itself is used without a guard, and each guard speaks."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pytest_fp16
from pytest_fp16.engine import torch_private
from pytest_fp16.engine.torch_private import NEEDED, require_private
from pytest_fp16.errors import TorchError

OWN = Path(pytest_fp16.__file__).parent
NAMES = [name for names in NEEDED.values() for name in names]

#: Attributes with an underscore that are Python's own, or behind a guard of the same file.
PUBLIC = {
    "_fields", "_replace", "_make",  # of a named tuple
    "_getframe",  # CPython's, as logging uses it
    # Operations by their names:
    "_to_copy", "_log_softmax", "_thnn_fused_gru_cell", "_thnn_fused_lstm_cell",
    "_sequence_nr",  # of a node that `_current_autograd_node` gave
    "_C",  # what is taken of it is looked at by itself
}  # fmt: skip


def test_this_torch_has_everything():
    require_private()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_gone_is_named_with_what_needs_it(monkeypatch, name):
    there = torch_private._is_there
    monkeypatch.setattr(torch_private, "_is_there", lambda n: n != name and there(n))
    (purpose,) = (p for p, names in NEEDED.items() if name in names)
    with pytest.raises(TorchError, match=re.escape(f"has no {name}, which {purpose} needs; ins")):
        require_private()


@pytest.mark.parametrize(
    ("owner", "attribute", "name"),
    [
        (torch._C, "_DisableTorchDispatch", "torch._C._DisableTorchDispatch"),
        (torch.library.Library, "_destroy", "torch.library.Library._destroy"),
        (torch.utils._pytree, "tree_leaves", "torch.utils._pytree.tree_leaves"),
    ],
)
def test_what_is_gone_is_missed(monkeypatch, owner, attribute, name):
    assert torch_private._is_there(name)
    monkeypatch.delattr(owner, attribute)
    assert not torch_private._is_there(name)


def test_an_attribute_of_an_object_is_missed(monkeypatch):
    class Other:
        def __init__(self, *args, **kwargs):
            self.device = "cpu"

    monkeypatch.setattr(torch, "autocast", Other)
    assert torch_private._is_there("torch.autocast().device")
    assert not torch_private._is_there("torch.autocast()._enabled")


def test_a_module_of_torch_that_is_gone_is_missed():
    assert not torch_private._is_there("torch.utils._no_such_module.Mode")


def test_it_is_refused_in_words_before_the_import_that_would_fail():
    program = (
        "import torch; del torch._C._DisableTorchDispatch\n"
        "try:\n    from pytest_fp16 import check\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.startswith("TorchError torch 2."), run.stderr
    assert "_DisableTorchDispatch, which following a program operation by operation" in run.stdout


def _parsed():
    return {path: ast.parse(path.read_text()) for path in sorted(OWN.rglob("*.py"))}


def _own_names(trees):
    """Attributes with an underscore that objects of this package have."""
    own = set()
    for node in (n for tree in trees.values() for n in ast.walk(tree)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                own.add(node.attr)
        elif isinstance(node, ast.ClassDef):
            own |= {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
            fields = [n.target for n in node.body if isinstance(n, ast.AnnAssign)]
            own |= {t.id for t in fields if isinstance(t, ast.Name)}
            made = [t for n in node.body if isinstance(n, ast.Assign) for t in n.targets]
            own |= {t.id for t in made if isinstance(t, ast.Name)}
    return own


def _private(name):
    return name.startswith("_") and not name.startswith("__")


def _used(tree, own):
    """What a module takes that somebody else keeps to himself, by its last name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _private(node.attr):
            if node.attr not in own or ast.unparse(node).startswith("torch."):
                yield node.attr
            if ast.unparse(node).startswith("torch._C.") and node.attr != "_C":
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            home = any(map(_private, node.module.split(".")))
            yield from (a.name for a in node.names if home or _private(a.name))


def test_everything_private_that_is_used_is_listed():
    trees = _parsed()
    own = _own_names(trees)
    listed = {part.removesuffix("()") for name in NAMES for part in name.split(".")} | PUBLIC
    found = {name: path.name for path, tree in trees.items() for name in _used(tree, own)}
    assert len(found) > 15
    assert {name: path for name, path in found.items() if name not in listed} == {}


def test_everything_listed_is_used():
    text = "\n".join(
        path.read_text() for path in OWN.rglob("*.py") if path.name != "torch_private.py"
    )
    last = {name.rpartition(".")[2] for name in NAMES}
    assert {name for name in last if not re.search(rf"\b{name}\b", text)} == set()
