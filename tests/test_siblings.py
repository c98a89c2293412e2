import pytest

from pytest_fp16.errors import DataError
from pytest_fp16.siblings import Siblings


def expecting(*precisions, apart=False):
    siblings = Siblings(apart=apart)
    for precision in precisions:
        siblings.expect("t", precision, f"t[{precision}]")
    return siblings


def test_the_first_item_examines_for_all_that_wait():
    siblings = expecting("a", "b", "c")
    siblings.finish("t", "a")

    assert siblings.to_examine("t", "c") == ("c", "b")
    assert siblings.to_examine("other", "c") == ("c",)


def test_apart_each_examines_for_itself():
    assert expecting("a", "b", apart=True).to_examine("t", "a") == ("a",)


def test_a_report_is_read_once():
    siblings = expecting("a", "b")
    siblings.store("t", ["report a", "report b"], ("a", "b"))

    assert siblings.peek("t", "a") == "report a"
    assert siblings.take("t", "a") == "report a"
    assert (siblings.has("t", "a"), siblings.has("t", "b")) == (False, True)
    assert siblings.left() == [("t[b]", "report b")]


def test_misuse_is_shared_and_no_report():
    siblings = expecting("a", "b")
    siblings.store_misuse("t", DataError("empty"), ("a", "b"))

    assert (siblings.has("t", "b"), siblings.peek("t", "b"), siblings.left()) == (True, None, [])
    for precision in ("a", "b"):
        with pytest.raises(DataError, match="empty"):
            siblings.take("t", precision)


def test_finishing_what_never_was_expected_is_harmless():
    siblings = expecting()

    siblings.finish("t", "a")

    assert siblings.to_examine("t", "a") == ("a",)
