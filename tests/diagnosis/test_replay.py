"""A recording played without rounding is the program run without rounding."""

import pytest
import torch
from torch import nn

from pytest_fp16.diagnosis.replay import Diverged, healed, watched
from pytest_fp16.diagnosis.tape import Ref, Tape
from pytest_fp16.diagnosis.twin_run import Program, TwinRun

HALF = torch.float16


def recorded(program, *inputs):
    """A program's tape, its operations, and its output, natively in float16."""
    tape = Tape()
    with torch.no_grad(), TwinRun(Program(None, {}, lambda: ""), tape=tape) as twin_run:
        # Anything an operation gives is followed from there on.
        out = program(*(x.half() + 0 for x in inputs))
    tape.output = Ref.to(out)
    return tape, [o.name for o in twin_run.operations], out.low


def test_memory_that_is_written_to_is_played_as_it_was(comparison):
    """In place, through views, and onto an input: each cut finds what was there at its time."""

    class Writes(nn.Module):
        def forward(self, x):
            x = x.flatten(1)
            x += 0.1
            y, rows = x * 1.1, x.unflatten(-1, (8, 8))
            left = y[:, :32]
            y.mul_(0.7)
            left.add_(0.3)
            rows[:, 0] = left[:, :8] * 0.9
            y[:, 32:] *= x[:, :32]
            return (y + x)[:, :10].relu_() + left[:, :10]

    for name in ("16-true", "16-mixed"):
        found = comparison(Writes(), name)
        torch.testing.assert_close(found.record(), found.run(), rtol=0, atol=0)
        for until in range(len(found.operations) + 1):
            torch.testing.assert_close(healed(found.tape, until), found.run(until))
        torch.testing.assert_close(healed(found.tape, 0), found.wanted)


class Follows(nn.Module):
    """Goes where its values lead: 0.1, summed twenty times, is far below two in float16 only."""

    def __init__(self, read):
        super().__init__()
        self.read = read

    def forward(self, x):
        total = sum((x.flatten(1)[:, :10] * 0 + 0.1 for _ in range(20)), 0)
        return total * (2.0 if self.read(total) < 1.999 else 3.0)


READS = {
    "item": lambda x: x.max().item(),
    "tolist": lambda x: x.tolist()[0][0],
    "numpy": lambda x: x.numpy().max(),
    "bool": lambda x: 0.0 if x.max() < 1.999 else 1.0,
}


@pytest.mark.parametrize("read", READS)
def test_a_program_that_would_go_elsewhere_is_run_again(comparison, read):
    found = comparison(Follows(READS[read]))
    failing = found.record()
    torch.testing.assert_close(failing, found.run(), rtol=0, atol=0)
    with pytest.raises(Diverged):
        healed(found.tape, 0)
    torch.testing.assert_close(found.healed(0), found.wanted)
    assert len(found.side_by_side(lambda i: True)) == len(found.operations)


def test_control_flow_may_follow_the_16_bit_values():
    program, tape = Program(None, {}, lambda: ""), Tape()
    with torch.no_grad(), TwinRun(program, tape=tape) as twin_run:
        x = torch.ones(3, dtype=torch.float16) * 2049
        kept = x[x > 2048.5]
        assert kept.shape == (0,)
        assert kept.sum().item() == 0
    assert [o.name for o in twin_run.operations][:2] == ["ones", "mul"]
    found = watched(tape, lambda i: True)
    assert found[1].results[0].error == pytest.approx(1.0)


def test_the_rest_of_the_program_is_not_rounded():
    x = torch.tensor([1.0, 2.0, 3.0])
    tape, names, out = recorded(lambda x: (x / 3) * 3 - x, x)
    assert names[-3:] == ["div", "mul", "sub"]
    third = (x / 3).half().float()
    assert torch.equal(healed(tape, len(names)), out.float())
    assert torch.equal(healed(tape, names.index("mul")), third * 3 - x)
    assert torch.equal(healed(tape, names.index("div")), x / 3 * 3 - x)


def test_what_was_drawn_is_drawn_again():
    torch.manual_seed(0)

    def program(x):
        noise = torch.empty_like(x)
        rows = noise.view(8, 8)
        noise.uniform_()  # into memory that a view looks on, and that is written again
        noise.mul_(3.0)
        return nn.functional.dropout(x, 0.5) + torch.rand(64, dtype=HALF) + rows.flatten()

    tape, names, out = recorded(program, torch.ones(64))
    for until in range(len(names) + 1):
        torch.testing.assert_close(healed(tape, until), out.float(), rtol=1e-2, atol=1e-3)


def test_a_watched_operation_is_measured_alone_and_with_what_came_before():
    x = torch.full((8,), 0.1)
    tape, names, _ = recorded(lambda x: (x * 3.0) * 7.0, x)
    last = watched(tape, lambda i: i == len(names) - 1)[len(names) - 1]
    (own,), (result,) = last.own, last.results
    low = (x.half() * 3).float() * 7
    assert own.error == pytest.approx(float((low.half().float() - low).abs()[0]))
    assert result.error == pytest.approx(float((low.half().float() - x * 21).abs()[0]), rel=1e-3)
    assert last.scalars == [7.0]


def test_decisions_that_exact_values_would_take_otherwise_are_counted():
    x = torch.tensor([2048.6, 2049.4, 10.0, 20.0])
    tape, names, _ = recorded(lambda x: ((x + 0.7) > 2049.0).half(), x)
    found = watched(tape, lambda i: names[i] == "gt")
    (finding,) = found.values()
    wanted = (x + 0.7) > 2049.0
    given = (x.half() + 0.7) > 2049.0
    assert finding.decided == pytest.approx(float((wanted != given).float().mean()))
    assert finding.decided > 0


def test_nothing_is_played_where_nobody_watches():
    tape, _, _ = recorded(lambda x: x * 3.0, torch.ones(2))
    assert watched(tape, lambda i: False) == {}


def test_an_operation_measured_where_memory_is_written_later():
    def program(x):
        y = x * 1.1
        z = y * 3.3
        y.mul_(0.0)
        return z + y

    x = torch.full((4,), 0.7)
    tape, names, _ = recorded(program, x)
    at = names.index("mul") + 1
    finding = watched(tape, lambda i: i == at)[at]
    assert finding.operands[0].value == pytest.approx(0.77, rel=1e-3)


def test_views_of_what_a_kernel_laid_out_in_its_own_way_are_played(comparison):
    """Fused attention leaves positions before heads, and the program joins the heads by a view."""

    class Attends(nn.Module):
        def forward(self, x):
            q = x.flatten(1, 2).unflatten(-1, (2, 4)).transpose(1, 2).contiguous()
            y = nn.functional.scaled_dot_product_attention(q, q, q)
            return y.transpose(1, 2).reshape(len(x), 8, -1).sum(1).repeat(1, 2)[:, :10]

    found = comparison(Attends())
    found.record()
    assert "_scaled_dot_product_flash_attention_for_cpu" in [o.name for o in found.operations]
    torch.testing.assert_close(healed(found.tape, 0), found.wanted)
    measured = found.side_by_side(lambda i: True)
    assert all(o.finding is not None for o in measured)
