"""What a model keeps in objects that are no modules: averages, memories, counts."""

import torch
from torch import nn

from pytest_fp16 import Training
from pytest_fp16.engine.gradients.check import gradient_check
from pytest_fp16.engine.untouched import plain_tensors, untouched
from pytest_fp16.precision import precision
from pytest_fp16.settings import Settings


class Average:
    """Weights averaged in an object."""

    def __init__(self, net, rate):
        self.rate, self.steps = rate, 0
        self.kept = {name: p.detach().clone() for name, p in net.named_parameters()}

    @torch.no_grad()
    def update(self, net):
        self.steps += 1
        for name, p in net.named_parameters():
            self.kept[name] = self.kept[name].to(p.dtype).lerp(p, self.rate)


class Averaged(nn.Module):
    def __init__(self, rate):
        super().__init__()
        layers = nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
        self.net = nn.Sequential(nn.Flatten(), *layers)
        self.averages = {"slow": [Average(self.net, rate)]}

    def forward(self, x):
        average = self.averages["slow"][0]
        if self.training:
            average.update(self.net)
            return self.net(x)
        held = {name: t.to(x.dtype) for name, t in average.kept.items()}
        return torch.func.functional_call(self.net, held, (x,))


def test_an_object_is_left_as_it_was():
    model = Averaged(0.5)
    average = model.averages["slow"][0]
    before = {name: t.clone() for name, t in average.kept.items()}
    with untouched(model):
        for p in model.net.parameters():
            p.data.zero_()
        model(torch.ones(2, 64))
        assert average.steps == 1
    assert average.steps == 0
    assert all(torch.equal(average.kept[name], t) for name, t in before.items())


def test_its_tensors_have_names():
    names = set(plain_tensors(nn.Sequential(Averaged(0.5))))
    assert "0.averages[slow][0][kept][1.weight]" in names


def flagged(digits_training, rate):
    given = digits_training(model=lambda: Averaged(rate))
    subject = Training(**{**vars(given), "epochs": 40})
    cpu = torch.device("cpu")
    return gradient_check(subject, precision("bf16-true"), Settings(), cpu)


def test_an_average_that_stands_still_is_found(digits_training):
    found = flagged(digits_training, 2e-3)
    assert found.verdict == "not equivalent"
    assert (found.culprit.module, found.culprit.mechanism) == ("", "absorption")
    assert found.culprit.operation.startswith("averages[slow][0][kept][")


def test_an_average_that_follows_is_no_harm(digits_training):
    assert flagged(digits_training, 0.1).verdict == "equivalent"
