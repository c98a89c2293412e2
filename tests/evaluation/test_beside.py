"""What is returned beside the predictions, and is off: said, with how far, and never judged."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.outputs import Others
from pytest_fp16.evaluation.beside import Beside


class Actor(nn.Module):
    """Actions, and a value that is a small part of a large return."""

    def __init__(self, far):
        super().__init__()
        self.body, self.action, self.value = nn.Linear(10, 16), nn.Linear(16, 4), nn.Linear(16, 1)
        self.far = far

    def forward(self, x):
        h = torch.tanh(self.body(x))
        value = (self.value(h) + self.far) - self.far
        return {"logits": self.action(h) * 20, "value": value, "state": h, "loss": value.mean()}


def warnings_of(far, precision="16-true"):
    torch.manual_seed(0)
    model, x = Actor(far).eval(), torch.randn(200, 10)
    with torch.no_grad():
        labels = model(x)["logits"].argmax(-1)
    data = [(x[:100], labels[:100]), (x[100:], labels[100:])]
    report = check(Evaluation(model, data), precision=precision)
    assert report.verdict == "equivalent"
    return report.warnings


def test_a_value_that_loses_its_digits_is_named_with_what_it_lost():
    (said,) = warnings_of(500.0)
    assert said.startswith("outputs that were not judged differ from the reference's")
    assert "'value' by 0." in said
    assert "state" not in said
    assert said.endswith("to judge one of them, return it with forward=")


@pytest.mark.parametrize("precision", ["16-true", "16-mixed", "bf16-true", "bf16-mixed"])
def test_ordinary_rounding_of_other_outputs_is_not_worth_a_word(precision):
    assert warnings_of(0.0, precision) == []


def others(**values):
    return Others(values=values)


def test_shares_are_of_the_variance_over_all_batches():
    beside, wide = Beside(), torch.linspace(-1, 1, 64)
    beside.add(others(a=wide, b=wide), others(a=wide + 0.2, b=wide))
    beside.add(others(a=wide, b=wide), others(a=wide, b=wide))
    (said,) = beside.warnings()
    share = 0.5 * 0.04 / float(wide.var(correction=0))
    assert f"'a' by {share:.2g};" in said


@pytest.mark.parametrize("size", [1, 5, 64])
def test_it_does_not_matter_how_the_values_were_cut_into_batches(size):
    beside = Beside()
    wide = torch.linspace(-1, 1, 64) + torch.arange(64) // 32  # batches that differ in their mean
    for was in wide.split(size):
        beside.add(others(a=was), others(a=was + 0.2))
    assert beside.moved["a"].share == pytest.approx(0.04 / float(wide.var(correction=0)), rel=1e-4)


def test_what_is_one_for_every_input_has_no_variance_to_lose():
    beside, mass = Beside(), torch.softmax(torch.randn(64, 9), -1).sum(-1)
    assert mass.unique().numel() > 1
    beside.add(others(a=mass), others(a=mass.bfloat16().float() + 2**-8))
    assert beside.warnings() == []


def test_the_worst_come_first_and_no_more_than_a_few_are_named():
    beside, wide = Beside(), torch.linspace(-1, 1, 64)
    for i in range(5):
        beside.add(others(**{f"o{i}": wide}), others(**{f"o{i}": wide * (1.5 + i)}))
    (said,) = beside.warnings()
    assert [said.index(f"'o{i}'") for i in (4, 3, 2)] == sorted(
        said.index(f"'o{i}'") for i in (4, 3, 2)
    )
    assert "'o1'" not in said
    assert "and 2 more;" in said


def test_what_cannot_be_compared_is_left_out():
    beside, wide = Beside(), torch.linspace(-1, 1, 64)
    beside.add(others(a=wide, b=wide), others(a=wide[:9] + 3))
    beside.add(others(c=wide * torch.inf), others(c=wide))
    assert beside.warnings() == []


def test_a_batch_that_was_run_in_halves_is_watched_as_a_whole():
    class Large(nn.Module):
        def forward(self, x):
            if x.dtype == torch.float16 and len(x) > 30:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return {"logits": x, "box": x[:, :1] * 1e5, "side": (x[:, :1] + 3000) - 3000}

    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    x[:20, 0], x[20:, 0] = 2.0, 0.5  # 2e5 leaves the range, in the first half alone
    lost, moved = check(Evaluation(Large().eval(), [x], labelled=False)).warnings
    assert "'box' (20) values" in lost
    assert "'side' by" in moved
