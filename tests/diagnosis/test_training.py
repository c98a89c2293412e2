"""Trainings broken on purpose: who is blamed, and whether the cure was tried."""

from __future__ import annotations

import linecache
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_fp16 import check
from pytest_fp16.diagnosis import training as after
from pytest_fp16.diagnosis.training_cures import Proposal, proposals
from pytest_fp16.engine.gradients.check import GradientFindings, gradient_check
from pytest_fp16.engine.training.place import Amendment
from pytest_fp16.mixing import keep_in_float32
from pytest_fp16.precision import PRECISIONS, precision
from pytest_fp16.report.model import Culprit, Cure
from pytest_fp16.settings import Settings


class Square(nn.Module):
    def forward(self, x):
        return (x * 300) * (x * 300) / 90000


def squaring():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), Square(), nn.Linear(32, 10))


def adam(params):
    return torch.optim.Adam(params, lr=1e-2)


def far(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none").mul(3000).sum() / 192000


BROKEN = {
    "epsilon": ({"optimizer": adam}, "<optimizer>", "eps-underflow", "optimizer epsilon"),
    "loss": ({"loss": far}, "<loss>", "overflow", "loss in float32"),
    "module": ({"model": squaring}, "2", "overflow", "keep_in_float32"),
}


@pytest.fixture(params=["with the gradient check", "with a silent gradient check"])
def _gradient_check(request, monkeypatch):
    if "silent" in request.param:
        silent = GradientFindings("equivalent", "nothing found")
        monkeypatch.setattr("pytest_fp16.training.run.gradient_check", lambda *_: silent)


def at(source):
    name, _, number = source.rpartition(":")
    return name, int(number)


@pytest.mark.usefixtures("_gradient_check")
@pytest.mark.parametrize("case", BROKEN)
def test_culprit_and_cure(digits_training, case):
    changes, module, mechanism, kind = BROKEN[case]
    report = check(digits_training(epochs=1, **changes), precision="16-true", seeds=3)
    assert report.verdict == "not equivalent"
    assert (report.culprit.module, report.culprit.mechanism) == (module, mechanism)
    # Torch's own optimizer has no line of the user's.
    line = {"module": "(x * 300)", "loss": 'reduction="none"', "epsilon": None}[case]
    where = linecache.getline(*at(report.culprit.source)) if report.culprit.source else None
    assert where is line or line in where
    assert report.cure.kind == kind
    assert report.cure.verified
    assert report.cure.reference - report.cure.metric <= report.cure.budget
    assert report.cure.seeds == [0, 1]
    assert "with seeds 0 and 1" in str(report)
    price = report.cure.price
    assert (price.float32_share > price.float32_share_before) is (module != "<optimizer>")


def test_a_cure_that_does_not_help_is_not_named(digits_training, monkeypatch):
    from pytest_fp16.diagnosis import training

    useless = [
        p
        for p in proposals(
            digits_training(optimizer=adam, epochs=1),
            squaring(),
            PRECISIONS["16-true"],
            Culprit(module="<loss>", operation="", mechanism="eps-underflow", evidence=""),
            None,
        )
        if p.kind == "loss in float32"
    ]
    assert len(useless) == 1
    monkeypatch.setattr(training, "proposals", lambda *_: iter(useless))
    report = check(digits_training(optimizer=adam, epochs=1), precision="16-true", seeds=3)
    assert report.verdict == "not equivalent"
    assert report.cure is None
    (said,) = [w for w in report.warnings if w.startswith("cures that were tried")]
    assert "in float32" in said
    assert "seed 0 ended: nan" in said


@pytest.mark.parametrize(("seeds", "tried"), [(3, None), (1, [0])])
def test_a_cure_that_helps_one_seed_alone_is_luck(digits_training, monkeypatch, seeds, tried):
    from pytest_fp16.diagnosis import training

    made = []

    def lucky(optimizer):
        made.append(optimizer)
        optimizer.param_groups[0]["eps"] = 1e-3 if len(made) == 1 else 1e-8

    cure = Proposal("optimizer epsilon", "it helps once", amendment=Amendment(optimizer=lucky))
    monkeypatch.setattr(training, "proposals", lambda *_: iter([cure]))
    report = check(digits_training(optimizer=adam, epochs=1), precision="16-true", seeds=seeds)
    assert report.verdict == "not equivalent"
    assert (report.cure.seeds if report.cure else None) == tried
    assert any("it helps once (seed 1 ended" in w for w in report.warnings) is (tried is None)


def briefly(params):
    """Steps so short that an epsilon of 1e-4 changes what an epoch brings."""
    return torch.optim.Adam(params, lr=1e-3)


def test_a_cure_that_gains_more_than_half_of_a_brief_training_is_not_proven(digits_training):
    report = check(digits_training(optimizer=briefly, epochs=1), precision="16-true", seeds=3)
    cure = report.cure
    assert cure.metric - cure.reference > cure.budget
    assert (cure.kind, cure.verdict, cure.verified) == ("optimizer epsilon", "inconclusive", False)
    assert "inconclusive: it gains more than half of what training brings" in str(report)


def settled(pairs, runs, tried, budget):
    """As `Pairs.unsettled` of the first cure, and of no other."""
    settled.asked.append(tried[0][1].precision)
    return "it gains" if len(settled.asked) == 1 else None


@pytest.mark.parametrize(("aimed", "kind"), [("1", "mixed"), ("<optimizer>", "bfloat16")])
def test_one_that_passes_is_preferred_unless_the_first_mends_the_culprit(
    digits_training, monkeypatch, aimed, kind
):
    from pytest_fp16.diagnosis import training

    blamed = Culprit(module=aimed, operation="", mechanism="precision-loss", evidence="known")
    known = GradientFindings("not equivalent", "known", culprit=blamed)
    monkeypatch.setattr("pytest_fp16.training.run.gradient_check", lambda *_: known)
    first, second = (
        Proposal(kind, kind, precision=PRECISIONS[name], points_to="<optimizer>")
        for kind, name in (("bfloat16", "bf16-true"), ("mixed", "16-mixed"))
    )
    monkeypatch.setattr(training, "proposals", lambda *_: iter([first, second]))
    monkeypatch.setattr("pytest_fp16.training.pairs.Pairs.unsettled", settled)
    monkeypatch.setattr(settled, "asked", [], raising=False)
    report = check(digits_training(optimizer=adam, epochs=1), precision="16-true", seeds=3)
    assert (report.cure.kind, report.cure.verified) == (kind, kind == "mixed")


@pytest.mark.parametrize(
    ("names", "others", "kind"),
    [
        (["1", "2", "3"], ["bf16-mixed"], "bfloat16"),
        (["1", "2", "3"], [], "keep_in_float32"),
        (["2"], ["bf16-mixed"], "keep_in_float32"),
    ],
)
def test_a_cure_that_leaves_little_in_16_bits_gives_way_to_another_precision(
    digits_training, monkeypatch, names, others, kind
):
    from pytest_fp16.diagnosis import training

    kept = Amendment(model=lambda model: keep_in_float32(model, names, quiet=True))
    first = Proposal("keep_in_float32", "keep", modules=names, amendment=kept, points_to="2")
    after = [Proposal("bfloat16", "other", precision=PRECISIONS[name]) for name in others]
    monkeypatch.setattr(training, "proposals", lambda *_: iter([first, *after]))
    report = check(digits_training(model=squaring), precision="16-true", seeds=3)
    assert (report.cure.kind, report.cure.verified) == (kind, True), str(report)


class Coarse(nn.Module):
    """In bfloat16 nothing is left of its inputs."""

    def forward(self, x):
        return (x + 1000.0) - 1000.0


def test_a_loss_of_metric_is_laid_to_what_the_check_had_let_pass(digits_training, monkeypatch):
    suspect = Culprit(module="1", operation="add", mechanism="absorption", evidence="bent")
    silent = GradientFindings("equivalent", "they still learn", suspect=suspect)
    monkeypatch.setattr("pytest_fp16.training.run.gradient_check", lambda *_: silent)
    monkeypatch.setattr("pytest_fp16.training.run.lost_when_evaluated", lambda *_: None)
    model = lambda: nn.Sequential(nn.Flatten(), Coarse(), nn.Linear(64, 10))  # noqa: E731
    report = check(digits_training(model=model, epochs=2), precision="bf16-true", seeds=3)
    assert report.verdict == "not equivalent"
    assert (report.culprit.module, report.culprit.operation) == ("1", "add")
    assert report.culprit.evidence.startswith("mean loss")
    assert report.culprit.evidence.endswith("bent")
    assert report.cure.modules == ["1"]


def chances():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1))


def of_chances(outputs, targets):
    hot = nn.functional.one_hot(targets, 10).to(outputs.dtype)
    return nn.functional.binary_cross_entropy(outputs, hot)


def test_what_autocast_refuses_is_no_missing_kernel(digits_training):
    subject = digits_training(epochs=1, model=chances, loss=of_chances)
    report = check(subject, precision="16-mixed", seeds=3)
    assert (report.culprit.module, report.culprit.mechanism) == ("<loss>", "unsupported-op")
    assert "unsupported-op: autocast refuses this operation" in str(report)
    assert "outside autocast" in report.cure.description
    assert report.cure.verified


class Doubling(torch.autograd.Function):
    """Not made for autocast: its backward pass meets what it saved in float32."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.t() @ x


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 32) / 6)

    def forward(self, x):
        return Doubling.apply(x, self.weight)


def custom():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), Custom())


def test_an_error_of_a_backward_pass_is_laid_to_its_module(digits_training):
    report = check(digits_training(epochs=1, model=custom), precision="16-mixed", seeds=3)
    assert (report.culprit.module, report.culprit.mechanism) == ("3", "unsupported-op")
    assert (report.cure.kind, report.cure.modules) == ("keep_in_float32", ["3"])
    assert report.cure.verified


class Late(nn.Module):
    """Masks with a constant that float16 does not have, after a while."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.steps += self.training
        if self.steps > 80:
            x = x.masked_fill(x < -50, -1e9)
        return x


@pytest.mark.parametrize("where", ["module", "loss"])
def test_an_error_late_in_a_training_is_found_where_it_was_raised(digits_training, where):
    late = Late()

    def model():
        layers = [nn.Flatten(), nn.Linear(64, 10)]
        return nn.Sequential(*layers, Late()) if where == "module" else nn.Sequential(*layers)

    def loss(outputs, targets):
        if where == "loss" and outputs.dtype == torch.float16:
            outputs = late(outputs)
        return nn.functional.cross_entropy(outputs, targets)

    subject = digits_training(model=model, loss=loss, epochs=20 if where == "module" else 40)
    report = check(subject, precision="16-true", seeds=2)
    culprit = report.culprit
    assert report.training["ended"] == ["raised"]
    assert culprit.mechanism == "mask-inf"
    assert culprit.module == ("2" if where == "module" else "<loss>")
    assert "masked_fill" in linecache.getline(*at(culprit.source))
    assert "cannot be converted" in culprit.evidence
    assert "; first in epoch" in culprit.evidence


def test_statistics_that_are_lost_after_steps_that_ran_off_are_not_at_fault(digits_training):
    def model():
        stem = [nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU()]
        body = [nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)]
        return nn.Sequential(*stem, *body)

    training = digits_training(
        model=model, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2, eps=1e-6), epochs=3
    )
    report = check(training, precision="16-true", seeds=2)
    assert report.verdict == "not equivalent"
    assert report.culprit.module == "<optimizer>", str(report)
    assert (report.cure.kind, report.cure.verified) == ("optimizer epsilon", True)


def test_a_statement_of_the_steps_own_is_no_want_of_digits(digits_training):
    def step(model, batch):
        outputs = model(batch[0])
        assert outputs.dtype == torch.float32, "logits must be float32"
        return nn.functional.cross_entropy(outputs, batch[1])

    report = check(digits_training(loss=None, training_step=step), precision="16-true", seeds=2)
    assert report.verdict == "not equivalent"
    assert report.culprit.variant == "own statement"
    assert "assert outputs.dtype" in linecache.getline(*at(report.culprit.source))
    assert "a statement of the program's own stops it in float16" in str(report)


class Counted(nn.Module):
    """Tells its loss how many steps have been made."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.steps += self.training
        return (self.body(x), self.steps.clone()) if self.training else self.body(x)


def test_a_loss_that_breaks_late_is_not_laid_to_the_module_before_it(digits_training, monkeypatch):
    silent = GradientFindings("equivalent", "nothing found")
    monkeypatch.setattr("pytest_fp16.training.run.gradient_check", lambda *_: silent)

    def loss(outputs, targets):
        z, steps = outputs
        if steps > 60:
            z = z * 6e4 * (z.detach() * 0 + 300) / 1.8e7
        return nn.functional.cross_entropy(z, targets)

    report = check(
        digits_training(model=Counted, loss=loss, epochs=20), precision="16-true", seeds=2
    )
    assert report.training["ended"] == ["not finite"]
    assert report.culprit.module == "<loss>"
    assert "6e4" in linecache.getline(*at(report.culprit.source))


def test_a_scaler_takes_no_closure(digits_training):
    def lbfgs(params):
        return torch.optim.LBFGS(params, lr=0.1, max_iter=2)

    report = check(digits_training(optimizer=lbfgs, epochs=1), precision="16-mixed", seeds=2)
    assert report.culprit.module == "<optimizer>"
    assert "a gradient scaler cannot scale" in str(report)
    assert "kernel for this operation" not in str(report)


class WithinBackward(torch.optim.Optimizer):
    """Steps along each gradient as soon as there is one, and drops it."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})
        for p in self.param_groups[0]["params"]:
            p.register_post_accumulate_grad_hook(self.moved)

    @torch.no_grad()
    def moved(self, p):
        p.sub_(p.grad, alpha=0.1)
        p.grad = None

    def step(self, closure=None):
        pass


def test_a_scaler_finds_no_gradient_that_a_hook_has_used(digits_training):
    subject = digits_training(optimizer=WithinBackward, epochs=1)
    report = check(subject, precision="16-mixed", seeds=2)
    foreseen = gradient_check(subject, precision("16-mixed"), Settings(), torch.device("cpu"))
    assert report.culprit.module == foreseen.culprit.module == "<optimizer>"
    assert "a gradient scaler found no gradient left" in str(report)


def test_targets_that_do_not_fit_are_the_batch_itself(digits_training):
    def regression(batches):
        return [(x, y.float()[:, None] * 3e4) for x, y in batches]

    subject = digits_training(
        model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 1)),
        loss=lambda z, t: nn.functional.smooth_l1_loss(z, t / 3e4),
        task="regression",
        epochs=1,
    )
    subject = replace(
        subject,
        train_data=regression(subject.train_data),
        eval_data=regression(subject.eval_data),
    )
    report = check(subject, precision="16-true", seeds=2)
    assert report.culprit.mechanism == "overflow"
    assert "the batch itself, inputs or targets, goes up to" in report.culprit.evidence


class Canvas(nn.Module):
    """Writes features back onto a canvas in the type of its input."""

    def __init__(self):
        super().__init__()
        self.point, self.head = nn.Linear(1, 2), nn.Linear(128, 10)

    def forward(self, x):
        x = x.flatten(1)
        canvas = torch.zeros(*x.shape, 2, dtype=x.dtype)
        canvas[x > 0.2] = self.point(x[x > 0.2][:, None])
        return self.head(canvas.flatten(1))


def test_tensors_of_two_dtypes_are_cured_at_the_line_where_they_meet(digits_training):
    report = check(digits_training(model=Canvas, epochs=1), precision="bf16-mixed", seeds=3)
    assert report.culprit.mechanism == "unsupported-op"
    assert (report.cure.kind, report.cure.verified) == ("upcast", True)
    assert report.culprit.source in report.cure.description


def normed(model, batch):
    """A step of the user's own that divides by a number which float16 rounds to zero."""
    x, y = batch
    z = model(x)
    small = z.square().mean().detach()
    return nn.functional.cross_entropy(z, y) * (small * 1e-9) / (small * 1e-9)


def test_a_line_of_the_users_own_step_is_cured_there(digits_training):
    given = {"loss": None, "training_step": normed, "epochs": 1}
    report = check(digits_training(**given), precision="16-true", seeds=3)
    assert (report.culprit.module, report.culprit.operation) == ("<loss>", "div")
    assert (report.cure.kind, report.cure.verified) == ("upcast", True)
    assert report.culprit.source in report.cure.description


def counted(model, batch):
    """A step of the user's own that writes 16-bit scores into a float32 canvas, on two lines."""
    x, y = batch
    z = model(x)
    for_right, for_all = torch.zeros(10), torch.zeros(10)
    for_right.index_add_(0, y, z.gather(1, y[:, None]).squeeze(1))
    for_all.index_add_(0, y, z.exp().sum(-1).log().to(z.dtype))
    return (for_all - for_right).sum() / len(y)


def test_dtypes_that_meet_on_several_lines_are_cured_on_all_of_them(digits_training):
    given = {"loss": None, "training_step": counted, "epochs": 1}
    report = check(digits_training(**given), precision="bf16-mixed", seeds=3)
    assert (report.culprit.module, report.culprit.variant) == ("<loss>", "mixed dtypes")
    assert (report.cure.kind, report.cure.verified) == ("upcast", True)
    assert "wherever else" in report.cure.description


class Growing(nn.Module):
    """Keeps a number that grows with every step, and leaves float16 in the middle of an epoch."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(64, 10)
        self.register_buffer("kept", torch.tensor(1.0))

    def forward(self, x):
        if self.training:
            self.kept.mul_(1.5)
        return self.line(x.flatten(1))


def test_a_buffer_that_is_lost_within_an_epoch_is_named(digits_training):
    model = lambda: nn.Sequential(Growing())  # noqa: E731
    report = check(digits_training(model=model, epochs=6), precision="16-true", seeds=1)
    assert (report.culprit.module, report.culprit.operation) == ("0", "mul")
    assert report.culprit.mechanism == "overflow"


class Stepped(nn.Module):
    """Counts batches in a buffer that is cast with the model: to 256 in bfloat16."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(64, 10)
        self.register_buffer("step", torch.tensor(250.0))

    def forward(self, x):
        return self.line(x.flatten(1))


def coarse_at_first(model, batch):
    model.step += 1
    x, y = batch
    return nn.functional.cross_entropy(model(x), y if model.step > 260 else y % 2)


def test_a_buffer_is_not_laid_to_the_optimizer(digits_training, monkeypatch):
    """Mixed precision keeps weights, the optimizer's state and buffers: it tells none of them."""
    silent = GradientFindings("equivalent", "nothing found")
    monkeypatch.setattr("pytest_fp16.training.run.gradient_check", lambda *_: silent)
    subject = digits_training(
        model=Stepped,
        loss=None,
        training_step=coarse_at_first,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.5),
    )
    report = check(subject, precision="bf16-true", seeds=3)
    assert report.verdict == "not equivalent"
    assert (report.culprit.module, report.culprit.operation) == ("", "step")
    assert "keep the buffer step in float32" in report.cure.description


def contrasted(model, batch):
    z = nn.functional.normalize(model(batch[0]), dim=1)
    scores = (z @ z.T * 5).masked_fill(torch.eye(len(z)).bool(), -9e15)
    near = (batch[1][:, None] == batch[1]).float().fill_diagonal_(0)
    return -(scores.log_softmax(1) * near).sum() / near.sum()


def nearest(outputs, labels):
    apart = torch.cdist(outputs.float(), outputs.float()).fill_diagonal_(float("inf"))
    return (labels[apart.argmin(1)] == labels).float()


def test_a_mask_that_does_not_fit_is_cured_by_one_that_does(digits_training):
    subject = digits_training(
        loss=None, training_step=contrasted, task="embedding", metric=nearest, epochs=1
    )
    report = check(subject, precision="16-mixed", seeds=3)
    assert report.culprit.mechanism == "mask-inf"
    assert report.cure.kind == "mask constant"
    assert report.cure.verified
    assert "torch.finfo(x.dtype).min" in report.cure.description


def test_so_is_one_in_a_loss_that_is_given(digits_training):
    def loss(z, labels):
        z = nn.functional.normalize(z, dim=1)
        scores = (z @ z.T * 5).masked_fill(torch.eye(len(z)).bool(), -9e15)
        near = (labels[:, None] == labels).float().fill_diagonal_(0)
        return -(scores.log_softmax(1) * near).sum() / near.sum()

    subject = digits_training(loss=loss, task="embedding", metric=nearest, epochs=1)
    report = check(subject, precision="16-true", seeds=3)
    assert (report.culprit.module, report.culprit.mechanism) == ("<loss>", "mask-inf")
    assert (report.cure.kind, report.cure.verified) == ("mask constant", True)


def test_a_run_that_breaks_at_once_leaves_the_default_budget_of_two_32_bit_runs():
    from pytest_fp16.diagnosis.training import _allowed

    score = SimpleNamespace(resolution=0.01)
    runs = SimpleNamespace(settings=Settings())
    pairs = SimpleNamespace(look=None)

    def allowed(*metrics):
        return _allowed(runs, pairs, [SimpleNamespace(metric=m, score=score) for m in metrics])

    assert allowed(0.9) == allowed(0.9, 0.9) == pytest.approx(0.02)
    assert allowed(0.9, 0.8) == pytest.approx(2 * 0.1 / 2**0.5)
    runs.settings = Settings().with_(budget=0.05)
    assert allowed(0.9, 0.8) == 0.05


@pytest.mark.parametrize("without", [True, False])
def test_what_helps_as_well_without_what_it_mends_is_no_cure(monkeypatch, without):
    """A mask in float32 makes float32 of all that it is added to: with rounded values, too."""
    real, control = Amendment(loss_scale=2.0), Amendment(loss_scale=3.0)
    passed = Cure(kind="upcast", description="", verified=True)

    def tried(runs, pairs, one, vain):
        return passed if one.amendment is real or without else None

    monkeypatch.setattr(after, "_tried", tried)
    kept = Proposal("upcast", "keep the buffer", amendment=real, control=control)
    found = after._chosen(None, None, [kept], None, [])
    assert found == (None if without else (kept, passed))
