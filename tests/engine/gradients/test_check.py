"""The gradient check on small real trainings: what it flags, where, and what it must not."""

import json
import linecache
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.check import _Check, gradient_check
from pytest_fp16.engine.gradients.probes.course import Course
from pytest_fp16.engine.gradients.rules.buffer_rules import STATISTIC_DISTANCE
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.training.order import step_seed
from pytest_fp16.engine.training.place import Place
from pytest_fp16.errors import DataError
from pytest_fp16.precision import precision
from pytest_fp16.settings import Settings

CPU = torch.device("cpu")
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def points(count=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (count,), generator=generator)
    centres = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 2.0, 0]])
    return centres[y] + torch.randn(count, 4, generator=generator), y


def net(*tail):
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3), *tail)


def training(**changes):
    x, y = points()
    data = list(zip(x.split(16), y.split(16), strict=True))
    given = {"model": net, "optimizer": SGD, "loss": F.cross_entropy, "epochs": 4}
    return Training(**{**given, "train_data": data, "eval_data": data, **changes})


def check(name, **changes):
    return gradient_check(training(**changes), precision(name), Settings(), CPU)


@pytest.mark.parametrize("name", ["16-true", "bf16-true", "16-mixed", "bf16-mixed"])
def test_healthy(name):
    found = check(name)
    assert found.verdict == "equivalent", found.reason
    assert found.culprit is None
    rho = found.figures["rho"]
    assert 0 < rho < (0.01 if name.startswith("16") else 0.1)
    assert json.loads(json.dumps(found.figures)) == found.figures  # builtins only


def test_rho_grows_with_the_square_of_the_roundoff():
    ratio = check("bf16-mixed").figures["rho"] / check("16-mixed").figures["rho"]
    assert 8 < ratio < 500  # 64 by theory


def test_rho_grows_with_the_batch():
    x, y = points(2048)
    rho = {}
    for size in (8, 128):
        data = list(zip(x.split(size), y.split(size), strict=True))
        found = check("16-true", train_data=data, model=lambda: torch.nn.Linear(4, 3))
        rho[size] = found.figures["points"][0]["rho"]
    assert rho[128] > 2 * rho[8]


def test_adams_epsilon_is_zero_in_float16():
    adam = partial(torch.optim.Adam, lr=1e-3)
    found = check("16-true", optimizer=adam)
    assert found.verdict == "not equivalent"
    assert (found.culprit.module, found.culprit.mechanism) == ("<optimizer>", "eps-underflow")
    assert "1e-08" in found.culprit.evidence
    assert check("bf16-true", optimizer=adam).verdict == "equivalent"
    assert check("16-mixed", optimizer=adam).verdict == "equivalent"


def test_a_loss_that_refuses_what_the_optimizer_lost_is_not_at_fault():
    """As a survival loss that validates its inputs does at the step behind it."""

    def loss(z, y):
        if z.isnan().any():
            raise ValueError("log hazards contain NaN")
        return F.cross_entropy(z, y)

    found = check("16-true", optimizer=partial(torch.optim.Adam, lr=1e-3), loss=loss)
    assert (found.culprit.module, found.culprit.mechanism) == ("<optimizer>", "eps-underflow")


def test_the_optimizer_is_named_whichever_its_implementation():
    """Of lists it writes in place; fused, in float32 inside: its epsilon holds, its state not."""
    adam = partial(torch.optim.Adam, lr=1e-3)
    listed = check("16-true", model=spare, optimizer=partial(adam, foreach=True)).culprit
    assert (listed.module, listed.mechanism) == ("<optimizer>", "eps-underflow")
    fused = partial(adam, fused=True)
    found = check("16-true", optimizer=fused, loss=lambda z, y: F.cross_entropy(z, y) / 100)
    assert (found.culprit.module, found.culprit.operation) == ("<optimizer>", "exp_avg_sq")
    assert found.culprit.mechanism == "underflow"
    assert not any("eps" in note for note in found.notes)


class Spare(nn.Module):
    """A unit that is never active, so that its gradient is zero."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x):
        hidden = torch.relu(self.a(x))
        return self.b(hidden * (torch.arange(16) > 3).to(hidden.dtype))


def spare():
    return Spare()


class OfMatrices(torch.optim.SGD):
    """Like Muon: takes matrices only, and says so with an error of its own."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.dim() != 2:
                    raise ValueError("parameters must be matrices")
        return super().step(closure)


def test_an_optimizer_that_takes_matrices_only():
    def make():
        return nn.Sequential(nn.Linear(4, 16, bias=False), nn.ReLU(), nn.Linear(16, 3, bias=False))

    found = check("16-true", model=make, optimizer=partial(OfMatrices, lr=0.1))
    assert found.verdict == "equivalent", found.reason
    assert "optimizer_gain" not in found.figures


class Following(nn.Module):
    """Keeps an average of what its hidden features and its outputs have in common."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 32), nn.Linear(32, 3)
        self.register_buffer("common", torch.zeros(32, 3))

    def forward(self, x):
        hidden = torch.relu(self.a(x))
        out = self.b(hidden)
        if self.training:
            self.common = (self.common + (hidden.t() @ out / len(x)).detach()) / 2
        return out


def test_an_average_of_features_goes_where_the_weights_go():
    adam = partial(torch.optim.Adam, lr=1e-2, eps=1e-4)
    found = check("16-true", model=Following, optimizer=adam, epochs=8)
    slowest = found.figures["slowest_statistic"]
    assert slowest["name"] == "common"
    assert slowest["lag"] > STATISTIC_DISTANCE  # far off its 32-bit way, and no wonder
    assert found.verdict == "equivalent", found.reason
    assert any("still learn" in note for note in found.notes)


class Shadowed(nn.Module):
    """Keeps an average of its weights in a list, as much follows as `share` says."""

    def __init__(self, wide, late=False, share=5e-4):
        super().__init__()
        self.net, self.wide, self.share, self.shadow = net(), wide, share, None
        if not late:
            self.begin()

    def begin(self):
        self.shadow = [p.detach().clone() for p in self.net.parameters()]

    def forward(self, x):
        if self.training:
            if self.shadow is None:
                self.begin()
            self.hidden = self.net[0](x).detach()  # of this batch: no average
            kept = zip(self.shadow, self.net.parameters(), strict=True)
            wide = [(s.float() if self.wide else s.to(p.dtype), p) for s, p in kept]
            with torch.no_grad():
                self.shadow = [s - self.share * (s - p.to(s.dtype)) for s, p in wide]
        return self.net(x)


@pytest.mark.parametrize("late", [False, True])
def test_an_average_in_a_list_is_followed(late):
    """Half an ulp of bfloat16 is more than a 2000th of the way."""
    narrow = check("bf16-true", model=partial(Shadowed, False, late), epochs=150)
    assert narrow.verdict == "not equivalent"
    assert narrow.culprit.module == ""
    assert narrow.culprit.operation.startswith("shadow[")
    assert narrow.culprit.mechanism == "absorption"
    wide = check("bf16-true", model=partial(Shadowed, True, late), epochs=150)
    assert wide.verdict == "equivalent", wide.reason


class Centred(nn.Module):
    """Keeps the mean of its outputs in float32, and takes it in no other dtype."""

    def __init__(self, late):
        super().__init__()
        self.net, self.centre = net(), None if late else torch.zeros(3)

    def forward(self, x):
        out = self.net(x)
        if self.training:
            mean = out.detach().float().mean(0)
            first = self.centre is None
            self.centre = mean if first else torch.lerp(self.centre, mean, 0.1)
        return out.float() - self.centre


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", ["16-true", "bf16-true", "16-mixed"])
def test_a_mean_that_the_program_keeps_in_float32_stays_so(name, late):
    found = check(name, model=partial(Centred, late))
    assert found.verdict == "equivalent", found.reason


def test_a_tiny_loss_underflows_and_a_scale_would_save_it():
    found = check(
        "16-true", loss=lambda z, y: F.cross_entropy(z, y) * 1e-7, optimizer=partial(SGD, lr=1e6)
    )
    assert (found.culprit.module, found.culprit.mechanism) == ("<loss>", "underflow")
    assert found.loss_scale >= 2**8


def test_the_loss_overflows():
    x, y = points()
    data = [(a, b.float()[:, None] * 400) for a, b in zip(x.split(16), y.split(16), strict=True)]
    found = check(
        "16-true",
        model=lambda: nn.Linear(4, 1),
        loss=lambda z, t: (z - t).square().mean().sqrt(),
        train_data=data,
    )
    assert (found.culprit.module, found.culprit.mechanism) == ("<loss>", "overflow")


def test_a_logarithm_that_fails_only_when_the_model_is_sure():
    def loss(z, y):
        p, t = torch.sigmoid(z), F.one_hot(y, 3).to(z.dtype)
        return -(t * torch.log(p + 1e-12) + (1 - t) * torch.log(1 - p + 1e-12)).mean()

    found = check("16-true", loss=loss, optimizer=partial(SGD, lr=0.01))
    assert (found.culprit.module, found.culprit.mechanism) == ("<loss>", "eps-underflow")
    assert "confident" in found.reason


def test_what_the_model_has_wrong_is_not_made_sure():
    """No training makes a model sure of its mistakes: log(p of the true class) is safe here."""

    def loss(z, y):
        return -torch.log(torch.softmax(z, -1).gather(-1, y[:, None]) + 1e-8).mean()

    x, y = points()
    y[::8] = (y[::8] + 1) % 3  # mistakes there will be
    data = list(zip(x.split(16), y.split(16), strict=True))
    found = check("16-true", loss=loss, train_data=data, epochs=2)
    assert found.verdict == "equivalent", found.reason


def test_overflow_inside_a_module_is_named():
    class Square(nn.Module):
        def forward(self, x):
            return x * 300 * x / 300

    found = check(
        "16-true",
        model=lambda: nn.Sequential(nn.Linear(4, 16), Square(), nn.Linear(16, 3)),
        train_data=[(a * 100, b) for a, b in training().train_data],
    )
    assert found.verdict == "not equivalent"
    assert found.culprit.module == "1"


def test_mask_constant():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = net()

        def forward(self, x):
            return self.body(x).masked_fill(torch.zeros(len(x), 3, dtype=torch.bool), -1e9)

    for name in ("16-true", "16-mixed"):
        found = check(name, model=lambda: nn.Sequential(Masked()))
        assert (found.verdict, found.culprit.mechanism) == ("not equivalent", "mask-inf")
        assert found.culprit.module == "0"
    assert check("bf16-true", model=Masked).verdict == "equivalent"


def test_running_statistics_that_stop():
    def make(momentum):
        return lambda: nn.Sequential(nn.BatchNorm1d(4, momentum=momentum), net())

    small = [(a * 0.05, b) for a, b in training().train_data]
    found = check("bf16-true", model=make(0.003), train_data=small, epochs=60)
    assert found.culprit.module == "0"
    assert found.culprit.operation == "running_var"
    assert found.culprit.mechanism == "absorption"
    assert check("bf16-true", model=make(0.1), train_data=small, epochs=60).verdict == "equivalent"
    assert (
        check("bf16-mixed", model=make(0.003), train_data=small, epochs=60).verdict == "equivalent"
    )


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_a_running_variance_that_leaves_the_range_after_the_first_steps():
    """It comes near that of the batches, above 65504 in some channels, after some twenty steps."""

    def make():
        return nn.Sequential(Times(210.0), nn.BatchNorm1d(4, momentum=0.03), net())

    found = check("16-true", model=make, epochs=20)
    assert found.verdict == "not equivalent"
    culprit = found.culprit
    assert (culprit.module, culprit.operation) == ("1", "running_var")
    assert culprit.mechanism == "overflow"
    for name in ("bf16-true", "16-mixed"):
        assert check(name, model=make, epochs=20).verdict == "equivalent"


class Large(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.body = nn.Parameter(torch.full((4,), 2e5)), net()

    def forward(self, x):
        return self.body(x * 1e-5 * self.scale)


def test_a_weight_that_the_format_cannot_hold_is_named():
    found = check("16-true", model=lambda: nn.Sequential(Large()))
    assert (found.culprit.module, found.culprit.operation) == ("0", "scale")
    assert found.culprit.mechanism == "overflow"
    assert check("16-mixed", model=Large).verdict == "equivalent"


def test_weights_that_go_another_way_freeze_no_statistic():
    """Adam's second moment is zero in float16 for small gradients: steps are long, none is lost."""

    def make():
        return nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))

    adam = partial(torch.optim.AdamW, lr=1e-2, eps=1e-4)
    found = check("16-true", model=make, optimizer=adam)
    assert "average" not in found.reason, found.reason
    assert "slowest_statistic" not in found.figures  # running statistics have a run of their own


def test_updates_below_half_an_ulp():
    slow = partial(torch.optim.SGD, lr=2e-4)
    found = check("bf16-true", optimizer=slow, epochs=30)
    assert (found.culprit.module, found.culprit.mechanism) == ("<optimizer>", "absorption")
    assert check("bf16-mixed", optimizer=slow, epochs=30).verdict == "equivalent"


def test_frozen_second_moment():
    class Stream:
        def __init__(self, parts):
            self.parts = parts

        def __len__(self):
            return len(self.parts)

        def __getitem__(self, i):
            return self.parts[i]

    first, *rest = training().train_data
    data = Stream([(first[0] * 3000, first[1]), *(rest * 100)])
    adam = partial(torch.optim.Adam, lr=2e-3, betas=(0.9, 0.997))
    found = check("bf16-true", train_data=data, optimizer=adam, epochs=1)
    assert found.verdict == "not equivalent"
    assert (found.culprit.module, found.culprit.operation) == ("<optimizer>", "exp_avg_sq")


def test_a_bias_before_a_normalisation_is_no_culprit():
    found = check(
        "16-true",
        model=lambda: nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)
        ),
    )
    assert found.verdict == "equivalent", found.reason
    assert any("zero but for rounding: 0.bias" in n or "0.bias" in n for n in found.notes)


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulate": 2, "clip_grad_norm": 0.5},
        {"training_step": lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])},
        {"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1), "scheduler_step": "step"},
        {"model": lambda: net(nn.Dropout(0.2))},
        {"optimizer": lambda p: torch.optim.LBFGS(p, lr=0.1)},
    ],
    ids=["accumulate and clip", "training_step", "scheduler", "dropout", "closure"],
)
def test_every_kind_of_training_can_be_checked(changes):
    assert check("bf16-true", **changes).verdict == "equivalent"


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(30, 8, sparse=True), nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.words(ids).mean(1))


class Recomputed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.last(checkpoint(self.first, x, use_reentrant=False).relu())


class Answer(dict):
    """Outputs as libraries of transformers give them: a dictionary with attributes."""

    __getattr__ = dict.__getitem__


def test_a_loss_that_reads_attributes_of_the_outputs():
    class Answering(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return Answer(logits=self.net(x))

    found = check("16-true", model=Answering, loss=lambda out, y: F.cross_entropy(out.logits, y))
    assert found.verdict == "equivalent", found.reason


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(30, 8), nn.Linear(8, 30, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids):
        return self.head(self.words(ids))


def test_a_tied_weight_is_no_running_average():
    """Under its second name it is a weight as under its first: far ways are no lost average."""
    ids = torch.randint(0, 30, (64, 6), generator=torch.Generator().manual_seed(0))
    data = list(zip(ids.split(16), ids.roll(1, 1).split(16), strict=True))
    parts = {"model": Tied, "train_data": data, "eval_data": data}
    parts["loss"] = lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten())
    adam = partial(torch.optim.AdamW, lr=1e-2, eps=1e-4)
    found = check("16-true", **parts, optimizer=adam)
    assert "average" not in found.reason
    assert "slowest_statistic" not in found.figures


@pytest.mark.parametrize("name", ["16-true", "bf16-mixed", "16-mixed"])
def test_sparse_gradients_are_compared_as_others_are(name):
    ids = torch.randint(0, 30, (128, 5), generator=torch.Generator().manual_seed(0))
    data = list(zip(ids.split(16), (ids[:, 0] // 10).split(16), strict=True))
    parts = {"model": Words, "train_data": data, "eval_data": data}
    found = check(name, **parts, optimizer=partial(torch.optim.SGD, lr=0.5))
    assert found.verdict == "equivalent", found.reason
    assert 0 < found.figures["rho"] < 0.1


@pytest.mark.parametrize("name", ["16-true", "bf16-mixed", "16-mixed"])
def test_values_that_are_computed_again(name):
    found = check(name, model=Recomputed)
    assert found.verdict == "equivalent", found.reason


def test_one_batch_of_one_epoch_is_enough():
    found = check("16-true", train_data=training().train_data[:1], epochs=1)
    assert found.verdict == "equivalent"


def test_a_loader_without_a_length_can_be_checked():
    class Batches:
        def __iter__(self):
            return iter(training().train_data)

    assert check("bf16-true", train_data=Batches()).verdict == "equivalent"


def test_nothing_of_the_callers_is_changed():
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check("16-true", model=model)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_same_answer_twice():
    first, second = check("16-true"), check("16-true")
    assert first == second


def test_no_batches():
    with pytest.raises(DataError, match="no batches"):
        check("16-true", train_data=[])


def test_an_error_of_the_users_own_is_raised():
    def broken(z, y):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        check("16-true", loss=broken)


def test_an_error_of_the_users_own_backward_pass_is_raised():
    def model():
        made = net()
        made[0].weight.register_hook(lambda g: g.reshape(1))
        return made

    with pytest.raises(RuntimeError, match="invalid for input of size"):
        check("16-true", model=model)


def test_an_error_has_the_line_that_raised_it():
    def loss(z, y):
        return F.cross_entropy(z.masked_fill(z < -50, -1e9), y)

    culprit = check("16-true", loss=loss).culprit
    assert (culprit.module, culprit.mechanism) == ("<loss>", "mask-inf")
    name, _, number = culprit.source.rpartition(":")
    assert "masked_fill" in linecache.getline(name, int(number))


def test_a_users_step_that_divides_by_zero_is_not_blamed_on_the_epsilon_alone():
    class Sophia(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 1e-3, "eps": 1e-8})

        @torch.no_grad()
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                p.sub_(1e-3 * (p.grad * 0 / (p.grad * 0).clamp(min=1e-15)))

    found = check("16-true", optimizer=Sophia)
    assert found.culprit.module == "<optimizer>"
    assert "a divisor" in found.reason
    assert "eps 1e-08 is zero in float16" in found.reason


def test_a_sum_that_leaves_the_range_and_returns_is_a_note(digits):
    (x, _), _ = digits
    data = [(part, 16 * part.flatten(1)) for part in x.split(64)]
    subject = Training(
        model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 64)),
        optimizer=partial(torch.optim.SGD, lr=1e-5, momentum=0.9),
        loss=partial(F.mse_loss, reduction="sum"),
        train_data=data,
        eval_data=data,
        epochs=20,
        task="regression",
    )
    found = gradient_check(subject, precision("16-true"), Settings(), CPU)
    assert found.verdict == "equivalent", found.reason
    assert any("loss is infinite in 16 bits after 0" in note for note in found.notes)


@pytest.mark.parametrize(("epochs", "verdict"), [(60, "equivalent"), (3, "not equivalent")])
def test_a_sum_that_returns_late_is_followed_down(epochs, verdict):
    """It falls by a hundredth a step, from four times what float16 holds."""
    x = torch.ones(64, 1)
    x[::2] = -1.0  # a constant learns nothing of it
    data = [(x, 65.0 * x)] * 8
    subject = Training(
        model=lambda: nn.Linear(1, 1, bias=False),
        optimizer=partial(torch.optim.SGD, lr=4e-5),
        loss=partial(F.mse_loss, reduction="sum"),
        train_data=data,
        eval_data=data,
        epochs=epochs,
        task="regression",
    )
    found = gradient_check(subject, precision("16-true"), Settings(), CPU)
    assert found.verdict == verdict, found.reason


def pulled(x, y, epochs, **sgd):
    """A number that is pulled to some others, of which a few are far."""
    subject = Training(
        model=lambda: nn.Linear(1, 1, bias=False),
        optimizer=partial(torch.optim.SGD, **sgd),
        loss=F.mse_loss,
        train_data=[(x, y)] * 8,
        eval_data=[(x, y)],
        epochs=epochs,
        task="regression",
    )
    return gradient_check(subject, precision("16-true"), Settings(), CPU)


@pytest.mark.parametrize(("epochs", "verdict"), [(30, "equivalent"), (3, "not equivalent")])
def test_squares_that_return_late_are_followed_down(epochs, verdict):
    """Their mean was never beyond the range; the largest of them is, at four times the mean."""
    x, y = torch.ones(64, 1), torch.full((64, 1), 100.0)
    y[:4] = 320.0
    x[::2], y[::2] = -x[::2], -y[::2]  # a constant learns nothing of it
    found = pulled(x, y, epochs, lr=1e-3)
    assert found.verdict == verdict, found.reason


@pytest.mark.parametrize(("far", "verdict"), [(320.0, "equivalent"), (420.0, "not equivalent")])
def test_squares_are_finite_once_the_mean_of_the_targets_is_learned(far, verdict):
    """Slowly at first, as momentum gathers; a few of the targets lie far from their mean."""
    x, y = torch.ones(64, 1), torch.full((64, 1), 100.0)
    y[:4] = far
    found = pulled(x, y, epochs=25, lr=2e-5, momentum=0.9)
    assert found.verdict == verdict, found.reason


def test_a_loss_that_stays_beyond_the_range_is_none(digits_training):
    subject = digits_training(loss=lambda outputs, _: (outputs - 300).square().mean() / 1e5)
    found = gradient_check(subject, precision("16-true"), Settings(), CPU)
    assert "the loss is not finite" in found.reason
    assert found.culprit.mechanism == "overflow"


@pytest.mark.parametrize("nothing", [lambda: None, lambda: torch.zeros((), requires_grad=True)])
def test_batches_that_are_skipped_for_their_loss_are_laid_to_what_makes_it_infinite(nothing):
    def step(model, batch):
        x, y = batch
        loss = F.cross_entropy(model(x), y) + (300 * model(x)[:, 0]).square().sum() / 1e6
        return loss if torch.isfinite(loss) else nothing()

    found = check("16-true", loss=None, training_step=step)
    assert found.verdict == "not equivalent"
    assert "the loss has no gradient" in found.reason
    assert (found.culprit.module, found.culprit.mechanism) == ("<loss>", "overflow")
    assert "test_check.py" in found.culprit.source
    assert check("bf16-true", loss=None, training_step=step).verdict == "equivalent"


def test_an_infinity_that_a_quotient_swallows_is_named():
    def loss(outputs, targets):
        far = outputs[:, 0] + 300
        return (F.cross_entropy(outputs, targets, reduction="none") * 9e4 / (far * far)).mean()

    found = check("16-mixed", loss=loss)
    assert found.verdict == "not equivalent"
    assert (found.culprit.module, found.culprit.operation) == ("<loss>", "mul")
    assert found.culprit.mechanism == "overflow"
    assert "test_check.py" in found.culprit.source


def test_the_operation_that_breaks_the_optimizer_in_the_end_is_named():
    def centred(params):
        return torch.optim.RMSprop(params, lr=1e-3, alpha=0.9, eps=1e-3, centered=True)

    x, y = points()
    found = check("bf16-true", train_data=[(x, y)], epochs=200, optimizer=centred)
    assert (found.culprit.module, found.culprit.operation) == ("<optimizer>", "sqrt")
    assert found.culprit.mechanism == "cancellation"
    assert found.culprit.source is None  # torch's own line is no line of the user's


def clamped():
    model = net()
    for p in model.parameters():
        p.register_hook(lambda g: g.clamp(-0.1, 0.1))
    return model


def test_hooks_that_clamp_gradients_while_they_are_scaled():
    found = check("16-mixed", model=clamped)
    assert found.verdict == "not equivalent"
    assert "while it is scaled" in found.culprit.evidence
    for name in ("16-true", "bf16-mixed"):
        assert check(name, model=clamped).verdict == "equivalent"


class Clipped(torch.optim.SGD):
    """Clips by the length of all gradients, found by hand."""

    @torch.no_grad()
    def step(self, closure=None):
        slopes = [p.grad for group in self.param_groups for p in group["params"]]
        total = sum(slope.square().sum() for slope in slopes).sqrt()
        for slope in slopes:
            slope.mul_((1 / (total + 1e-6)).clamp(max=1))
        super().step()


@pytest.mark.parametrize(("factor", "verdict"), [(2000, "not equivalent"), (1, "equivalent")])
def test_a_length_that_leaves_the_range_in_the_users_own_step(factor, verdict):
    own = partial(Clipped, lr=0.05)
    found = check("16-true", optimizer=own, loss=lambda z, y: factor * F.cross_entropy(z, y))
    assert found.verdict == verdict, found.reason
    if factor > 1:
        assert (found.culprit.module, found.culprit.mechanism) == ("<optimizer>", "overflow")


class Rare(nn.Module):
    """Features by how large an input is that is zero in many a batch."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 16), nn.Linear(16, 3)
        self.register_buffer("last", torch.tensor([[0.0, 0.0, 0.0, 1.0]]))

    def forward(self, x):
        rare = F.linear(x, self.last).relu()
        return self.head(self.body(x).relu() * (1 + rare / (rare.amax() + 1e-8)))


def rare(every):
    """Batches, every so many of them without the rare input."""
    x, y = points(1024)
    parts = [(a.clone(), b) for a, b in zip(x.split(16), y.split(16), strict=True)]
    for a, _ in parts[::every]:
        a[:, 3] = 0
    common = [part for n, part in enumerate(parts) if n % every]
    return {"model": Rare, "train_data": parts, "eval_data": common}


def test_a_guard_with_nothing_beside_it_is_tried_with_that_batch():
    found = check("16-true", **rare(every=9))
    assert found.verdict == "not equivalent"
    assert (found.culprit.operation, found.culprit.mechanism) == ("div", "eps-underflow")


def test_steps_that_a_scaler_skips_are_a_note():
    notes = []
    for first in range(3):  # each has others at its points
        given = rare(every=4)
        given["train_data"] = [*given["train_data"][first:], *given["train_data"][:first]]
        found = check("16-mixed", **given, epochs=1)
        assert found.verdict == "equivalent", found.reason
        notes += found.notes
    assert any("the scaler skips their steps" in note for note in notes)


def stepping():
    """Weights that are stepped as soon as their gradient is there."""
    model = net()
    for p in model.parameters():
        own = torch.optim.SGD([p], lr=0.1)

        def step(_, own=own):
            own.step()
            own.zero_grad()

        p.register_post_accumulate_grad_hook(step)
    return model


def test_gradients_that_are_gone_are_said_not_to_have_been_compared():
    found = check("16-true", model=stepping)
    assert found.verdict == "equivalent"
    assert any("none was compared" in note for note in found.notes)
    assert "none was compared" not in str(check("16-true").notes)


def test_a_policy_whose_actions_are_drawn_is_not_far_off():
    def reinforced(model, batch):
        x, y = batch
        policy = torch.distributions.Categorical(logits=model(x))
        action = policy.sample()
        reward = (action == y).to(x.dtype) - 0.5
        return -(policy.log_prob(action) * reward).mean()

    for name in ("16-mixed", "bf16-mixed"):
        found = check(name, loss=None, training_step=reinforced)
        assert "far off" not in found.reason, found.reason


def test_a_last_step_that_is_skipped_for_what_it_drew_is_watched_with_the_same_draws():
    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 3)

        def forward(self, x):
            unlucky = float(torch.rand(())) == lost
            z = self.last(x)
            return z * 1e7 - z * (1e7 - 1) if unlucky else z

    seed_everything(step_seed(0, 3))  # of the last of the four that are made in both precisions
    lost = float(torch.rand(()))
    subject, name = training(model=Drawing, optimizer=partial(torch.optim.SGD, lr=1e-3)), "16-mixed"
    evidence = _Check(Course(subject), precision(name), Place(CPU)).run()
    assert not math.isfinite(evidence.first_losses[-1][1])
    assert (evidence.stuck.operation, evidence.stuck.mechanism) == ("mul", "overflow")
    assert 0.6 < evidence.weights.gain < 0.9  # three steps of four: watching is none of them


def test_a_loss_that_is_far_off_is_looked_at_longer_and_may_do_no_harm():
    def lifted(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) + 3000 - 3000  # a multiple of 16

    found = check("bf16-true", loss=lifted)
    assert found.verdict == "equivalent", found.reason
    assert any(note.startswith("the loss is far off") for note in found.notes)
    assert any(note.startswith("the model learns nevertheless") for note in found.notes)


class Weighted(nn.Module):
    """Weights by a schedule whose last number is zero in float16."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 3)
        self.register_buffer("alpha", torch.tensor([0.9, 0.5, 0.1, 2.4e-9]), persistent=False)

    def forward(self, x):
        return self.line(x)


def weighted(model, batch):
    alpha = model.alpha[torch.arange(len(batch[0])) % 4]
    ratio = alpha / (1 - alpha)
    losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return (ratio.clamp(max=5) / ratio * losses).mean()


def test_a_schedule_that_ends_in_zero_is_laid_to_its_buffer():
    found = check("16-true", model=Weighted, loss=None, training_step=weighted)
    culprit = found.culprit
    assert (culprit.module, culprit.operation, culprit.mechanism) == ("", "alpha", "underflow")
    assert "2.4e-09, stored in this buffer, is zero in float16" in found.reason
