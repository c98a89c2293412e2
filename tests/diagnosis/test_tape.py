"""A recording knows what was in memory at each of its moments."""

import torch

from pytest_fp16.diagnosis.tape import Ref, Tape
from pytest_fp16.diagnosis.twin_run import Program, TwinRun

HALF = torch.float16


def recorded(program, *values):
    tape = Tape()
    with torch.no_grad(), TwinRun(Program(None, {}, lambda: ""), tape=tape) as twin_run:
        out = program(*(torch.tensor(v, dtype=HALF) for v in values))
    return tape, [o.name for o in twin_run.operations], out


def test_each_counted_operation_has_its_place():
    tape, names, _ = recorded(lambda x: (x * 2).view(1, 2).exp(), [1.0, 2.0])
    assert names == ["mul", "exp"]
    entries = [tape.entries[p] for p in tape.starts]
    assert [e.known.name for e in entries] == names
    assert [e.index for e in entries] == [0, 1]
    views = [e for e in tape.entries if e.index is None]
    assert [v.known.name for v in views] == ["view"]


def test_arguments_are_kept_as_float32_takes_them():
    tape, _, _ = recorded(lambda x: x.sum(dtype=HALF), [1.0, 2.0])
    entry = tape.entries[tape.starts[0]]
    assert isinstance(entry.args[0], Ref)
    assert entry.kwargs["dtype"] == torch.float32
    assert isinstance(entry.results[0], Ref)


def test_memory_is_remembered_as_it_was_before_each_write():
    def program(x):
        y = x * 1
        y.add_(1)
        y[1:].mul_(10)
        return y

    tape, names, out = recorded(program, [1.0, 2.0])
    assert names == ["mul", "add", "mul"]
    made = tape.entries[tape.starts[0]].results[0]
    before = [tape.low_at(made, tape.starts[i] + 1).tolist() for i in range(3)]
    assert before == [[1, 2], [2, 3], [2, 30]]
    assert out.low.tolist() == [2, 30]
    # a view of it has its part of the same memory
    part = tape.entries[tape.starts[2]].args[0]
    assert tape.low_at(part, tape.starts[1]).tolist() == [2]
    assert tape.low_at(part, tape.starts[2]).tolist() == [3]
    assert part.place == made.place or part.low.storage_offset() == 1


def test_memory_that_is_never_written_needs_no_image():
    tape, _, out = recorded(lambda x: x * 2, [1.0, 2.0])
    assert not tape.images
    assert tape.image(out.low.untyped_storage().data_ptr(), 0) is None


def test_a_read_on_the_host_is_an_entry():
    def program(x):
        y = x * 2
        return y * y.tolist()[0]

    tape, _, _ = recorded(program, [3.0])
    (read,) = [e for e in tape.entries if e.func is None]
    assert read.args[0].low.tolist() == [6.0]


def test_what_is_drawn_is_marked():
    tape, *_ = recorded(lambda x: torch.rand_like(x) + x * 2, [1.0])
    drawn = {tape.entries[p].known.name: tape.entries[p].random for p in tape.starts}
    assert drawn["rand_like"]
    assert not drawn["mul"]
    assert not drawn["add"]


def test_the_first_operation_that_loses_values():
    tape, *_ = recorded(lambda x: ((x * 2) * 1e4 * 1e4).log(), [3.0, 1.0])
    assert tape.first_lost() == 2
    assert recorded(lambda x: x * 2, [3.0])[0].first_lost() is None


def test_a_mask_of_infinities_is_put_there_on_purpose():
    def program(x):
        mask = torch.full_like(x, -torch.inf)
        return (x * 2 + mask).exp() / 0.0

    tape, names, _ = recorded(program, [3.0])
    assert names[tape.first_lost()] == "div"


def test_what_was_lost_in_memory_that_is_mended_later_is_found():
    def program(x):
        y = x * 1e4
        y.mul_(1e4)
        y.nan_to_num_(0.0, 1.0)
        return y

    tape, *_ = recorded(program, [3.0])
    assert tape.first_lost() == 1
