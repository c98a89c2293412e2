"""Outputs made sure: logits and probabilities, by class and by label, and only what is right."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.check import gradient_check
from pytest_fp16.engine.gradients.probes.confidence import (
    Confidence,
    confidence_of,
    decisions,
    scaling,
)
from pytest_fp16.engine.training.place import Place
from pytest_fp16.engine.training.trainee import Trainee, initial_state
from pytest_fp16.precision import REFERENCE, precision
from pytest_fp16.settings import Settings

CPU = torch.device("cpu")


def points(classes):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, classes, (256,), generator=generator)
    centres = 2.0 * torch.eye(4)[:classes]
    return centres[y] + torch.randn(256, 4, generator=generator), y


def training(tail, loss, classes=3, floating=False):
    x, y = points(classes)
    outputs = 1 if floating else classes
    last = [nn.Flatten(0)] if floating else []
    target = y.float() if floating else y
    data = list(zip(x.split(16), target.split(16), strict=True))
    return Training(
        model=lambda: nn.Sequential(
            nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, outputs), *last, *tail
        ),
        optimizer=partial(torch.optim.SGD, lr=0.02, momentum=0.9),
        loss=loss,
        train_data=data,
        eval_data=data,
        epochs=3,
    )


def nll(p, y):
    return -torch.log(p.gather(1, y[:, None]) + 1e-6).mean()


@pytest.mark.parametrize(
    ("subject", "kind"),
    [
        (training([], F.cross_entropy), None),
        (training([nn.Softmax(1)], nll), "together"),
        (training([nn.Sigmoid()], F.binary_cross_entropy, 2, True), "each"),
        (training([], F.binary_cross_entropy_with_logits, 2, True), None),
    ],
)
def test_what_is_right_becomes_sure_and_what_is_wrong_stays(subject, kind):
    trainee = Trainee(subject, REFERENCE, 0, initial_state(subject, 0), Place(CPU, "cuda"))
    for batch in subject.train_data:
        trainee.step(batch)
    x, y = subject.train_data[0]
    sure = confidence_of(trainee, (x, y))
    assert sure.probabilities == kind
    before = trainee.model(x).detach()
    after = scaling(sure)(None, None, before)
    decided = (before > (0.5 if kind else 0)).float() if y.is_floating_point() else before.argmax(1)
    right = decided == y
    assert right.any()
    assert torch.allclose(after[~right], before[~right], atol=1e-6)
    was, now = (chance_of_right(t, y, kind) for t in (before, after))
    assert bool((now[right] >= was[right]).all())
    assert float(now[right].max()) > 1 - 1e-6
    if kind is not None:
        assert bool(((after >= 0) & (after <= 1)).all())


def chance_of_right(outputs, y, kind):
    if y.is_floating_point():
        p = outputs if kind else torch.sigmoid(outputs)
        return torch.where(y > 0.5, p, 1 - p)
    p = outputs if kind else torch.softmax(outputs, 1)
    return p.gather(1, y[:, None])[:, 0]


def test_a_probability_keeps_its_slope():
    """Else the way from logits, flat where a model is sure, would hide the slope of the loss."""
    p = torch.tensor([[0.7, 0.3]], requires_grad=True)
    sure = scaling(Confidence(torch.full((1, 1), 40.0), "together", 1))(None, None, p)
    sure.sum().backward()
    assert float(sure[0, 0].detach()) > 1 - 1e-6
    assert p.grad.tolist() == [[1.0, 1.0]]


def check(name, subject):
    return gradient_check(subject, precision(name), Settings(), CPU)


def test_binary_cross_entropy_of_a_sure_model_has_no_slope_in_float16():
    """The guard of 1e-12 inside the kernel is zero in float16: 0/0 where a probability is one."""
    subject = training([nn.Sigmoid()], F.binary_cross_entropy, 2, True)
    found = check("16-true", subject)
    assert found.verdict == "not equivalent"
    assert found.culprit.operation == "binary_cross_entropy_backward"
    assert found.culprit.mechanism == "eps-underflow"
    assert check("bf16-true", subject).verdict == "equivalent"


def test_a_logarithm_of_probabilities_is_safe_with_an_epsilon_that_the_format_holds():
    subject = training([nn.Softmax(1)], nll)
    assert check("16-true", subject).verdict == "equivalent"


def slope_at_a_bound_that_is_rounded():
    """What a clamp lets through there; none from torch 2.14 on."""
    p = torch.ones(1).half().requires_grad_()
    p.clamp(max=1 - 1e-6).sum().backward()
    return float(p.grad)


def test_one_minus_a_probability_by_hand():
    """As torch itself: infinite behind a bound of one, unless the clamp has no slope there."""

    def loss(p, y):
        t = F.one_hot(y, 3).to(p.dtype)
        return -(t * torch.log(p + 1e-4) + (1 - t) * torch.log(1 - p.clamp(max=1 - 1e-6))).mean()

    subject = training([nn.Softmax(1)], loss)
    found = check("16-true", subject)
    if slope_at_a_bound_that_is_rounded():
        assert (found.verdict, found.culprit.mechanism) == ("not equivalent", "eps-underflow")
        assert "confident" in found.reason
    else:
        assert found.verdict == "equivalent"


@pytest.mark.parametrize(
    ("logits", "targets", "shape"),
    [
        ((6, 3), (6,), (6, 1)),
        ((2, 3, 4, 5), (2, 4, 5), (2, 1, 4, 5)),
        ((2, 7, 3), (2, 7), (2, 7, 1)),
    ],
)
def test_decisions_of_each_layout(logits, targets, shape):
    z, y = torch.randn(logits, generator=torch.Generator().manual_seed(0)), torch.zeros(targets)
    margins, right = decisions(z, y.long())
    assert margins.shape == right.shape == shape
    classes = 1 if logits == (2, 3, 4, 5) else -1
    rest = z.narrow(classes, 1, 2).amax(classes, keepdim=True)
    assert torch.equal(right, z.narrow(classes, 0, 1) > rest)
    sure = Confidence(torch.where(right, 5.0, 1.0), classes=classes)
    scaled = scaling(sure)(None, None, z)
    behind, still = (t.amax(classes, keepdim=True) - t for t in (scaled, z))
    torch.testing.assert_close(behind, torch.where(right, 5 * still, still))


def test_a_wrong_class_does_not_grow_with_the_right_one():
    z = torch.tensor([[3.0, 1.0, -1.0], [2.0, -1.0, -2.0], [-1.0, -2.0, -4.0]])
    sure = Confidence(torch.full((3, 1), 2.0)).applied(z)
    assert sure.tolist() == [[5.0, 1.0, -3.0], [4.0, -2.0, -4.0], [-1.0, -3.0, -7.0]]
    one = torch.tensor([[3.0], [-2.0]])
    assert Confidence(torch.full((2, 1), 2.0)).applied(one).tolist() == [[6.0], [-4.0]]


def test_decisions_of_many_labels_and_of_none():
    z = torch.tensor([[2.0, -1.0], [-0.5, 3.0]])
    margins, right = decisions(z, torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    assert torch.equal(margins, z.abs())
    assert right.tolist() == [[True, False], [True, True]]
    assert decisions(z, torch.zeros(2, 5)) == (None, None)


def masked(z, never=-1e4):
    return torch.cat([z, torch.full_like(z[:, :1], never)], -1)


def test_a_masked_class_keeps_its_distance():
    z = masked(torch.tensor([[3.0, 1.0], [1.0, 2.0]]))
    sure = Confidence(torch.tensor([[10.0], [20.0]])).applied(z)
    assert sure.tolist() == [[21.0, 1.0, -9982.0], [1.0, 21.0, -9981.0]]
    assert Confidence(torch.tensor([[10.0]])).applied(masked(z, -float("inf"))).isinf().sum() == 2


class Masked(nn.Linear):
    def forward(self, x):
        return masked(super().forward(x))


def test_a_mask_that_the_format_holds_is_no_failure():
    def entropy(z, y):
        log = F.log_softmax(z, -1)
        return F.nll_loss(log, y) + 0.01 * (log.exp() * log).sum(-1).mean()

    subject = replace(training([], entropy), model=lambda: Masked(4, 3))
    for name in ("16-true", "16-mixed"):
        found = gradient_check(subject, precision(name), Settings(), CPU)
        assert found.verdict == "equivalent", found.reason


def test_no_class_is_thrown_further_than_a_trained_classifier_throws_it():
    """A close decision takes a large factor, which would empty exp() in float32, too."""
    logits = torch.tensor([[0.5, 0.0, -8.0, -30.0]], requires_grad=True)
    sure = scaling(Confidence(torch.full((1, 1), 40.0), classes=1))(None, None, logits)
    best = float(sure[0, 0].detach())
    assert (best - sure.detach()[0]).tolist() == [0.0, 20.0, 40.0, 30.5]
    sure.sum().backward()
    assert bool((logits.grad > 0).all())  # the slope of each stays
