"""A refusal of two dtypes names where the wider one came into the program, and from what."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check


class Shifted(nn.Module):
    """What it takes off is an attribute, which is no buffer."""

    def __init__(self):
        super().__init__()
        self.mean = torch.linspace(-1, 1, 16)
        self.body, self.head = nn.Linear(16, 256), nn.Linear(256, 10)

    def forward(self, x):
        x = x - self.mean
        x = x / 2
        return self.head(self.body(x).relu())


class Padded(nn.Module):
    """What it puts beside its input is made without a dtype, and goes by way of a view."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(20, 10)

    def forward(self, x):
        more = torch.zeros(4, len(x)).T
        x = torch.cat([x, more], 1)
        return self.head(x * 2)


class Filled(nn.Module):
    """What its features are written into is made without a dtype, and meets them there."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        out = torch.zeros(len(x), 16)
        out[torch.arange(len(x))] = x
        return self.head(out)


class Cast(nn.Module):
    """It asks for float32 itself, and its layer does not."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        size = x.float().norm(dim=-1, keepdim=True)
        x = x / size
        return self.head(x)


class Convolved(Shifted):
    """What torch refuses before it comes to an operation."""

    def __init__(self):
        super().__init__()
        self.tap = nn.Conv1d(1, 1, 1)

    def forward(self, x):
        x = x + self.mean
        return self.tap(x[:, None]).flatten(1)


class Waves(Shifted):
    """Frequencies of whole numbers."""

    def forward(self, x):
        waves = torch.arange(16) * 0.1
        return self.head(self.body(x * waves))


class Followed(Shifted):
    """Zeros follow the dtype of what an attribute has made wide, and the product takes both."""

    def forward(self, x):
        wide = x * self.mean
        scores = torch.baddbmm(
            torch.zeros(len(x), 1, 16, dtype=wide.dtype),
            wide[:, None],
            wide[:, :, None] * wide[:, None],
        )
        return self.head(self.body(scores[:, 0]))


def checked(model, **settings):
    data = [(torch.randn(200, 16, generator=torch.Generator().manual_seed(0)))]
    return check(Evaluation(model.eval(), data, labelled=False), precision="16-true", **settings)


def on(code):
    """Operations are told with their lines: that of some code in this file, as it is told."""
    lines = Path(__file__).read_text().splitlines()
    return f"test_meeting.py:{next(n for n, line in enumerate(lines, 1) if code in line)})"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Shifted, ["float32 comes in at sub (", on("x - self.mean"), "meets mean of the model, a"]),
        (
            Padded,
            ["comes in at cat (", on("torch.cat("), "float16 meets what zeros (", on(", len(x)")],
        ),
        (
            Filled,
            ["the float32 tensor there is what zeros (", on("(len(x), 16)"), " without a dtype"],
        ),
        (
            Convolved,
            ["float32 comes in at add (", on("x + self.mean"), "meets mean of the model, a"],
        ),
        (
            Waves,
            ["comes in at mul (", "float16 meets what mul (", on("arange(16)"), " of whole num"],
        ),
        (Followed, ["comes in at mul (", on("wide = x * self"), "meets mean of the model, a"]),
        (Cast, ["comes in at div (", on("x / size"), "float16 meets an input that the program"]),
    ],
)
@pytest.mark.parametrize("emulate", ["always", "never"])
def test_where_the_wider_dtype_came_from(kind, said, emulate):
    torch.manual_seed(0)
    report = checked(kind(), emulate=emulate, device="cpu")
    culprit, cure = report.culprit, report.cure
    assert (culprit.mechanism, culprit.variant) == ("unsupported-op", "mixed dtypes")
    assert re.search(".*".join(map(re.escape, said)), culprit.evidence), culprit.evidence
    assert (cure.kind, cure.verified) == ("upcast", True)


def test_a_submodule_is_named_with_its_attribute():
    torch.manual_seed(0)
    report = checked(nn.Sequential(nn.Linear(16, 16), Shifted()), emulate="always")
    assert "meets mean of 1, a plain attribute" in report.culprit.evidence


def test_the_wider_is_cast_before_anything_is_widened():
    torch.manual_seed(0)
    cure = checked(Shifted(), emulate="always").cure
    assert cure.description.endswith("the wider one to that of the other, x.to(y.dtype)")
    assert cure.price.float32_share < 0.1


def test_what_16_bits_cannot_hold_is_widened():
    """What meets the layer leaves the range of float16, and the layer brings it back."""

    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.tensor([1e6])
            self.body, self.head = nn.Linear(16, 16), nn.Linear(16, 10)
            self.side = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 16))
            with torch.no_grad():
                self.body.weight *= 1e-4

        def forward(self, x):
            return self.head(self.body(x * self.scale).sigmoid() + self.side(x))

    torch.manual_seed(0)
    cure = checked(Large(), emulate="always").cure
    assert cure.verified
    assert "the wider one" not in cure.description


def test_an_input_that_is_kept_is_told_as_that():
    """No cast of the program's made it float32."""

    class Timed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(16, 10)

        def forward(self, x, t):
            return self.head(x * t)

    torch.manual_seed(0)
    x, t = torch.randn(64, 16), torch.rand(64, 1) + 0.5
    given = Evaluation(Timed(), [(x, t)], labelled=False, keep_inputs=[1])
    evidence = check(given, precision="16-true").culprit.evidence
    assert "an input that keep_inputs= hands on as it is" in evidence


def test_a_hooks_tensor_is_told_as_that_and_all_that_meets_it_is_named():
    class Steer:
        def __init__(self):
            self.vector = torch.linspace(0, 1, 16)

        def __call__(self, module, args, output):
            return output + self.vector

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16, elementwise_affine=False))
    model.append(nn.Linear(16, 10))
    model[0].register_forward_hook(Steer())
    culprit = checked(model, emulate="always").culprit
    assert "meets a tensor that a hook of 0 holds, which no cast reaches" in culprit.evidence


@pytest.mark.parametrize(("meetings", "end"), [(1, "x.to(y.dtype)"), (2, "; and so for last")])
def test_wherever_dtypes_were_brought_together_is_named(meetings, end):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 10)

        def forward(self, x):
            x = self.first(x + torch.zeros(16))
            return self.last(x + torch.zeros(16) if meetings > 1 else x)

    torch.manual_seed(0)
    model = Net()
    cure = checked(model, emulate="always").cure
    assert cure.verified
    assert cure.description.endswith(end)
