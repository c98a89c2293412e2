import pytest

from pytest_fp16 import Evaluation
from pytest_fp16.claims import Names, subject_in, unclaimed, without_parameter
from pytest_fp16.errors import SettingError


@pytest.mark.parametrize(
    ("nodeid", "expected"),
    [
        ("f.py::t[16-true]", "f.py::t"),
        ("f.py::T::t[a-16-true]", "f.py::T::t[a]"),
        ("f.py::t[16-true-a]", "f.py::t[a]"),
        ("f.py::t[a-16-true-b]", "f.py::t[a-b]"),
        ("f.py::t[x[1]-16-true]", "f.py::t[x[1]]"),
        ("f.py::t[bf16-true-16-true]", "f.py::t[bf16-true]"),
        ("f.py::t", "f.py::t"),
    ],
)
def test_an_id_without_its_precision(nodeid, expected):
    assert without_parameter(nodeid, "16-true") == expected


def test_an_id_without_a_precision_stays():
    assert without_parameter("f.py::t[a]", "") == "f.py::t[a]"


def test_checks_by_hand_in_one_test_have_ids_of_their_own():
    names = Names("f.py::t")
    plain, mine = Evaluation(None, []), Evaluation(None, [], name="mine")
    made = [(plain, "16-true"), (plain, "bf16-true"), (mine, "16-true"), (plain, "16-true"),
            (mine, "16-true")]  # fmt: skip
    assert [names.of(*check) for check in made] == [
        "f.py::t", "f.py::t", "f.py::t::mine", "f.py::t #2", "f.py::t::mine #2",
    ]  # fmt: skip


def test_the_last_value_counts():
    evaluation = Evaluation(model=None, data=[])

    assert subject_in([1, evaluation], "t") is evaluation


@pytest.mark.parametrize(("values", "got"), [([], "None"), ([None], "None"), ([[1]], "list")])
def test_anything_else_is_refused(values, got):
    with pytest.raises(SettingError, match=rf"t must return .* \(it returned {got}\)"):
        subject_in(values, "t")


def test_who_forgot_the_decorator_is_told_of_it():
    said = unclaimed(Evaluation(None, []), "test_it")
    assert said.startswith("test_it returned an Evaluation, ")
    assert said.endswith("decorate test_it with @fp16_equivalent")
