"""Diagnosis at the end of an evaluation: who is diagnosed, from what, and at whose cost."""

import gc
import math
import weakref

import pytest
import torch
from torch import nn

import pytest_fp16.evaluation.diagnosed as after
from pytest_fp16 import Evaluation, check
from pytest_fp16.diagnosis.comparison import Comparison
from pytest_fp16.diagnosis.origin import find_origin
from pytest_fp16.diagnosis.stop import Raised
from pytest_fp16.engine.prediction.theory_pass import TheoryPass


def batches(digits, size=200):
    _, (x, y) = digits
    return list(zip(x.split(size), y.split(size), strict=True))


def test_only_rare_inputs_fail(make_net, digits):
    """The failure is in the last batch only; the diagnosis looks at the inputs that show it."""

    class Reciprocal(nn.Module):
        def forward(self, x):
            total = x.abs().sum(-1, keepdim=True)
            return torch.where(total > 0, x, x + 1) * (1e-9 / (total * 1e-3 + 1e-9)).clamp(max=1)

    class Norm(nn.Module):
        def forward(self, x):
            return x / (x.pow(2).sum(-1, keepdim=True).sqrt() + 1e-9)

    model = make_net(Norm())
    with torch.no_grad():
        model.encoder[1].bias.zero_()
    (x, y) = digits[1]
    x = x.clone()
    x[-3:] = 0
    subject = Evaluation(model=model, data=[(x[:400], y[:400]), (x[400:], y[400:])])
    report = check(subject)
    assert report.verdict == "not equivalent"
    assert (report.culprit.module, report.culprit.mechanism) == ("core.part", "eps-underflow")
    assert report.least_robust[0] == len(x) - 3
    assert report.cure.modules == ["core.part"]


def test_without_emulation(make_net, digits):
    model = make_net(nn.LayerNorm(32), gain=1.0)
    model.core["part"] = nn.Sequential(Square(), nn.LayerNorm(32))
    unlabelled = [x for x, _ in batches(digits)]
    report = check(
        Evaluation(model=model, data=unlabelled, labelled=False), emulate="never", device="cpu"
    )
    assert report.run.mode == "native"
    assert (report.culprit.module, report.culprit.mechanism) == ("core.part.0", "overflow")


class Square(nn.Module):
    def forward(self, x):
        return (x + 300.0) ** 2 * 2


def test_an_operation_that_only_this_device_lacks(make_net, digits):
    class Triangle(nn.Module):
        def forward(self, x):
            return x - torch.linalg.qr(x.unflatten(-1, (8, 4))).R.flatten(1).mean(-1, keepdim=True)

    unlabelled = [x for x, _ in batches(digits)]
    subject = Evaluation(model=make_net(Triangle(), steps=0), data=unlabelled, labelled=False)
    report = check(subject, target="cpu", device="cpu")
    assert report.verdict == "not equivalent"
    assert (report.culprit.module, report.culprit.mechanism) == ("core.part", "unsupported-op")
    assert report.culprit.operation == "linalg_qr"
    assert report.cure.verified


def test_what_a_failed_pass_held_is_freed_before_cures_are_tried(make_net, digits, monkeypatch):
    held = []

    class Holds(nn.Module):
        def forward(self, x):
            large = x.repeat(1, 3)
            held.append(weakref.ref(large))
            return x - torch.linalg.qr(large.unflatten(-1, (8, 12))).R.mean((-2, -1))[:, None]

    failed, alive = [], []
    diagnose, judge = after.diagnose, after._judged

    def diagnosed(request):
        failed.extend(reference for reference in held if reference() is not None)
        return diagnose(request)

    def judged(*arguments):
        gc.collect()
        alive.append(sum(reference() is not None for reference in failed))
        return judge(*arguments)

    monkeypatch.setattr(after, "diagnose", diagnosed)
    monkeypatch.setattr(after, "_judged", judged)
    unlabelled = [x for x, _ in batches(digits)]
    subject = Evaluation(model=make_net(Holds(), steps=0), data=unlabelled, labelled=False)
    report = check(subject, emulate="never", device="cpu")
    assert report.culprit.mechanism == "unsupported-op"
    assert failed
    assert alive[0] == 0


@pytest.mark.parametrize("emulate", ["always", "never"])
def test_what_a_diagnosis_recorded_is_freed_with_it(digits, emulate):
    """Cycles through the attributes of tensors may never be collected: each would stay for good."""

    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(64, 32)
            self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
            self.head = nn.Linear(32, 10)

        def forward(self, x):
            tokens = self.embed(x.flatten(1)).unsqueeze(1).expand(-1, 5, -1)
            seen = self.attention(tokens, tokens, tokens, need_weights=False)[0]
            return self.head((seen[:, 0] * 1e4) ** 2 / 1e8)

    torch.manual_seed(0)
    model, data = Attends().eval(), [(batches(digits)[0][0], None)]

    def alive():
        """Tensors there are when one more check has been made."""
        found = check(Evaluation(model=model, data=data), emulate=emulate)
        assert found.culprit.operation == "pow"
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    alive()  # what is kept for good, such as what is known of operations, is by now
    before = alive()
    assert alive() == before


def test_where_memory_does_not_do_one_input_is_looked_at(make_net, digits, monkeypatch):
    record, sizes = Comparison.record, []

    def short_of_memory(comparison):
        sizes.append(len(comparison.sample.inputs))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return record(comparison)

    monkeypatch.setattr(Comparison, "record", short_of_memory)
    part = nn.Sequential(Square(), nn.LayerNorm(32))
    report = check(Evaluation(model=make_net(part), data=batches(digits)), precision="16-true")
    assert sizes[:2] == [8, 1]
    assert (report.culprit.module, report.culprit.mechanism) == ("core.part.0", "overflow")


class Numbered(nn.Module):
    """A table looked up by numbers that a model counts in its own dtype."""

    def __init__(self, length):
        super().__init__()
        self.enter, self.table = nn.Linear(1, 8), nn.Embedding(length, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.enter(x.unsqueeze(-1))
        places = torch.arange(x.shape[1], dtype=x.dtype).long()
        return self.head(x + self.table(places))


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_an_index_that_rounding_leads_out_of_its_table(precision):
    torch.manual_seed(0)
    data = [torch.randn(6, 600)]
    report = check(
        Evaluation(model=Numbered(600).eval(), data=data, labelled=False),
        precision=precision,
        emulate="always",
        budget=0.05,
    )
    culprit = report.culprit
    assert (culprit.operation, culprit.mechanism) == ("arange", "absorption")
    assert "599" in culprit.evidence
    assert "embedding raised IndexError" in culprit.evidence
    assert report.cure.kind == "upcast"
    assert report.cure.verified
    assert report.forecast.verdict == "not equivalent"


def test_a_kernel_that_is_missing_is_missing_whatever_the_values(make_net, comparison):
    class Quantile(nn.Module):
        def forward(self, x):
            return torch.minimum(x, torch.quantile(x, 0.9, dim=-1, keepdim=True))

    found = find_origin(comparison(make_net(Quantile(), steps=5)))
    assert isinstance(found, Raised)
    assert found.misled is None


def test_a_few_zeros_are_an_underflow_where_outputs_become_nan(make_net, digits):
    """Weights over their sum: ordinary for most inputs, all of them zero for a few."""

    class Weights(nn.Module):
        def forward(self, x):
            weight = torch.exp(-x - 0.1 * x.sum(-1, keepdim=True))
            return x * weight / weight.sum(-1, keepdim=True)

    model = make_net(Weights())
    (x, y) = digits[1]
    x = x.clone()
    with torch.no_grad():
        x[0] *= 300 / model.encoder(x[:1]).sum()  # weights of e⁻³⁰
    subject = Evaluation(model=model, data=[(x[:200], y[:200])])
    report = check(subject, emulate="always")
    assert report.culprit is not None
    assert report.culprit.mechanism == "underflow"
    assert "fall to zero" in report.culprit.evidence


class Checked(nn.Module):
    """A model that refuses what is no distribution, as samplers do."""

    def forward(self, x):
        p = x.softmax(-1)
        if bool(((p.sum(-1) - 1).abs() > 1e-6).any()):
            raise ValueError("these are no probabilities")
        return p.log()


def test_a_check_of_the_models_own_that_only_rounded_values_fail(make_net, digits):
    subject = Evaluation(model=make_net(Checked()), data=batches(digits))
    report = check(subject, emulate="always")
    assert report.error.startswith("ValueError")
    assert report.culprit.module == "core.part"
    assert report.culprit.mechanism in ("cancellation", "precision-loss")
    assert "the program raised ValueError: these are no probabilities" in report.culprit.evidence
    assert report.cure.verified


def test_one_input_of_many_stops_the_program(digits):
    """The input that leads an index out of its table is not among the first few."""
    torch.manual_seed(0)
    ids = torch.arange(60) % 50
    ids[55] = 4095  # 4096 in bfloat16

    class Ids(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(4096, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.table(x.long()))

    subject = Evaluation(model=Ids().eval(), data=[ids.float()], labelled=False)
    report = check(subject, precision="bf16-true", emulate="always")
    assert report.culprit.operation == "_to_copy"
    assert report.culprit.mechanism == "absorption"
    assert "4095" in report.culprit.evidence


def test_many_small_parts_are_told_from_theory_alone(digits, monkeypatch):
    """Nothing is concentrated and nothing was lost: a measurement would not change the answer."""
    monkeypatch.setattr(Comparison, "side_by_side", lambda *_: pytest.fail("measured once more"))
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Tanh()) for _ in range(12)]
    x = digits[1][0].flatten(1)
    model = nn.Sequential(*layers, nn.Linear(64, 500)).eval()  # of so many, two are always close
    data = [(x, model(x).argmax(-1))]
    report = check(Evaluation(model=model, data=data), precision="bf16-true", budget=1e-4)
    assert report.verdict == "not equivalent"
    assert report.culprit.mechanism == "precision-loss"
    assert "more than any other module's" in report.culprit.evidence


@pytest.mark.parametrize(("emulate", "predictions"), [("always", 1), ("never", 2)])
def test_cures_are_held_against_theory_where_that_can_fail_them(
    make_net, digits, monkeypatch, emulate, predictions
):
    """An ideal emulation does what theory says; only a kernel that passes all else may not."""
    ran, run = [], TheoryPass.run

    def counted(theory, *arguments):
        ran.append(theory)
        return run(theory, *arguments)

    monkeypatch.setattr(TheoryPass, "run", counted)
    model = make_net(nn.Sequential(Square(), nn.LayerNorm(32)))
    data = [digits[1][0][:100]]
    report = check(Evaluation(model=model, data=data, labelled=False), emulate=emulate)
    assert report.culprit.mechanism == "overflow"
    assert report.cure.verified
    assert len(ran) == predictions


def test_a_stored_value_that_vanishes_is_told_from_a_computed_one():
    """The variance of a batch norm, which nothing before it can be multiplied by."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16, eps=1e-12), nn.Linear(16, 5)).eval()
    with torch.no_grad():
        model[0].weight.mul_(1e-4), model[0].bias.zero_()
        model[1].running_mean.fill_(2e-5), model[1].running_var.fill_(3e-9)
    report = check(Evaluation(model=model, data=[torch.randn(300, 64)], labelled=False))
    assert (report.culprit.module, report.culprit.mechanism) == ("1", "underflow")
    assert report.culprit.variant == "stored values"
    assert "a weight or a buffer is too small for float16" in str(report)
    assert "scale what is stored" in report.cure.description
    # The running mean has lost most of its digits as well, but it is not what is zero.
    assert report.culprit.evidence.startswith("100.0% of the values of a weight or buffer fall")


class Common(nn.Module):
    """Embeddings that differ by a thousandth of what they have in common."""

    def __init__(self):
        super().__init__()
        self.own = nn.Linear(16, 32)

    def forward(self, x):
        return self.own(x) * 0.01 + 20


@pytest.mark.parametrize("precision", ["16-true", "bf16-mixed"])
def test_what_embeddings_have_in_common_absorbs_the_rest(precision):
    torch.manual_seed(2)
    subject = Evaluation(Common().eval(), [torch.randn(100, 16)], labelled=False, task="embedding")
    report = check(subject, precision=precision)
    culprit = report.culprit
    assert (culprit.module, culprit.operation, culprit.mechanism) == ("", "add", "absorption")
    assert report.cure.verified


class Odds(nn.Module):
    """Log-odds of probabilities that are kept from one."""

    def forward(self, x):
        p = x.sigmoid().clamp(1e-3, 1 - 1e-4)
        return torch.log(p / (1 - p))


def test_a_bound_just_below_one_is_no_small_epsilon():
    subject = Evaluation(Odds().eval(), [10 * torch.randn(100, 4)], labelled=False)
    report = check(subject)
    assert (report.culprit.mechanism, report.culprit.variant) == ("eps-underflow", "near one")
    assert "0.999 in float16" in report.cure.description


class HourOfDay(nn.Module):
    """What is usual at an hour of the day, from a time that counts the hours since years."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 4)

    def forward(self, hours):
        angle = hours * (2 * math.pi / 24)
        return self.head(torch.cat([angle.sin(), angle.cos()], -1)) * 10


def test_inputs_that_the_format_does_not_hold_are_named():
    torch.manual_seed(0)
    model, x = HourOfDay().eval(), torch.rand(300, 1) * 20_000
    with torch.no_grad():
        data = [(x, model(x).argmax(-1))]
    report = check(Evaluation(model, data), precision="16-true")
    assert report.culprit.operation == "mul"
    assert report.culprit.variant == "stored inputs"
    assert (report.cure.kind, report.cure.verified) == ("keep inputs", True)
    assert report.cure.description == (
        "hand input 0 on in float32 (keep_inputs=[0]), and cast what is made of them for what "
        "takes it: head"
    )


def test_under_autocast_the_operation_that_casts_the_inputs_can_be_mended():
    class Cell(nn.Module):
        def forward(self, places):  # of atoms, turned into another frame
            turned = places @ torch.tensor([[0.5, 1.0], [-1.0, 0.5]])
            return turned.sin()

    torch.manual_seed(0)
    x = torch.rand(300, 2) * 30
    report = check(Evaluation(Cell(), [x], task="regression"), precision="bf16-mixed")
    assert report.culprit.operation == "mm"
    assert "which the model's inputs bring, as they are cast" in report.culprit.evidence
    assert report.culprit.variant is None
    assert "compute matmul in float32" in report.cure.description


class OfOneLength(nn.Module):
    """Rows brought to one length, whatever their unit."""

    def forward(self, x):
        return x / (torch.sqrt((x**2).sum(-1, keepdim=True)) + 1e-12)


@pytest.mark.parametrize(
    ("unit", "empty", "operation", "mechanism"),
    [(1e-5, 0, "pow", "underflow"), (1.0, 9, "add", "eps-underflow")],
)
def test_a_lost_constant_is_at_fault_only_where_there_is_need_of_it(
    unit, empty, operation, mechanism
):
    """Squares of small rows are zero before it; a row of zeros is one in 32 bits too."""
    rows = unit * torch.randn(100, 16)
    rows[:empty] = 0
    model = nn.Sequential(OfOneLength(), nn.LayerNorm(16, elementwise_affine=False))
    report = check(Evaluation(model.eval(), [rows], labelled=False, task="embedding"))
    culprit = report.culprit
    assert (culprit.module, culprit.operation, culprit.mechanism) == ("0", operation, mechanism)
    assert report.cure.verified


class Saturating(nn.Module):
    """Sure of several classes at once: probabilities of one, each by itself."""

    def __init__(self, last, bias):
        super().__init__()
        self.lin, self.last = nn.Linear(64, 10), last
        with torch.no_grad():
            self.lin.bias.fill_(bias)

    def forward(self, x):
        return self.last(self.lin(x.flatten(1)))


@pytest.mark.parametrize("last", [(nn.Sigmoid, 10), (nn.Tanh, 5)])
@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_decisions_between_outputs_that_saturate_are_laid_to_what_saturates(
    last, precision, digits
):
    """The layer before errs far more, and loses no decision."""
    torch.manual_seed(0)
    model = Saturating(last[0](), last[1]).eval()
    x = digits[1][0]
    with torch.no_grad():
        best = model.lin(x.flatten(1)).topk(2)
        sure = best.values.diff().squeeze(1).abs() > 0.3
        x, y = x[sure], best.indices[sure, 0]
    report = check(Evaluation(model=model, data=[(x, y)]), precision=precision)
    assert report.verdict == "not equivalent"
    culprit = report.culprit
    assert culprit.module == "last", culprit
    assert (culprit.mechanism, culprit.variant) == ("precision-loss", "merged outputs")
    assert "decisions looked at are between numbers that" in culprit.evidence
    assert report.cure.verified
    assert report.cure.kind == "upcast"  # kept in float32, its result would be cast back
    assert "outputs that float32 tells apart are one number in" in str(report)
