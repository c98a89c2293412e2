"""Where a program asks for its device, and does something else for the answer.

Emulated for another device than it runs on, it takes the branch of this one, and what it does on
the other is never seen. Its source is read for that, and nothing is run. Handing a device on, as
``torch.zeros(3, device=x.device)`` does, asks nothing; nor does it to hold two of them together,
which are the same everywhere, or to choose where a tensor is put.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn

from pytest_fp16.engine.own_code import own_functions
from pytest_fp16.engine.source import Line

#: Attributes that answer yes or no.
_FLAGS = frozenset(("is_cuda", "is_cpu"))
#: What is asked of CUDA, and answered otherwise where there is none.
_ANSWERS = frozenset(
    f"cuda.{name}"
    for name in "is_available is_bf16_supported device_count get_device_capability "
    "get_device_properties get_device_name".split()
)
#: What the names of devices begin with that a verdict speaks for, or runs on.
_KINDS = ("cuda", "cpu")
#: Methods that put a tensor somewhere, and change nothing of it.
_MOVES = frozenset(("cuda", "cpu", "to"))
#: Places that a warning names.
_SHOWN = 4


def device_remarks(model: nn.Module, target: str, here: torch.device, *given: Any) -> list[str]:
    """A warning of the places where a program asks, if there are any.

    Args:
        model: as its user has it.
        target: the device the verdict speaks for.
        here: the device it runs on.
        given: functions of the user's that are called beside it; see `own_functions`.
    """
    if target == here.type:
        return []
    places = asked_at(model, *given)
    if not places:
        return []
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    return [
        f"the program asks for its device ({', '.join(map(str, places[:_SHOWN]))}{more}) and was "
        f"answered {here.type}: what it does on {target} alone did not run, and the verdict does "
        "not speak for it"
    ]


def asked_at(model: nn.Module, *given: Any) -> list[Line]:
    """The lines, each once, in the order of the files."""
    found: set[Line] = set()
    for function in own_functions(model, *given):
        tree = _parsed(function)
        if tree is not None:
            offset = function.__code__.co_firstlineno - 1
            lines = {node.lineno + offset for node in _Questions(tree).found}
            found |= {Line(function.__code__.co_filename, number) for number in lines}
    return sorted(found)


def _parsed(function: FunctionType) -> ast.AST | None:
    """The function as it is written; None where that cannot be had, or names no device."""
    if not _names_one(function.__code__):
        return None  # most do not, and to find a source takes its time
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None  # a lambda in the middle of a call, or code that was never in a file


def _names_one(code: CodeType) -> bool:
    words = [*code.co_names, *code.co_varnames, *(c for c in code.co_consts if type(c) is str)]
    if any(part in word for word in words for part in ("dev", *_KINDS)):
        return True
    return any(_names_one(c) for c in code.co_consts if isinstance(c, CodeType))


class _Questions:
    """The expressions of a function whose answer another device would change.

    Attributes:
        found: the expressions.
    """

    def __init__(self, tree: ast.AST) -> None:
        self._devices: set[str] = set()  # local names of devices, and of their kinds
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and self._is_device(node.value):
                self._devices |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        self._matched = {id(n.subject) for n in ast.walk(tree) if isinstance(n, ast.Match)}
        self._aside = {id(n) for part in self._harmless(tree) for n in ast.walk(part)}
        self.found = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.expr) and id(node) not in self._aside and self._asks(node)
        ]

    def _asks(self, node: ast.expr) -> bool:
        """Whether it answers yes or no, by the device; or is what a ``match`` goes by."""
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            named = any(self._is_device(side) for side in sides)
            if any(_is_number_of_device(side) for side in sides):
                return not all(map(_is_number_of_device, sides))
            return named and any(_is_kind(side) for side in sides)
        if isinstance(node, ast.Call):
            return self._asks_by_call(node)
        if isinstance(node, ast.Attribute) and node.attr in _FLAGS:
            return True
        return id(node) in self._matched and self._is_device(node)

    def _asks_by_call(self, call: ast.Call) -> bool:
        name = ast.unparse(call.func)
        if name.removeprefix("torch.") in _ANSWERS:
            return True
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        if method in ("startswith", "endswith") and isinstance(call.func, ast.Attribute):
            return self._is_device(call.func.value) and any(map(_is_kind, call.args))
        return False

    def _is_device(self, node: ast.AST) -> bool:
        """Whether it is a device, or its kind in words."""
        if isinstance(node, ast.Name):
            return node.id in self._devices or _says_device(node.id)
        if isinstance(node, ast.Attribute):
            if ast.unparse(node) in ("torch.device", "torch.cuda"):
                return False
            return _says_device(node.attr) or (node.attr == "type" and self._is_device(node.value))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("str", "torch.device"):
            return any(self._is_device(a) for a in node.args)
        return False

    def _harmless(self, tree: ast.AST) -> Iterator[ast.AST]:
        """What is asked only to say where a tensor is put, or to be printed."""
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and _only_moves(node.body, node.orelse):
                yield node.test
            elif isinstance(node, ast.IfExp):
                sides = (node.body, node.orelse)
                names = all(_is_kind(side) or self._is_device(side) for side in sides)
                if names or _same_but_moved(*sides):
                    yield node.test
            elif isinstance(node, ast.JoinedStr) or _prints(node):
                yield node


def _prints(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "print"


def _is_number_of_device(node: ast.AST) -> bool:
    """Whether it is ``x.get_device()``, which is negative on a CPU."""
    method = node.func if isinstance(node, ast.Call) else None
    return isinstance(method, ast.Attribute) and method.attr == "get_device"


def _says_device(name: str) -> bool:
    return name in ("dev", "device") or name.endswith(("_device", "device_type"))


def _is_kind(node: ast.AST) -> bool:
    """Whether it names a device that the two may differ in, such as ``"cuda"``; one of several."""
    if isinstance(node, ast.Constant):
        value = node.value
        return isinstance(value, str) and value.partition(":")[0] in _KINDS
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return any(map(_is_kind, node.elts))
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) == "torch.device" and any(map(_is_kind, node.args))
    return False


def _only_moves(body: list[ast.stmt], instead: list[ast.stmt]) -> bool:
    """Whether two branches differ in nothing but where tensors are put."""
    if instead:
        pairs = zip(body, instead, strict=True) if len(body) == len(instead) else ()
        return bool(pairs) and all(_same_but_moved(a, b) for a, b in pairs)
    return all(
        isinstance(s, ast.Assign)
        and len(s.targets) == 1
        and _where_it_was(s.value) == ast.unparse(s.targets[0])
        for s in body
    )


def _same_but_moved(one: ast.AST, other: ast.AST) -> bool:
    return _where_it_was(one) == _where_it_was(other)


def _where_it_was(node: ast.AST) -> str:
    """An expression or a statement, without what moves tensors."""
    return ast.unparse(_Unmoved().visit(ast.parse(ast.unparse(node))))


class _Unmoved(ast.NodeTransformer):
    """Takes ``.cuda()``, ``.to(device)`` and ``device=`` away."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        node.keywords = [k for k in node.keywords if k.arg not in ("device", "non_blocking")]
        method = node.func
        if isinstance(method, ast.Attribute) and method.attr in _MOVES:
            return method.value if method.attr != "to" or _puts(node) else node
        return node


def _puts(call: ast.Call) -> bool:
    """Whether ``.to(…)`` says where, and nothing of a dtype."""
    return not call.keywords and all(
        _is_kind(a) or _says_device(ast.unparse(a).rpartition(".")[2]) for a in call.args
    )
