"""A cure's words are what was applied; what stands beside it says that it was not."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check


def cured(model, x, name="16-true", **settings):
    report = check(Evaluation(model.eval(), [x], labelled=False), precision=name, **settings)
    assert report.verdict == "not equivalent"
    assert report.cure.verified
    return report, report.cure.description


class Rope(nn.Module):
    """Places are turned by what is in float32 already; a cast on the line makes them coarse."""

    def __init__(self, how):
        super().__init__()
        self.register_buffer("base", 10000.0 ** -torch.linspace(0, 1, 8))
        self.lin, self.how = nn.Linear(8, 8), how

    def forward(self, x):
        places = torch.arange(4000, 4016)
        if self.how == "outer":
            f = torch.outer(places.type_as(self.base).float(), self.base.float())
        else:
            f = torch.einsum("i,j->ij", places.float(), self.base.float())
        return (self.lin(x) * f.cos().to(x.dtype)).flatten(1)


def rope(how, name):
    torch.manual_seed(1)
    return cured(Rope(how), torch.randn(300, 16, 8), name)


def test_a_cast_on_the_line_is_named_where_its_operation_is_in_float32_already():
    report, said = rope("outer", "16-true")
    assert report.culprit.operation == "mul"
    what, _, place = said.partition(" at ")
    assert what == "cast to float32 in place of .type_as"
    assert place == f"{report.culprit.source} (mul is computed in float32 there already)"


def test_what_autocast_casts_again_is_computed_outside_it():
    report, said = rope("einsum", "16-mixed")
    assert said.startswith(
        f"compute einsum in float32 at {report.culprit.source}, outside autocast"
    )
    assert "torch.autocast(device_type, enabled=False)" in said


class Squares(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        h = self.first(x) * 300
        h = h / h.pow(2).sum(-1, keepdim=True).sqrt()
        return self.last(h)


def test_a_line_is_told_with_its_functions_and_the_layer_that_takes_its_result():
    torch.manual_seed(0)
    report, said = cured(Squares(), torch.randn(400, 8))
    assert said == (
        f"compute pow, sum, sqrt and 1 more in float32 at {report.culprit.source}, and cast back "
        "only for what takes the result: last"
    )


class Noise(nn.Module):
    """One minus a buffer that a cast makes one: no line brings it back."""

    def __init__(self):
        super().__init__()
        self.register_buffer("alphas", torch.tensor([0.9991, 0.99, 0.98, 0.97]))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x) / (1 - self.alphas).min() ** 0.5


def test_a_buffer_that_its_cast_ruins_is_named():
    torch.manual_seed(0)
    report, said = cured(Noise(), torch.randn(300, 4), "bf16-true")
    assert (report.culprit.mechanism, report.cure.kind) == ("cancellation", "upcast")
    assert said.startswith("keep the buffer alphas in float32: set it again once the model is cast")


class Variances(nn.Module):
    """Two of its variances are zero in float16; its layers take no float32."""

    def __init__(self):
        super().__init__()
        variances = torch.tensor([1e-8, 1.0, 2.0, 2e-8, 0.5, 1.0, 1.5, 0.7])
        self.first, self.head = nn.Linear(4, 8, bias=False), nn.Linear(8, 3)
        with torch.no_grad():
            self.first.weight.mul_(variances.sqrt()[:, None])
        self.register_buffer("variances", variances)

    def forward(self, x):
        z = self.first(x) * self.variances.rsqrt()
        return self.head(z)


def test_a_buffer_whose_values_fall_to_zero_is_kept_with_the_line_that_reads_it():
    torch.manual_seed(0)
    report, said = cured(Variances(), torch.randn(300, 4))
    culprit = report.culprit
    assert (culprit.mechanism, culprit.variant) == ("underflow", "stored values")
    assert culprit.operation == "rsqrt"
    assert said.startswith("keep the buffer variances in float32: set it again once the model is")
    assert f"; and compute rsqrt in float32 at {culprit.source}" in said
    assert report.cure.verified


class Inside(nn.Module):
    """The same, in a module that is kept with its buffer."""

    def __init__(self):
        super().__init__()
        self.noise, self.body = Noise(), nn.Sequential(nn.Linear(3, 100), nn.Linear(100, 3))

    def forward(self, x):
        return self.body(self.noise(x))


def test_nor_is_a_line_told_of_beside_a_module():
    torch.manual_seed(0)
    report, said = cured(Inside(), torch.randn(300, 4), "bf16-true")
    assert report.cure.modules == ["noise"]
    assert "compute the difference" not in said
    assert "keep the buffer noise.alphas in float32: its cast is what ruins it)" in said


class Ids(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6000, 3)

    def forward(self, x):
        return self.embed(x[:, 0].long())


def test_inputs_that_their_cast_ruins_are_named():
    torch.manual_seed(0)
    _, said = cured(Ids(), torch.randint(0, 5900, (300, 1)).float(), "bf16-true")
    assert said.startswith("hand input 0 on in float32 (keep_inputs=[0]) (or, not tried: keep the ")
    assert "whole numbers as integers at " in said


class Between(nn.Module):
    """The mean of what lies between two positions, counted in the positions' own format."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x, ends):
        place = torch.arange(x.shape[-1], dtype=ends.dtype)
        inside = ((place >= ends[:, :1]) & (place <= ends[:, 1:])).to(x.dtype)
        return self.fc((x * inside.unsqueeze(1)).sum(-1))


def test_integers_are_no_help_beside_an_input_that_is_ruined():
    torch.manual_seed(0)
    start = torch.randint(300, 590, (300, 1)).float()
    inputs = torch.randn(300, 4, 600), torch.cat([start, start + 1], 1)
    _, said = cured(Between(), inputs, "bf16-true")
    assert "as integers" not in said
    assert said == "hand input 1 on in float32 (keep_inputs=[1])"


class Grown(nn.Module):
    """The layer's result leaves the range; its line computes nothing by itself."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 4, 3, padding=1), nn.GroupNorm(1, 4)
        with torch.no_grad():
            self.conv.weight.mul_(3e5)

    def forward(self, x):
        return self.norm(x.repeat(1, 2, 1) + self.conv(x))


def test_what_cannot_work_is_not_told_beside_a_module():
    torch.manual_seed(0)
    model = nn.Sequential(Grown(), nn.Flatten(), nn.Linear(32, 400), nn.Linear(400, 3))
    report, said = cured(model, torch.randn(200, 2, 8), "16-mixed")
    assert report.culprit.operation == "convolution"
    assert said == (
        f"keep {report.cure.modules[0]} in float32 (not tried: divide before it at "
        f"{report.culprit.source})"
    )


class Spectrum(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(7, 3)

    def forward(self, x):
        return self.head(torch.fft.rfft(x, dim=-1).abs().to(x.dtype))


@pytest.mark.parametrize("name", ["16-true", "bf16-true"])
def test_a_complex_result_is_not_cast_back(name):
    torch.manual_seed(0)
    model = nn.Sequential(Spectrum(), nn.Linear(3, 400), nn.Linear(400, 3))
    _, said = cured(model, torch.randn(200, 12), name)
    assert "its result back" not in said
    assert "leave its result so (it is complex)" in said


class Guarded(nn.Module):
    """Bounds what it takes the logarithm of by a number that float16 does not have."""

    def __init__(self, how):
        super().__init__()
        self.lin, self.how = nn.Linear(8, 4), how

    def forward(self, x):
        if self.how == "clamp":
            return self.lin(x.relu().clamp(min=1e-10).log())
        return self.lin(torch.maximum(x.relu(), torch.full_like(x, 1e-10)).log())


@pytest.mark.parametrize("how", ["clamp", "maximum"])
def test_what_bounds_is_computed_in_float32_with_the_rest(how):
    """It rounds nothing but its bound, which is what is lost."""
    torch.manual_seed(0)
    report, said = cured(Guarded(how), torch.randn(200, 8))
    assert report.culprit.mechanism == "eps-underflow"
    named = said.partition(" in float32")[0].removeprefix("compute ").split(" and ")
    assert how in named[0].split(", ") or how in named
