"""A cure is the first that a full re-check passes, smallest set of modules first."""

import re
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.diagnosis import cures
from pytest_fp16.diagnosis.cures import find_cure
from pytest_fp16.diagnosis.remedy import Remedy
from pytest_fp16.diagnosis.trials import Recheck, Trials
from pytest_fp16.errors import FP16Error
from pytest_fp16.report.model import Culprit, Price

#: What a report has that nothing was found out of.
NOTHING = {"flips": 0, "decisions": 9, "metric": None, "luck": None}


class Rms(nn.Module):
    def forward(self, x):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()


def evaluated(model, digits, **settings):
    _, (x, y) = digits
    data = list(zip(x.split(200), y.split(200), strict=True))
    return check(Evaluation(model=model, data=data), **{"precision": "16-true", **settings})


def test_one_module_kept_in_float32(make_net, digits):
    report = evaluated(make_net(Rms(), gain=500.0), digits)
    assert report.culprit.module == "core.part"
    assert report.cure.kind == "keep_in_float32"
    assert report.cure.modules == ["core.part"]
    assert report.cure.verified
    assert report.cure.verdict == "equivalent"
    assert report.cure.flips <= report.forecast.flips_allowed + 3
    assert "tried" in str(report)


def test_all_modules_of_the_kind_where_one_is_not_enough(make_net, digits):
    part = nn.Sequential()
    for i in range(3):
        part.add_module(f"norm{i}", Rms())
        part.add_module(f"gain{i}", nn.Linear(32, 32, bias=False))
    model = make_net(part, gain=500.0)
    with torch.no_grad():
        for i in range(2):
            part[2 * i + 1].weight.mul_(500.0)
    report = evaluated(model, digits)
    assert report.culprit.module == "core.part.norm0"
    assert report.cure.verified
    assert report.cure.precision is None
    assert "core.part.norm0 alone is not enough; there, " in report.cure.description
    assert set(report.cure.modules) == {f"core.part.norm{i}" for i in range(3)}


class Detour(nn.Module):
    """Its first feature goes by way of a large number."""

    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        far = (x[:, :1] * self.gain) / self.gain
        return torch.cat([far, x[:, 1:]], 1)


@pytest.mark.parametrize("gains", [(1e6, 6e4), (3e4, 1e6)])
def test_a_second_fault_that_other_inputs_have_is_cured_with_the_first(gains):
    first, last = map(Detour, gains)
    torch.manual_seed(0)
    model = nn.Sequential(first, nn.Linear(8, 8), last, nn.Linear(8, 5)).eval()
    report = check(
        Evaluation(model, [torch.randn(400, 8)], labelled=False), precision="16-true", budget=0.001
    )
    assert report.verdict == "not equivalent"
    assert report.cure.verified
    assert report.cure.precision is None
    assert sorted(report.cure.modules) == ["0", "2"]


def test_a_value_that_leaves_the_module_too_large_is_cured_outside_it(make_net, digits):
    class Large(nn.Module):
        def forward(self, x):
            return x * 1e6

    part = nn.Sequential(Large(), nn.LayerNorm(32))
    report = evaluated(make_net(part), digits)
    assert (report.culprit.module, report.culprit.mechanism) == ("core.part.0", "overflow")
    assert report.cure.verified
    assert report.cure.modules in (["core.part"], [])


class Root(nn.Module):
    """Its own forward leaves the range of float16, on one line."""

    def __init__(self, net):
        super().__init__()
        self.net, self.head = net, nn.Linear(10, 10)
        nn.init.eye_(self.head.weight), nn.init.zeros_(self.head.bias)

    def forward(self, x):
        x = self.net(x)
        return self.head(x - (x * 5.0).exp().sum(-1, keepdim=True).log() * 0.01)


class Bounded(Root):
    """What is infinite in float32, too, is bounded, by a constant beyond the range of float16."""

    def forward(self, x):
        x = self.net(x)
        total = (x * 300.0).exp().sum(-1, keepdim=True).clamp(max=1e30).log() * 1e-4
        return self.head(x - total)


def test_one_line_of_the_model_itself(make_net, digits):
    report = evaluated(Root(make_net(nn.ReLU())), digits)
    assert report.culprit.module == ""
    assert (report.cure.kind, report.cure.modules) == ("upcast", [])
    assert report.cure.verified
    assert report.culprit.source in report.cure.description
    assert report.cure.flips <= 3
    assert 0 < report.cure.price.float32_share < 0.2


@pytest.mark.parametrize("emulate", ["always", "never"])  # a CPU's kernel refuses it
def test_a_bound_is_put_to_one_that_fits(make_net, digits, emulate):
    report = evaluated(Bounded(make_net(nn.ReLU())), digits, emulate=emulate, device="cpu")
    culprit = report.culprit
    assert (culprit.operation, culprit.mechanism, culprit.variant) == ("clamp", "mask-inf", "bound")
    assert "a bound lies beyond the range of float16" in str(report)
    assert (report.cure.kind, report.cure.verified) == ("mask constant", True)
    assert "bound by torch.finfo(x.dtype).max" in report.cure.description


class Nearest(nn.Module):
    """How far the nearest of eight neighbours are; what is missing is as far away as can be."""

    def __init__(self, body, fill):
        super().__init__()
        self.body, self.fill = body, fill

    def forward(self, x):
        rows = x.reshape(-1, 8, 8)
        distances = self.fill((rows - 0.3).square().sum(-1), rows.sum(-1) < 1.0)
        return self.body(x) - ((-distances).softmax(1) * distances).sum(1, keepdim=True)


def filled(distances, missing):
    return distances.masked_fill(missing, 1e9)


def taken(distances, missing):
    return torch.where(missing, torch.full_like(distances, 1e10), distances)


def made(distances, missing):
    return torch.where(missing, torch.full((), 1e9, dtype=distances.dtype), distances)


def cast(distances, missing):
    return torch.where(missing, torch.tensor(1e9).to(distances.dtype), distances)


@pytest.mark.parametrize("fill", [filled, taken, made])
@pytest.mark.parametrize("emulate", ["always", "never"])  # a CPU's kernel refuses it
def test_a_large_constant_is_put_to_the_largest_number(make_net, digits, emulate, fill):
    """The smallest, which a mask wants, would make of what is missing the nearest."""
    report = evaluated(Nearest(make_net(nn.ReLU()), fill), digits, emulate=emulate, device="cpu")
    assert (report.culprit.mechanism, report.culprit.variant) == ("mask-inf", "large constant")
    assert "a constant lies beyond the range of float16" in str(report)
    assert (report.cure.kind, report.cure.verified) == ("mask constant", True)
    assert "use torch.finfo(x.dtype).max" in report.cure.description
    assert report.forecast.verdict == "not equivalent"


def test_a_constant_that_is_cast_has_its_own_sign(make_net, digits):
    report = evaluated(Nearest(make_net(nn.ReLU()), cast), digits)
    assert report.culprit.variant == "large constant"
    assert "the constant 1e+09 is infinite" in report.culprit.evidence
    assert report.cure.verified


@pytest.mark.parametrize("precision", ["16-true", "bf16-mixed"])
def test_what_meets_a_layer_in_float64_is_brought_to_its_dtype(precision):
    class Counted(nn.Module):
        """`bincount` gives float64 for 16-bit weights, and no layer takes that."""

        def __init__(self):
            super().__init__()
            self.gate, self.head = nn.Linear(4, 1), nn.Linear(3, 2)

        def forward(self, kinds, events):
            weights = self.gate(events).sigmoid().flatten()
            place = kinds + 3 * torch.arange(len(kinds)).unsqueeze(1)
            counts = torch.bincount(place.flatten(), weights=weights, minlength=3 * len(kinds))
            return self.head(counts.view(-1, 3))

    torch.manual_seed(0)
    data = [(torch.randint(0, 3, (200, 5)), torch.randn(200, 5, 4))]
    evaluation = Evaluation(model=Counted().eval(), data=data, labelled=False)
    report = check(evaluation, precision=precision)
    assert (report.culprit.module, report.culprit.variant) == ("head", "mixed dtypes")
    assert (report.cure.kind, report.cure.verified) == ("upcast", True)
    assert report.cure.description.startswith("bring the tensors that meet there to one dtype at ")


class Scored(nn.Module):
    """Rows of pixels are weighed at the root, and empty rows masked by a constant."""

    def __init__(self):
        super().__init__()
        self.score, self.value, self.head = nn.Linear(8, 1), nn.Linear(8, 16), nn.Linear(16, 10)

    def forward(self, x):
        rows = x.squeeze(1)
        scores = self.score(rows).squeeze(-1).masked_fill(rows.sum(-1) == 0, -1e9)
        return self.head((scores.softmax(-1).unsqueeze(-1) * self.value(rows)).sum(1))


@pytest.mark.parametrize("precision", ["16-true", "16-mixed"])
def test_a_constant_of_the_root_that_fits_leaves_all_in_16_bits(precision, digits):
    _, (x, _) = digits
    torch.manual_seed(0)
    evaluation = Evaluation(model=Scored().eval(), data=[x[:300]], labelled=False)
    report = check(evaluation, precision=precision)
    assert (report.culprit.module, report.culprit.mechanism) == ("", "mask-inf")
    assert (report.cure.kind, report.cure.verified) == ("mask constant", True)
    assert report.cure.description.startswith("mask with torch.finfo(x.dtype).min")
    assert f"at {report.culprit.source} (tried for all constants" in report.cure.description
    # It adds no float32 arithmetic to what a mixed precision has of its own.
    assert report.cure.price.float32_share < (0.01 if precision == "16-true" else 0.25)


def test_a_sibling_precision_where_no_module_and_no_line_is_enough(make_net, digits):
    class Twice(Root):
        def forward(self, x):
            x = self.net(x)
            for _ in range(2):
                large = self.net.head(x @ self.net.head.weight * 1e6)
                x = self.head(x + 0 * large.clamp(max=3e38))
            return x

    report = evaluated(Twice(make_net(nn.ReLU())), digits)
    assert report.culprit.module in ("", "net.head")
    assert report.cure.verified
    assert report.cure.kind in ("mixed", "bfloat16")


def test_advice_with_the_line_where_nothing_passes(digits):
    class Everywhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("places", torch.randn(64, 10, generator=torch.Generator()))

        def forward(self, x):
            x = x.flatten(1) + 30000.0
            return (x - 30000.0) @ self.places

    _, (x, _) = digits
    report = check(
        Evaluation(model=Everywhere(), data=[x[:200]], labelled=False), precision="bf16-true"
    )
    assert report.verdict == "not equivalent"
    assert report.culprit.mechanism == "absorption"
    assert report.cure is not None
    if not report.cure.verified:
        assert "test_cures.py:" in report.cure.description
    else:
        assert report.cure.kind in ("mixed", "upcast")


def test_a_line_that_is_not_enough_was_tried():
    """Corners and sizes of boxes: each is too coarse in bfloat16, whichever line is in float32."""

    class Boxes(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(16, 4)

        def forward(self, x):
            corner = self.body(x)[:, :2] * 50
            corner = corner + 1500
            size = self.body(x)[:, 2:].sigmoid() * 10 + 2
            return torch.cat([corner, corner + size], -1)

    def near(outputs, labels):
        return 1 - (outputs.float() - labels).abs().mean(-1)

    torch.manual_seed(0)
    model, x = Boxes().eval(), torch.randn(200, 16)
    data = [(x, model(x).detach())]
    subject = Evaluation(model=model, data=data, task="regression", metric=near)
    report = check(subject, precision="bf16-true", emulate="always", budget=0.02)
    assert (report.cure.kind, report.cure.verified) == ("upcast", False)
    assert report.cure.verdict == "not equivalent"
    said = str(report)
    assert re.search(r"\(by itself not enough\); tried: near 0\.\d+, does not pass", said), said


def test_float16_where_bfloat16_has_too_few_digits_for_the_whole_model():
    """Nearest of many alike: no one module and no one line is to blame."""

    class Bank(nn.Module):
        def __init__(self):
            super().__init__()
            layers = [nn.Linear(16, 16, bias=False) for _ in range(5)]
            self.layers = nn.Sequential(*layers, nn.LayerNorm(16))
            self.register_buffer("bank", torch.randn(2000, 16))

        def forward(self, x):
            return nn.functional.normalize(self.layers(x), dim=-1) @ self.bank.T

    torch.manual_seed(0)
    data = [torch.randn(300, 16)]
    report = check(
        Evaluation(model=Bank().eval(), data=data, labelled=False),
        precision="bf16-mixed",
        emulate="always",
        budget=0.005,
    )
    assert report.verdict == "not equivalent"
    assert (report.cure.kind, report.cure.verified) == ("float16", True)
    assert report.cure.precision == "16-mixed"
    assert "16-mixed" in report.cure.description


def test_mixed_float16_where_neither_half_nor_bfloat16_has_the_digits():
    """Distances are told apart by hundredths, and the level of what is made of them by less."""

    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(60, 1)
            self.register_buffer("centres", torch.linspace(10, 26, 60))

        def forward(self, x):
            near = torch.exp(-50 * (x[..., None] - self.centres) ** 2).mean(1)
            return self.head(near).squeeze(1)

    torch.manual_seed(0)
    model, x = Narrow().eval(), 18 + 2 * torch.randn(400, 6)
    with torch.no_grad():
        model.head.weight *= 30
        model.head.bias += 3
        data = [(x, model(x))]
    subject = Evaluation(model=model, data=data, task="regression")
    report = check(subject, precision="bf16-true", emulate="always", budget=3e-5)
    assert report.verdict == "not equivalent"
    assert (report.cure.kind, report.cure.verified) == ("float16", True)
    assert report.cure.precision == "16-mixed"


def test_the_whole_model_in_float32_is_no_cure():
    torch.manual_seed(0)
    x = torch.randn(3000, 16)
    report = check(
        Evaluation(model=nn.Sequential(nn.Linear(16, 10)).eval(), data=[x], labelled=False),
        precision="bf16-mixed",
        emulate="always",
        budget=0.0,
    )
    assert report.verdict == "not equivalent"
    assert not report.cure.verified
    said = "(what was tried passes only with the whole model in float32); not tried"
    assert f"cure:  compute linear in float32 and leave its result so {said}" in str(report)


def test_the_allowance_is_not_spent_on_more_of_what_is_no_cure():
    """All products are in `inner`: whatever else is kept beside it, nothing is gained."""

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Linear(16, 256)

        def forward(self, x):
            y = self.wide(x) * 3e4
            return (y @ y.T)[:, :10] / 9e8

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner, self.last = nn.Identity(), Inner(), nn.LayerNorm(10)

        def forward(self, x):
            return self.last(self.inner(self.first(x)))

    torch.manual_seed(0)
    model, x = Outer().eval(), torch.randn(64, 16)
    data = [(x, model(x).argmax(-1))]
    report = check(Evaluation(model=model, data=data), precision="16-mixed", budget=0.05)
    assert (report.culprit.module, report.culprit.mechanism) == ("inner", "overflow")
    assert report.cure.verified
    assert report.cure.kind == "upcast"  # of both its lines


class Functional(nn.Module):
    """Two lines of one forward fail, and each is enough by itself."""

    def __init__(self):
        super().__init__()
        self.first, self.mid, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        h = self.first(x) * 300
        h = h / h.pow(2).sum(-1, keepdim=True).sqrt()
        h = self.mid(h)
        h = (h + 500) - 500
        return self.last(h)


def test_two_lines_of_the_model_itself_are_cured_together():
    torch.manual_seed(0)
    subject = Evaluation(Functional().eval(), [torch.randn(400, 8)], labelled=False)
    report = check(subject, precision="16-true")
    assert report.verdict == "not equivalent"
    assert (report.cure.kind, report.cure.verified, report.cure.precision) == ("upcast", True, None)
    lines = [int(number) for number in re.findall(r"test_cures\.py:(\d+)", report.cure.description)]
    assert len(lines) >= 2
    assert "and what is computed at" in report.cure.description


def test_advice_says_what_was_kept_in_vain(monkeypatch):
    """All that is tried fails its re-check, so the advice is all there is; and not all of it."""

    def never(remedy):
        numbers = {"candidate": 0.5, "reference": 0.9}
        metric = SimpleNamespace(name="accuracy", labelled=True, **numbers)
        report = SimpleNamespace(equivalent=False, verdict="not equivalent", metric=metric)
        return Recheck(report)

    monkeypatch.setattr(cures, "find_origin", lambda *_, **__: None)
    ran = SimpleNamespace(run=lambda: None)
    model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())
    trials = Trials(model, "16-true", never, lambda *_: ran, lambda _: None)
    culprit = Culprit(module="1", operation="clamp", mechanism="eps-underflow", evidence="")
    cure, keep = cures.find_cure(trials, culprit, None)
    assert not cure.verified
    assert not keep
    said = "or add it in float32 (1 in float32 alone is not enough: accuracy 50.0 %)"
    assert cure.description.endswith(said)


def test_more_and_more_lines_leave_an_allowance_for_another_precision(monkeypatch):
    monkeypatch.setattr(Trials, "left", lambda *_: 0.1)  # each seems to help
    monkeypatch.setattr(cures, "_next_line", lambda _, remedy: f"net.py:{len(remedy.lines) + 1}")
    passes, tried = Remedy("bf16-mixed", ("first",)), []

    def judge(remedy):
        tried.append(remedy)
        same = remedy == passes
        verdict = "equivalent" if same else "not equivalent"
        return Recheck(
            SimpleNamespace(
                equivalent=same, verdict=verdict, flips=0, decisions=9, metric=None, luck=None
            )
        )

    def rerun(remedy, kept):
        raise FP16Error

    model = nn.Sequential(OrderedDict(first=nn.Identity(), last=nn.Identity()))
    trials = Trials(model, "bf16-true", judge, rerun, lambda _: None)
    culprit = Culprit(
        module="first", operation="mm", mechanism="overflow", evidence="", source="net.py:1"
    )
    cure, _ = find_cure(trials, culprit, None)
    assert (cure.precision, cure.modules) == ("bf16-mixed", ["first"])
    assert [remedy for remedy in tried if len(remedy.lines) == 1]
    assert len(tried) <= 5


class Body(nn.Module):
    """Nearly all of the arithmetic, and a line of it that leaves the range."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 256), nn.Linear(256, 256)

    def forward(self, x):
        y = self.second(self.first(x).relu()) * 1e6
        return y / 1e6


def test_a_line_is_preferred_to_a_module_that_holds_nearly_everything():
    torch.manual_seed(0)
    model, x = nn.Sequential(Body(), nn.Linear(256, 10)).eval(), torch.randn(400, 16)
    subject = Evaluation(model=model, data=[(x, model(x).argmax(-1))])
    cure = check(subject, precision="16-true", emulate="always").cure
    assert (cure.kind, cure.verified) == ("upcast", True)
    assert cure.price.float32_share < 0.1


@pytest.mark.parametrize("cheaper", [True, False])
def test_what_leaves_little_in_16_bits_is_the_last_that_is_taken(monkeypatch, cheaper):
    """Where nothing else passes it is a cure all the same."""
    kept, other = Remedy("16-true", ("0",)), Remedy("bf16-true")

    def judge(remedy):
        passes = remedy == kept or (cheaper and remedy == other)
        verdict = "equivalent" if passes else "not equivalent"
        return Recheck(
            SimpleNamespace(
                equivalent=passes, verdict=verdict, flips=0, decisions=9, metric=None, luck=None
            )
        )

    monkeypatch.setattr(cures, "find_origin", lambda *_, **__: None)
    ran = SimpleNamespace(run=lambda: None)
    shares = {kept: 0.95, other: 0.0}
    price = lambda remedy: Price(float32_share=shares[remedy], float32_share_before=0.0)  # noqa: E731
    trials = Trials(nn.Sequential(Body()), "16-true", judge, lambda *_: ran, price)
    culprit = Culprit(module="0", operation="mul", mechanism="overflow", evidence="")
    cure, keep = find_cure(trials, culprit, None)
    assert cure.verified
    assert (cure.precision, keep) == (("bf16-true", ()) if cheaper else (None, ("0",)))


def test_what_several_lines_win_is_not_told_as_the_one_lines(monkeypatch):
    """The line itself was let fall on a few inputs, and only more lines were tried in full."""
    left = lambda _, remedy, origin: 0.9 if len(remedy.lines) < 2 else 0.1  # noqa: E731
    monkeypatch.setattr(Trials, "left", left)
    monkeypatch.setattr(cures, "_next_line", lambda _, remedy: f"net.py:{len(remedy.lines) + 1}")

    def judge(remedy):
        return Recheck(
            SimpleNamespace(equivalent=False, flips=1, decisions=9, metric=None, luck=None)
        )

    trials = Trials(nn.Identity(), "bf16-true", judge, lambda *_: None, lambda _: None)
    culprit = Culprit(
        module="", operation="sub", mechanism="cancellation", evidence="", source="net.py:1"
    )
    cure, _ = find_cure(trials, culprit, None)
    assert "(by itself not enough)" in cure.description
    assert next(len(remedy.lines) for remedy in trials.short if remedy.lines) == 2
    assert (cure.verdict, cure.flips) == ("not equivalent", None)


class Far(nn.Module):
    """A product beside two layers, half of the arithmetic, leaves the range on one line."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 64), nn.Linear(64, 64)

    def forward(self, x):
        y = self.second(self.first(x).relu()) * 1e6
        return y / 1e6


def test_a_module_of_much_arithmetic_leaves_the_choice_to_a_cheaper_line():
    """It holds less than nine tenths, and more than half; its price is told."""
    torch.manual_seed(0)
    model, x = nn.Sequential(Far(), nn.Linear(64, 40)).eval(), torch.randn(400, 16)
    subject = Evaluation(model=model, data=[(x, model(x).argmax(-1))])
    cure = check(subject, precision="16-true", emulate="always").cure
    assert (cure.kind, cure.verified) == ("upcast", True)
    assert cure.price.float32_share < 0.1
    share = re.search(r"\(0 kept in float32 passes, too, with ([\d.]+) %", cure.description)
    assert 50 < float(share[1]) < 90, cure.description


@pytest.mark.parametrize("children", [True, False])
def test_what_is_dear_is_kept_in_part_or_for_want_of_a_cheaper_one(monkeypatch, children):
    """Another precision is no cheaper way of the same kind, unless hardly anything is left."""
    kept, part, other = Remedy("16-true", ("0",)), ("0.first",), Remedy("bf16-true")

    def judge(remedy):
        passes = remedy in (kept, other) or (children and remedy.keep == part)
        verdict = "equivalent" if passes else "not equivalent"
        report = SimpleNamespace(equivalent=passes, verdict=verdict, metric=None, luck=None)
        return Recheck(SimpleNamespace(**vars(report), flips=0, decisions=9))

    monkeypatch.setattr(cures, "find_origin", lambda *_, **__: None)
    monkeypatch.setattr(cures, "uncast", lambda *_: iter(()))
    monkeypatch.setattr(cures, "described", lambda trials, remedy, *_: ", ".join(remedy.keep))
    ran = SimpleNamespace(run=lambda: None)
    price = lambda remedy: Price(float32_share=0.7 if remedy == kept else 0.2)  # noqa: E731
    trials = Trials(nn.Sequential(Far()), "16-true", judge, lambda *_: ran, price)
    culprit = Culprit(module="0", operation="mul", mechanism="overflow", evidence="")
    cure, keep = find_cure(trials, culprit, None)
    assert cure.verified
    if children:
        said = "0.first (0 kept in float32 passes, too, with 70.0 % of the arithmetic there)"
        assert (keep, cure.description) == (part, said)
    else:
        assert (keep, cure.description) == (("0",), "0")


class Masked(nn.Module):
    """As `Scored`, in a module that could be kept in float32 instead."""

    def __init__(self):
        super().__init__()
        self.scored, self.last = Scored(), nn.Linear(10, 10)

    def forward(self, x):
        return self.last(self.scored(x))


def test_a_constant_that_fits_comes_before_the_module(digits):
    _, (x, _) = digits
    torch.manual_seed(0)
    evaluation = Evaluation(model=Masked().eval(), data=[x[:300]], labelled=False)
    report = check(evaluation, precision="16-true")
    assert (report.culprit.module, report.culprit.mechanism) == ("scored", "mask-inf")
    assert (report.cure.kind, report.cure.verified) == ("mask constant", True)
    # The run that it mends ended before it had decided anything.
    assert (report.decisions, report.cure.decisions) == (0, 300)
    assert "of 300, passes" in str(report)
    assert "tried: agreement by margin " in str(report)


def test_a_cure_that_passes_by_luck_says_so(make_net, digits, monkeypatch):
    """Its decisions stand, and its outputs are far off: here, because so little counts as far."""
    report = evaluated(Nearest(make_net(nn.ReLU()), filled), digits)
    assert "with it the decisions" not in report.cure.description
    monkeypatch.setattr("pytest_fp16.evaluation.verdict.LUCK", 1e-6)
    report = evaluated(Nearest(make_net(nn.ReLU()), filled), digits)
    assert report.cure.verified
    assert re.search("; with it the decisions .*may not be so kind$", report.cure.description)


def test_one_that_passes_by_luck_gives_way_to_one_that_does_not(monkeypatch):
    def judge(remedy):
        equivalent = bool(remedy.keep) or remedy.precision == "bf16-mixed"
        verdict = "equivalent" if equivalent else "not equivalent"
        known = {**NOTHING, "luck": "they moved" if remedy.keep else None}
        return Recheck(SimpleNamespace(equivalent=equivalent, verdict=verdict, **known))

    monkeypatch.setattr(cures, "find_origin", lambda *_, **__: None)
    ran = SimpleNamespace(run=lambda: None)
    model = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.Linear(2, 2)))
    culprit = Culprit(module="a", operation="mm", mechanism="overflow", evidence="")
    trials = Trials(model, "16-mixed", judge, lambda *_: ran, lambda _: None)
    cure, keep = find_cure(trials, culprit, None)
    assert (cure.precision, keep) == ("bf16-mixed", ())
    trials = Trials(model, "bf16-mixed", judge, lambda *_: ran, lambda _: None)
    cure, keep = find_cure(trials, culprit, None)
    assert keep == ("a",)
    assert cure.description.endswith("; with it they moved")
