import asyncio
import inspect

import pytest

from pytest_fp16 import fp16_equivalent
from pytest_fp16.decorator import ARGUMENTS, instead, listened, overheard, returned_values
from pytest_fp16.errors import SettingError


def test_a_decorated_test_keeps_name_signature_and_attributes():
    def test_it(model, data):
        """Says something."""

    test_it.pytestmark = ["a mark"]

    decorated = fp16_equivalent(test_it)

    assert decorated.__name__ == "test_it"
    assert decorated.__doc__ == "Says something."
    assert [*inspect.signature(decorated).parameters] == ["model", "data"]
    assert decorated.pytestmark == ["a mark"]


def test_it_returns_none_and_tells_who_listens():
    @fp16_equivalent
    def test_it(value):
        return value

    assert test_it(1) is None
    with returned_values() as outer:
        test_it(2)
        with returned_values() as inner:
            test_it(3)
        test_it(4)

    assert (outer, inner) == ([2, 4], [3])


def test_a_coroutine_stays_one():
    @fp16_equivalent
    async def test_it():
        return 5

    assert inspect.iscoroutinefunction(test_it)
    with returned_values() as values:
        assert asyncio.run(test_it()) is None
    assert values == [5]


def test_listening_to_a_decorated_test_does_not_wrap_it_again():
    @fp16_equivalent
    def test_it():
        return 1

    assert listened(test_it) is test_it


def test_an_exception_passes_through():
    @fp16_equivalent
    def test_it():
        raise LookupError("mine")

    with returned_values() as values, pytest.raises(LookupError, match="mine"):
        test_it()
    assert values == []


def test_methods_bind():
    class TestIt:
        @fp16_equivalent(budget=0.5)
        def test_it(self):
            return self

    one = TestIt()
    with returned_values() as values:
        one.test_it()

    assert values == [one]
    assert getattr(one.test_it, ARGUMENTS) == {"budget": 0.5}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"precison": "16-true"}, r"fp16_equivalent: unknown setting 'precison'; known are budget"),
        ({"budget": -1}, r"fp16_equivalent: budget -1 is negative"),
        ({"seeds": 0}, r"fp16_equivalent: seeds must be a whole number"),
        ({"emulate": "no"}, r"fp16_equivalent: emulate must be one of auto, always, never"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, said):
    with pytest.raises(SettingError, match=said):
        fp16_equivalent(**arguments)


def test_a_class_is_refused():
    with pytest.raises(SettingError, match=r"\(got type 'TestIt'\); for all .* it is a mark"):

        @fp16_equivalent
        class TestIt:
            pass


def test_a_positional_argument_is_refused():
    with pytest.raises(SettingError, match=r"its arguments are keywords \(got str '16-true'\)"):
        fp16_equivalent("16-true")


def test_twice_is_refused():
    with pytest.raises(SettingError, match="decorates test_it twice"):

        @fp16_equivalent
        @fp16_equivalent
        def test_it():
            pass


def test_a_class_method_is_decorated_below_its_own_decorator():
    def test_it(cls):
        return cls

    with pytest.raises(SettingError, match="write fp16_equivalent below @classmethod, above test"):
        fp16_equivalent(classmethod(test_it))
    below = type("Tests", (), {"test_it": classmethod(fp16_equivalent(test_it))})
    with returned_values() as values:
        below.test_it()
    assert values == [below]


def test_overheard_takes_some_values_and_passes_on_the_others():
    heard = []
    assert overheard(lambda x: x, (int,), heard)("text") == "text"
    assert overheard(lambda x: x, (int,), heard)(3) is None
    assert heard == [3]


def test_overheard_leaves_async_tests_alone():
    async def test_it():
        pass

    assert overheard(test_it, (int,), []) is test_it


def test_an_item_calls_another_function_for_a_while():
    class Item:
        obj = "own"

    item, seen = Item(), []
    with pytest.raises(IndexError), instead(item, "other"):
        seen.append(item.obj) or [][1]
    assert (seen, item.obj) == (["other"], "own")
