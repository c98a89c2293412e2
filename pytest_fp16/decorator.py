"""@fp16_equivalent: claim that the model a test returns is as good in 16 bits. Imports no torch.

The decorator works without the plugin too (`-p no:fp16`, `--strict-markers`): it sets no mark, and
the test it returns gives back None, so pytest has no return value to warn about.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, overload

from pytest_fp16.errors import SettingError
from pytest_fp16.settings import Settings

Test = TypeVar("Test", bound=Callable[..., Any])

#: Attribute of a decorated test that holds the decorator's arguments.
ARGUMENTS = "__fp16_equivalent__"

_listeners: list[list[Any]] = []


@overload
def fp16_equivalent(test: Test, /) -> Test: ...
@overload
def fp16_equivalent(**settings: Any) -> Callable[[Test], Test]: ...
def fp16_equivalent(test: Any = None, /, **settings: Any) -> Any:
    """Claim that the Evaluation or Training a test returns is equivalent in 16 bits.

    With ``--fp16-conformance`` the test becomes one item per precision, which passes where the
    claim holds. Without it the test runs once in float32.

    Args:
        test: a test function or method (when used without arguments), plain or async.
        **settings: any field of `Settings`: ``precisions``, ``budget``, ``seeds``, ``device``, …;
            they win over options and ini keys, which speak for all tests.

    Raises:
        SettingError: an unknown argument, a value that cannot be used, or something that is no
            function. It is raised where the test is defined, so pytest reports it at collection.
    """
    __tracebackhide__ = True
    check_arguments(settings)
    if test is None:
        return functools.partial(_decorate, settings=settings)
    return _decorate(test, settings)


def check_arguments(settings: dict[str, Any]) -> None:
    """Refuse what is no setting, or has no usable value.

    Raises:
        SettingError: names the argument and lists the known ones.
    """
    __tracebackhide__ = True
    try:
        Settings().for_check(**settings)
    except SettingError as error:
        raise type(error)(f"fp16_equivalent: {error}") from None


def _decorate(test: Any, settings: dict[str, Any]) -> Any:
    __tracebackhide__ = True
    if isinstance(test, classmethod):
        raise SettingError(f"write fp16_equivalent below @classmethod, above {test.__name__}")
    if not inspect.isroutine(test):
        if isinstance(test, type):
            raise SettingError(
                "fp16_equivalent decorates a test function or method (got type "
                f"{test.__name__!r}); for all tests of a class it is a mark: "
                "@pytest.mark.fp16_equivalent"
            )
        raise SettingError(
            "fp16_equivalent decorates a test function or method; its arguments are keywords "
            f"(got {type(test).__name__} {getattr(test, '__name__', test)!r})"
        )
    if hasattr(test, ARGUMENTS):
        raise SettingError(f"fp16_equivalent decorates {test.__name__} twice; use it once")
    wrapper = listened(test)
    setattr(wrapper, ARGUMENTS, settings)
    return wrapper


def listened(test: Callable[..., Any]) -> Callable[..., Any]:
    """`test`, returning None; what it returned goes to whoever is in `returned_values`."""
    if hasattr(test, ARGUMENTS):
        return test
    if inspect.iscoroutinefunction(test):

        @functools.wraps(test)
        async def wrapper(*args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True
            _tell(await test(*args, **kwargs))

    else:

        @functools.wraps(test)
        def wrapper(*args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True
            _tell(test(*args, **kwargs))

    return wrapper


def overheard(
    test: Callable[..., Any], kinds: tuple[type[Any], ...], heard: list[Any]
) -> Callable[..., Any]:
    """`test`, returning as ever; but what it returns of `kinds` is added to `heard` instead.

    An async one is left as it is: what it returns is no value yet.
    """
    if inspect.iscoroutinefunction(test):
        return test

    @functools.wraps(test)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        value = test(*args, **kwargs)
        return heard.append(value) if isinstance(value, kinds) else value

    return wrapper


def _tell(value: Any) -> None:
    if _listeners:
        _listeners[-1].append(value)


@contextmanager
def returned_values() -> Iterator[list[Any]]:
    """A list that receives what decorated tests return while the context lasts."""
    values: list[Any] = []
    _listeners.append(values)
    try:
        yield values
    finally:
        _listeners.remove(values)


@contextmanager
def instead(item: Any, test: Callable[..., Any]) -> Iterator[None]:
    """An item of pytest's that calls `test` while the context lasts."""
    own, item.obj = item.obj, test
    try:
        yield
    finally:
        item.obj = own
