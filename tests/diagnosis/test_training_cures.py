"""What is proposed against a failed training, and that it does what it says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_fp16.diagnosis.training_cures import EPSILONS, proposals
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.precision import PRECISIONS
from pytest_fp16.report.model import Culprit

CPU = torch.device("cpu")


def adam(params):
    return torch.optim.Adam(params, lr=1e-3)


def kinds(subject, precision, module, mechanism, scale=None):
    culprit = Culprit(module=module, operation="", mechanism=mechanism, evidence="")
    model = subject.model()
    return [p.kind for p in proposals(subject, model, PRECISIONS[precision], culprit, scale)]


def test_what_is_proposed_follows_from_the_culprit(digits_training):
    subject = digits_training(optimizer=adam)
    assert kinds(subject, "16-true", "<optimizer>", "eps-underflow")[0] == "optimizer epsilon"
    assert kinds(subject, "16-true", "<loss>", "overflow")[0] == "loss in float32"
    for guarded in ("<loss>", "1"):  # a guard that is lost there is none of the optimizer's
        assert "optimizer epsilon" not in kinds(subject, "16-true", guarded, "eps-underflow")
    assert kinds(subject, "16-true", "1", "underflow", 1024.0)[0] == "loss scale"
    assert kinds(subject, "16-mixed", "1", "overflow") == ["keep_in_float32", "bfloat16"]
    assert kinds(subject, "bf16-true", "1", "precision-loss") == ["keep_in_float32", "mixed"]
    assert "loss scale" not in kinds(subject, "16-mixed", "1", "underflow", 1024.0)


def test_where_nothing_is_known_a_second_moment_may_have_vanished(digits_training):
    subject = digits_training(optimizer=adam)
    for name, wanted in (("16-true", 1), ("bf16-true", 0), ("16-mixed", 0)):
        found = [p.kind for p in proposals(subject, subject.model(), PRECISIONS[name], None, None)]
        assert found.count("optimizer epsilon") == wanted


def test_a_raised_epsilon_leaves_a_sound_one_alone(digits_training):
    def sound(params):
        return torch.optim.Adam(params, lr=1e-3, eps=1e-2)

    found = kinds(digits_training(optimizer=sound), "16-true", "<optimizer>", "absorption")
    assert found == ["mixed", "bfloat16", "bfloat16"]


def culprit_of(module, mechanism="overflow"):
    return Culprit(module=module, operation="", mechanism=mechanism, evidence="")


def first(subject, kind, precision="16-true", culprit=None, scale=None):
    found = proposals(subject, subject.model(), PRECISIONS[precision], culprit, scale)
    return next(p for p in found if p.kind == kind)


def test_an_epsilon_is_raised_where_it_is_smaller(digits_training):
    subject = digits_training(optimizer=adam)
    cure = first(subject, "optimizer epsilon", culprit=culprit_of("<optimizer>"))
    made = adam(list(subject.model().parameters()))
    cure.amendment.optimizer(made)
    assert [g["eps"] for g in made.param_groups] == [EPSILONS[0]]
    assert float(torch.tensor(EPSILONS[0]).half()) > 0
    assert "it is 1e-08" in cure.description


class Own(nn.Module):
    """Brings its own step and optimizer, as a Lightning module does."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 2)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.line(batch[0]), batch[1])

    def configure_optimizers(self):
        return adam(self.parameters())


def test_the_epsilon_of_a_modules_own_optimizer_is_raised(digits_training):
    subject = digits_training(model=Own, optimizer=None, loss=None)
    cure = first(subject, "optimizer epsilon", culprit=culprit_of("<optimizer>"))
    place = Place(CPU, "cuda", emulated=True)
    state = initial_state(subject, 0)
    trainee = Trainee(subject, PRECISIONS["16-true"], 0, state, place, cure.amendment)
    assert trainee.optimizer.param_groups[0]["eps"] == EPSILONS[0]


def test_sgd_has_no_epsilon(digits_training):
    assert "optimizer epsilon" not in kinds(
        digits_training(), "16-true", "<optimizer>", "absorption"
    )


@pytest.mark.parametrize("name", ["16-true", "16-mixed", "bf16-mixed"])
def test_the_loss_is_computed_in_float32(digits_training, name):
    seen = []

    def loss(outputs, targets):
        seen.append((outputs.dtype, targets.dtype, (outputs @ outputs.t()).dtype))
        return nn.functional.cross_entropy(outputs, targets)

    subject = digits_training(loss=loss)
    cure = first(subject, "loss in float32", name, culprit_of("<loss>"))
    place = Place(CPU, "cuda", emulated=True)
    state = initial_state(subject, 0)
    trainee = Trainee(cure.subject, PRECISIONS[name], 0, state, place)
    with trainee.installed():
        trainee.step(subject.train_data[0])
    assert seen == [(torch.float32, torch.int64, torch.float32)]
    said = {
        True: "compute the loss in float32, outside autocast: loss(outputs.float(), targets)",
        False: "compute the loss in float32: loss(outputs.float(), targets), with floating targets "
        "in float32, too",
    }
    assert cure.description == said[PRECISIONS[name].mixed]
    assert not torch.is_autocast_enabled("cuda")


def test_a_step_of_the_users_own_has_no_loss_to_replace(digits_training):
    subject = digits_training(loss=None, training_step=lambda model, batch: model(batch[0]).sum())
    assert "loss in float32" not in kinds(subject, "16-true", "<loss>", "overflow")


def norms():
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8)),
        nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 10)),
    )


def test_a_module_then_all_norms_then_its_parent(digits_training):
    subject = digits_training(model=norms)
    found = proposals(subject, norms(), PRECISIONS["16-true"], culprit_of("1.1"), None)
    kept = [p.modules for p in found if p.kind == "keep_in_float32"]
    assert kept == [["1.1"], ["0.2", "1.1"], ["1"]]
    found = proposals(subject, norms(), PRECISIONS["16-true"], culprit_of("1.0"), None)
    assert [p.modules for p in found if p.kind == "keep_in_float32"] == [["1.0"], ["1"]]
    found = proposals(subject, norms(), PRECISIONS["16-true"], culprit_of("gone"), None)
    assert not [p for p in found if p.kind == "keep_in_float32"]


def test_what_is_kept_computes_in_float32(digits_training):
    subject = digits_training(model=norms)
    cure = first(subject, "keep_in_float32", culprit=culprit_of("1.1"))
    place = Place(CPU, "cuda", emulated=True)
    trainee = Trainee(
        subject, PRECISIONS["16-true"], 0, initial_state(subject, 0), place, cure.amendment
    )
    assert trainee.model[1][1].weight.dtype == torch.float32
    assert trainee.model[1][0].weight.dtype == torch.float16


def test_many_modules_are_counted_not_listed(digits_training):
    def deep():
        return nn.Sequential(nn.Flatten(), *(nn.LayerNorm(64) for _ in range(7)), nn.Linear(64, 10))

    found = proposals(digits_training(), deep(), PRECISIONS["16-true"], culprit_of("3"), None)
    said = [p.description for p in found if p.kind == "keep_in_float32"]
    assert "1, 2, 3, 4 and 3 more" in said[1]


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("16-true", ["16-mixed", "bf16-true", "bf16-mixed"]),
        ("bf16-true", ["bf16-mixed"]),
        ("16-mixed", ["bf16-mixed"]),
        ("bf16-mixed", []),
    ],
)
def test_other_precisions_come_last_and_range_first_where_it_is_lost(digits_training, name, others):
    subject = digits_training()

    def named(mechanism):
        found = proposals(
            subject, subject.model(), PRECISIONS[name], culprit_of("1", mechanism), None
        )
        return [p.precision.name for p in found if p.precision is not None]

    assert named("absorption") == others
    assert named("overflow") == [*others[:2][::-1], *others[2:]]


class Shared(torch.optim.Optimizer):
    """Two optimizers in one, each with parameters of its own."""

    def __init__(self, params):
        params = list(params)
        super().__init__(params, {})
        self.both = [torch.optim.Adam(params[:2]), torch.optim.Adam(params[2:])]

    def step(self, closure=None):
        for one in self.both:
            one.step()


def test_an_optimizer_that_shares_parameters_out_by_their_number(digits_training):
    subject = digits_training(optimizer=Shared)
    assert kinds(subject, "16-true", "<optimizer>", "eps-underflow") == [
        "float32 copies",
        "mixed",
        "bfloat16",
        "bfloat16",
    ]


@pytest.mark.parametrize(
    ("module", "line", "tried"),
    [
        ("", "net.py:3", True),
        ("1.0", "net.py:3", True),
        ("", None, False),
        ("<loss>", "a.py:1", False),
    ],
)
def test_the_line_of_a_model_is_tried_in_float32(digits_training, module, line, tried):
    culprit = culprit_of(module).model_copy(update={"source": line, "operation": "mul"})
    found = list(proposals(digits_training(), norms(), PRECISIONS["16-true"], culprit, None))
    said = [p.description for p in found if p.kind == "upcast"]
    assert bool(said) is tried
    if tried:
        assert said[0].startswith("compute all of net.py:3 in float32, from what the line")


@pytest.mark.parametrize(("line", "tried"), [("net.py:3", True), (None, False)])
def test_the_line_of_a_training_step_is_tried_in_float32(digits_training, line, tried):
    subject = digits_training(loss=None, training_step=lambda model, batch: model(batch[0]).sum())
    culprit = culprit_of("<loss>").model_copy(update={"source": line, "operation": "div"})
    found = list(proposals(subject, norms(), PRECISIONS["16-true"], culprit, None))
    said = [p.description for p in found if p.kind == "upcast"]
    assert bool(said) is tried
    if tried:
        assert said[0].startswith("compute all of net.py:3 in float32, from what the line")


@pytest.mark.parametrize(("precision", "tried"), [("16-true", 2), ("16-mixed", 3)])
def test_where_dtypes_meet_more_than_the_line_is_tried(digits_training, precision, tried):
    known = {"source": "net.py:3", "operation": "", "variant": "mixed dtypes"}
    culprit = culprit_of("").model_copy(update=known)
    found = proposals(digits_training(), norms(), PRECISIONS[precision], culprit, None)
    said = [p.description for p in found if p.kind == "upcast"]
    assert ["dtypes meet" in text for text in said] == [True, False, True][:tried]
    assert all("included, and so wherever else tensors of two" in text for text in said[2:])
    assert said[0] == (
        "bring the tensors that meet there to one dtype at net.py:3 and wherever else tensors of "
        "two dtypes meet: the wider one to that of the other, x.to(y.dtype)"
    )


def test_so_is_that_of_a_lightning_modules_own_step(digits_training):
    class Own(nn.Linear):
        def training_step(self, batch):
            return (self(batch) * 1e5).sum()

    file, number = __file__, Own.training_step.__code__.co_firstlineno + 1
    culprit = culprit_of("<loss>").model_copy(update={"source": f"{file}:{number}"})
    subject = digits_training(loss=None, optimizer=None)
    found = list(proposals(subject, Own(4, 2), PRECISIONS["16-true"], culprit, None))
    (line,) = [p for p in found if p.kind == "upcast"]
    model, x = Own(4, 2).half(), torch.ones(3, 4).half()
    with torch.no_grad():
        model.weight.fill_(1.0)
        assert not bool(model.training_step(x).isfinite())
        assert bool(line.amendment.model(model).training_step(x).isfinite())


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_no_line_of_a_script_is_tried(digits_training):
    culprit = culprit_of("").model_copy(update={"source": "net.py:3"})
    scripted = torch.jit.script(norms())
    found = proposals(digits_training(), scripted, PRECISIONS["16-true"], culprit, None)
    assert not [p for p in found if p.kind == "upcast"]


class ByHand(torch.optim.SGD):
    """Torch's, under a name of the user's own."""


def test_an_optimizer_by_hand_may_step_float32_copies(digits_training):
    subject = digits_training(optimizer=lambda params: ByHand(params, lr=1e-3))
    found = kinds(subject, "bf16-true", "<optimizer>", "absorption")
    assert found == ["float32 copies", "mixed"]
    assert "float32 copies" not in kinds(subject, "bf16-true", "<loss>", "absorption")
    assert "float32 copies" not in kinds(subject, "bf16-mixed", "<optimizer>", "absorption")
    known = digits_training(optimizer=adam)
    assert "float32 copies" not in kinds(known, "bf16-true", "<optimizer>", "absorption")


def test_one_that_evaluates_the_loss_keeps_the_weights_as_they_are(digits_training):
    class Asking(torch.optim.SGD):
        def step(self, closure):
            closure()

    subject = digits_training(optimizer=lambda params: Asking(params, lr=1e-3))
    assert "float32 copies" not in kinds(subject, "16-true", "<optimizer>", "absorption")


@pytest.mark.parametrize(
    ("mechanism", "variant", "first"),
    [
        ("unsupported-op", "mixed dtypes", "upcast"),
        ("unsupported-op", None, "upcast"),
        ("overflow", None, "keep_in"),
    ],
)
def test_a_line_comes_before_a_module_where_it_is_enough(
    digits_training, mechanism, variant, first
):
    known = {"source": "net.py:3", "variant": variant}
    culprit = culprit_of("0", mechanism).model_copy(update=known)
    found = proposals(digits_training(), norms(), PRECISIONS["16-true"], culprit, None)
    assert next(iter(found)).kind.startswith(first)
