import multiprocessing
import os

import pytest
from torch import nn

from pytest_fp16.errors import SettingError
from pytest_fp16.plan import (
    Entry,
    Plan,
    merge_plan,
    orphaned,
    planned_modules,
    read_plan,
    stale,
    write_plan,
)

DIGITS = Entry("test_digits.py::test_digits", "16-true", "blocks.1.norm", "overflow in pow")
MIXED = Entry("test_digits.py::test_digits", "16-mixed", "", "everything: too many to name")
PARAMETERS = Entry("t.py::test_x[a: b-3]", "bf16-true", "head")


def test_the_file_is_one_readable_line_for_each_module(tmp_path):
    path = tmp_path / "fp16.plan"
    write_plan(path, [PARAMETERS, DIGITS, MIXED])
    assert path.read_text(encoding="utf-8").splitlines() == [
        "# Modules to keep in float32.  test[precision]: module  # reason",
        "t.py::test_x[a: b-3][bf16-true]: head",
        "test_digits.py::test_digits[16-true]: blocks.1.norm  # overflow in pow",
        "test_digits.py::test_digits[16-mixed]: .  # everything: too many to name",
    ]


def test_what_is_written_is_read_back_with_its_lines(tmp_path):
    path = tmp_path / "fp16.plan"
    write_plan(path, [PARAMETERS, DIGITS, MIXED])
    plan = read_plan(path)
    assert [e.line for e in plan.entries] == [2, 3, 4]
    assert plan.path == str(path)
    assert plan.modules("test_digits.py::test_digits", "16-true") == ["blocks.1.norm"]
    assert plan.modules("test_digits.py::test_digits", "16-mixed") == [""]
    assert plan.modules("t.py::test_x[a: b-3]", "bf16-true") == ["head"]
    assert plan.modules("t.py::test_x[a: b-3]", "16-true") == []
    assert plan.of("test_digits.py::test_digits", "16-true")[0].reason == "overflow in pow"


def test_a_person_may_write_comments_blank_lines_and_spaces(tmp_path):
    path = tmp_path / "fp16.plan"
    path.write_text("\n  # why not\n\n  t[16-true]:   a.b   #x # y  \n", encoding="utf-8")
    (entry,) = read_plan(path).entries
    assert entry == Entry("t", "16-true", "a.b", "x # y", line=4)


@pytest.mark.parametrize("written", ["t[3.0][16-true]", "t[3.0-16-true]", "t[16-true-3.0]"])
def test_a_parametrized_test_may_be_called_as_pytest_calls_it(tmp_path, written):
    path = tmp_path / "fp16.plan"
    path.write_text(f"{written}: head\n", encoding="utf-8")
    assert read_plan(path).entries == (Entry("t[3.0]", "16-true", "head", line=1),)


def test_a_reason_of_several_lines_becomes_one(tmp_path):
    path = tmp_path / "fp16.plan"
    write_plan(path, [Entry("t", "16-true", "a", "overflow\n  in pow\n")])
    assert read_plan(path).entries == (Entry("t", "16-true", "a", "overflow in pow", line=2),)


def test_the_same_entry_twice_is_written_once(tmp_path):
    path = tmp_path / "fp16.plan"
    write_plan(path, [DIGITS, DIGITS])
    assert len(read_plan(path).entries) == 1


@pytest.mark.parametrize(
    "entry",
    [
        Entry("t", "16-true", "two words"),
        Entry("", "16-true", "a"),
        Entry("a[16-true]: b  # c", "16-true", "d"),
    ],
)
def test_an_entry_that_could_not_be_read_back_is_refused(tmp_path, entry):
    with pytest.raises(SettingError):
        write_plan(tmp_path / "fp16.plan", [entry])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "blocks.1.norm",
            "'blocks.1.norm' is no entry of a plan; write 'test[precision]: module  # reason'",
        ),
        (
            "t[16-true]: a b",
            "'t[16-true]: a b' is no entry of a plan; write 'test[precision]: module  # reason'",
        ),
        (
            "t[16]: a",
            "unknown precision '16'; known are 32-true, 16-true, 16-mixed, bf16-true, bf16-mixed",
        ),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path, line, reason):
    path = tmp_path / "fp16.plan"
    path.write_text(f"# a comment\nt[16-true]: a\n{line}\n", encoding="utf-8")
    with pytest.raises(SettingError) as raised:
        read_plan(path)
    assert str(raised.value) == f"{path}:3: {reason}"


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(SettingError) as raised:
        read_plan(tmp_path / "no")
    assert str(raised.value) == (
        f"cannot read the plan {tmp_path / 'no'}: No such file or directory"
    )
    with pytest.raises(SettingError) as raised:
        write_plan(tmp_path, [DIGITS])
    assert str(raised.value).startswith(f"cannot write the plan {tmp_path}: ")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(SettingError) as raised:
        read_plan(tmp_path / "binary")
    assert str(raised.value) == f"the plan {tmp_path / 'binary'} is not a text file in UTF-8"


def test_only_what_ran_is_replaced():
    plan = Plan((DIGITS, MIXED, PARAMETERS))
    now = Entry("test_digits.py::test_digits", "16-true", "stem", "underflow")
    ran = [(DIGITS.test, "16-true"), (PARAMETERS.test, PARAMETERS.precision)]
    assert plan.updated(ran, [now]).entries == (MIXED, now)


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU())


def test_a_module_that_is_gone_is_stale(tmp_path, model):
    path = tmp_path / "fp16.plan"
    path.write_text("t[16-true]: 0\nt[16-true]: blocks.1\nt[bf16-true]: gone\n", encoding="utf-8")
    assert stale(read_plan(path), "t", "16-true", model) == [
        f"{path}:2: stale entry: the model of t has no module 'blocks.1'; remove it"
    ]


def test_a_module_that_need_not_be_kept_any_more_is_stale(model):
    plan = Plan((Entry("t", "16-true", "0"), Entry("t", "16-true", "")))
    assert stale(plan, "t", "16-true", model, needed=["0"]) == [
        "stale entry: t passes in 16-true without keeping '.' in float32; remove it"
    ]
    assert stale(plan, "t", "16-true", model, needed=["0", ""]) == []
    assert len(stale(plan, "t", "16-true", model, needed=[])) == 2


def test_a_name_of_a_shared_module_is_not_stale(model):
    model.again = model[0]
    plan = Plan((Entry("t", "16-true", "again"),))
    assert stale(plan, "t", "16-true", model) == []


def _merge(path, first, count):
    for i in range(count):
        test = f"test_{first + i}"
        merge_plan(path, [(test, "16-true")], [Entry(test, "16-true", "norm", "why")])


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / "plan.txt"
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_merge, args=(path, 100 * i, 25)) for i in range(3)]
    for worker in workers:
        worker.start()
    _merge(path, 300, 25)
    for worker in workers:
        worker.join()
    written = {entry.test for entry in read_plan(path).entries}
    assert written == {f"test_{100 * i + j}" for i in range(4) for j in range(25)}
    assert [p.name for p in tmp_path.iterdir()] == ["plan.txt"]


def test_entries_of_tests_that_are_gone():
    ids = ["f.py::t", "f.py::gone", "f.py::hand::mine", "f.py::hand #2", "g.py::t", "by name"]
    plan = Plan(tuple(Entry(test, "16-true", "m", line=n) for n, test in enumerate(ids, 2)), "p")
    known = {"f.py::t", "f.py::hand"}
    assert orphaned(plan, known) == ["p:3: stale entry: f.py has no test gone any more; remove it"]
    assert orphaned(plan, known, partly=["f.py"]) == []


@pytest.fixture
def shipped(tmp_path):
    path = tmp_path / "fp16.plan"
    write_plan(path, [PARAMETERS, DIGITS, MIXED])
    return path


@pytest.mark.parametrize("test", ["test_digits.py::test_digits", "test_digits"])
def test_the_model_that_is_shipped_keeps_what_the_plan_names(shipped, test):
    assert planned_modules(shipped, test, "16-true") == ["blocks.1.norm"]
    assert planned_modules(shipped, test, "fp16") == [""]  # an alias of 16-mixed
    assert planned_modules(shipped, test, "bf16-true") == []
    assert planned_modules(shipped, "test_x[a: b-3]", "bf16-true") == ["head"]


def test_a_misspelt_test_ships_nothing(shipped):
    with pytest.raises(SettingError, match=r"no test is called 'test_digit'; it has .*test_digits"):
        planned_modules(shipped, "test_digit", "16-true")
    with pytest.raises(SettingError, match="unknown precision '16-tru'"):
        planned_modules(shipped, "test_digits", "16-tru")
    write_plan(shipped, [])
    with pytest.raises(SettingError, match="no test is called 'test_digits'; it has no entries"):
        planned_modules(shipped, "test_digits", "16-true")


def test_a_name_that_two_files_have_is_asked_with_its_file(shipped):
    other = Entry("other.py::test_digits", "16-true", "neck")
    write_plan(shipped, [DIGITS, other])
    with pytest.raises(SettingError, match="more than one test is called 'test_digits'"):
        planned_modules(shipped, "test_digits", "16-true")
    assert planned_modules(shipped, "other.py::test_digits", "16-true") == ["neck"]
