"""Programs that ask for the dtype, and do something else for 16 bits."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.diagnosis.branches import branched


class Norm(nn.Module):
    """A norm of small values, with an epsilon that is larger where the type is not float32."""

    def __init__(self, alike):
        super().__init__()
        self.alike = alike

    def forward(self, x):
        eps = 1e-5 if self.alike or x.dtype == torch.float32 else 3e-3
        x = x - x.mean(-1, keepdim=True)
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


class Clipped(nn.Module):
    """An operation more, for float16 alone."""

    def forward(self, x):
        x = 20 * x
        return x.clamp(-0.3, 0.3) if x.dtype == torch.float16 else x


class Masked(nn.Module):
    """A mask by the smallest number of a type, which does no harm."""

    def forward(self, x):
        return x.masked_fill(x < -90, torch.finfo(x.dtype).min)


class Layers(nn.Module):
    """A mask, then twice a layer with the part under test, and an offset behind it."""

    def __init__(self, part):
        super().__init__()
        self.masked, self.first, self.last = Masked(), nn.Linear(12, 24), nn.Linear(24, 5)
        self.middle, self.one, self.two = nn.Linear(24, 24), part(), part()

    def forward(self, x):
        x = self.one(self.first(self.masked(x)) * 0.1)
        x = self.two(self.middle(torch.relu(x - 0.5)) * 0.1)
        return self.last(torch.relu(x - 0.5))


class Once(nn.Module):
    """The same with a single part."""

    def __init__(self, part):
        super().__init__()
        self.masked, self.first, self.last = Masked(), nn.Linear(12, 24), nn.Linear(24, 5)
        self.one = part()

    def forward(self, x):
        return self.last(torch.relu(self.one(self.first(self.masked(x)) * 0.1) - 0.1))


def checked(model, precision):
    torch.manual_seed(0)
    model, x = model().eval(), torch.randn(300, 12)
    with torch.no_grad():
        data = [(x, model(x).argmax(1))]
    return check(Evaluation(model, data), precision=precision, emulate="always")


@pytest.mark.parametrize("precision", ["16-true", "16-mixed", "bf16-true"])
def test_an_epsilon_of_its_own_is_found_and_not_called_rounding(precision):
    report = checked(lambda: Once(lambda: Norm(False)), precision)
    assert report.verdict == report.forecast.verdict == "not equivalent"
    culprit = report.culprit
    assert (culprit.module, culprit.operation) == ("one", "add")
    assert culprit.variant == "another constant"
    dtype = "bfloat16" if precision.startswith("bf16") else "float16"
    assert culprit.evidence == (
        f"its constant is 0.003 in the program that {dtype} runs, and 1e-05 in that of float32"
    )
    assert "test_branches.py:21" in culprit.source
    assert "takes another constant for" in str(report)
    assert report.cure.verified
    assert "use a constant of one's own, the same whatever the dtype, at " in str(report)


def test_one_of_several_is_named():
    report = checked(lambda: Layers(lambda: Norm(False)), "16-true")
    assert report.culprit.variant == "another constant"
    assert report.culprit.module in ("one", "two")


def test_an_operation_that_only_one_of_the_programs_has():
    report = checked(lambda: Once(Clipped), "16-true")
    culprit = report.culprit
    assert (culprit.module, culprit.operation, culprit.variant) == (
        "one", "clamp", "another program",
    )  # fmt: skip
    assert "does something else for" in str(report)
    assert "do for 16 bits what is done for float32" in str(report)
    assert checked(lambda: Once(Clipped), "bf16-true").equivalent


class Logarithm(nn.Module):
    """Of probabilities and the spacing of their dtype at one; on lines of the model's own."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(12, 10)

    def forward(self, x):
        p = self.last(4 * x).softmax(-1)
        q = p + torch.finfo(p.dtype).eps
        return q.log()


def test_the_spacing_of_a_dtype_is_told_in_numbers_whatever_is_tried():
    torch.manual_seed(0)
    model, x = Logarithm().eval(), torch.randn(300, 12)
    with torch.no_grad():
        subject = Evaluation(model, [(x, model(x))], task="regression")
    report = check(subject, precision="16-true", emulate="always")
    low, wide = (torch.finfo(d).eps for d in (torch.float16, torch.float32))
    assert f"its constant is {low:.3g} in " in report.culprit.evidence
    assert f"and {wide:.3g} in that of float32" in report.culprit.evidence
    assert (report.cure.kind, report.cure.verified) == ("upcast", True)
    assert "(or, not tried: use a constant of one's own" in report.cure.description


def test_the_same_program_is_not_said_to_be_another():
    report = checked(lambda: Once(lambda: Norm(True)), "bf16-true")
    assert report.culprit is None or report.culprit.variant not in (
        "another program",
        "another constant",
    )


class Meets(nn.Module):
    """Refuses 16 bits at first; behind it are parts that do something else for them."""

    def __init__(self):
        super().__init__()
        self.first, self.layers = nn.Linear(12, 12), Layers(lambda: Norm(False))

    def forward(self, x):
        return self.layers(self.first(x * torch.ones(12)).to(x.dtype))


def test_a_program_behind_another_fault_is_cured_with_it():
    report = checked(Meets, "16-true")
    assert (report.culprit.module, report.culprit.mechanism) == ("first", "unsupported-op")
    assert report.cure.verified
    assert {"first", "layers.one", "layers.two"} <= set(report.cure.modules)


class Timed(nn.Module):
    """The same behind an embedding of several layers, none of which does to be kept alone."""

    def __init__(self):
        super().__init__()
        self.time = nn.Sequential(
            nn.Linear(12, 12), nn.SiLU(), nn.Linear(12, 12), nn.Linear(12, 12)
        )
        self.layers = Layers(lambda: Norm(False))

    def forward(self, x):
        return self.layers(x + self.time(torch.arange(12.0)).to(x.dtype))


def test_where_only_a_parent_runs_what_is_behind_it_is_cured_too():
    report = checked(Timed, "16-true")
    assert (report.culprit.module, report.culprit.mechanism) == ("time.0", "unsupported-op")
    assert report.cure.verified
    assert {"layers.one", "layers.two"} <= set(report.cure.modules)


class Biased(nn.Module):
    """Waves of a table that float32 itself computes in bfloat16, and what is lost elsewhere."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(12, 64), nn.Linear(64, 5)

    def forward(self, x):
        x = torch.where(x < 90, x, torch.finfo(x.dtype).min)  # another number, and no harm
        places = torch.arange(64, device=x.device).bfloat16()
        table = (places * 0.7 * 3.3).to(x.dtype)
        x = (self.first(x) + 300) - 300
        return self.last(x * table.cos())


def test_what_both_programs_round_alike_is_no_other_program(comparison):
    torch.manual_seed(0)
    model, x = Biased().eval(), torch.randn(200, 12)
    low = comparison(model, "bf16-true", x)
    low.record()
    assert branched(low, lambda _: comparison(model, "32-true", x)) is None
