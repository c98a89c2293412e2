"""Weights that no run moves are held once; everything else is each model's own."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Evaluation, Settings
from pytest_fp16.evaluation.candidates import Candidates
from pytest_fp16.evaluation.run import EvaluationRun

CPU = torch.device("cpu")


class Normalised(nn.Module):
    """Scales its own weights in every pass, as some classifiers of faces do."""

    def __init__(self, write):
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.write = write

    def forward(self, x):
        self.write(self.linear.weight)
        return self.linear(x.flatten(1))


def in_place(weight):
    with torch.no_grad():
        weight.copy_(F.normalize(weight))


def behind_autograd(weight):
    weight.data.copy_(F.normalize(weight.data))


def exchanged(weight):
    weight.data = F.normalize(weight.data)


def candidates(model, data=None):
    made = Candidates(Evaluation(model=model, data=[]), CPU, "cuda")
    if data is not None:
        made.reference.outputs(data, 0)
        made.look()
    return made


def tensors(candidate):
    return [p.data_ptr() for p in candidate.model.parameters()]


@pytest.mark.parametrize("function", [False, True])
@pytest.mark.parametrize("name", ["16-mixed", "bf16-mixed", "32-true"])
def test_what_autocast_casts_is_the_references(make_net, name, function):
    net = make_net(nn.Tanh())
    made = candidates((lambda: copy.deepcopy(net)) if function else net)
    candidate = made.made(name)
    assert tensors(candidate) == tensors(made.reference)
    assert not set(tensors(candidate)) & {p.data_ptr() for p in net.parameters()}


@pytest.mark.parametrize("keep", [{}, {"16-true": ("head",)}])
def test_theory_reads_the_weights_that_the_candidate_reads(make_net, keep):
    made = candidates(make_net(nn.Tanh()))
    made.keep = keep
    candidate = made.made("16-true")
    theory = made.made("16-true", like=candidate)
    assert tensors(theory) == tensors(candidate)
    assert theory.model is not candidate.model
    dtypes = {name: p.dtype for name, p in theory.model.named_parameters()}
    kept = {n for n, dtype in dtypes.items() if dtype == torch.float32}
    assert kept == ({"head.weight", "head.bias"} if keep else set())
    assert all(p.dtype == torch.float32 for p in made.reference.model.parameters())


def test_buffers_are_each_models_own():
    made = candidates(nn.BatchNorm1d(64), torch.randn(8, 64))
    one, other = made.made("16-mixed"), made.made("16-mixed")
    places = [m.model.running_mean.data_ptr() for m in (made.reference, one, other)]
    assert len(set(places)) == 3


@pytest.mark.parametrize("write", [in_place, behind_autograd, exchanged])
def test_a_model_that_writes_to_its_weights_has_its_own(write, digits):
    made = candidates(Normalised(write), digits[1][0][:8])
    candidate = made.made("16-mixed")
    assert not set(tensors(candidate)) & set(tensors(made.reference))
    assert not set(tensors(made.made("16-mixed", like=candidate))) & set(tensors(candidate))


class Follows(nn.Module):
    """Its head is cast to whatever comes in; or, made in float64, what comes in is cast to it."""

    def __init__(self, double):
        super().__init__()
        self.body, self.head = nn.Linear(64, 16), nn.Linear(16, 10)
        self.double = double
        if double:
            self.head.double()

    def forward(self, x):
        x = self.body(x.flatten(1)).relu()
        if self.double:
            return self.head(x.to(self.head.weight.dtype))
        return self.head.to(x.dtype)(x)


@pytest.mark.parametrize(("double", "keep"), [(False, ()), (True, ("head",))])
def test_a_cast_in_one_model_leaves_the_others_weights(digits, double, keep):
    x = digits[1][0][:16]
    settings = Settings(precisions=("16-mixed",))
    run = EvaluationRun(
        Evaluation(model=Follows(double), data=[x, x]), settings, None, {"16-mixed": keep}
    )
    run.execute()
    head, cast = (model.head.weight for model in (run.reference.model, run.runs[0].candidate.model))
    assert cast.dtype == (torch.float32 if double else torch.float16)
    assert head.dtype == (torch.float64 if double else torch.float32)


class Sometimes(nn.Module):
    """Writes to its weights where a batch says so."""

    def __init__(self, write):
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.write = write

    def forward(self, x):
        if x.mean() > 1:
            self.write(self.linear.weight)
        return self.linear(x.flatten(1))


def halved(weight):
    weight.data.mul_(0.5)


def shrunk(weight):
    with torch.no_grad():
        weight.mul_(0.5)


@pytest.mark.parametrize("function", [False, True])
@pytest.mark.parametrize("write", [halved, shrunk])
@pytest.mark.parametrize("name", ["16-true", "16-mixed", "bf16-mixed"])
def test_weights_that_move_later_are_parted_then(digits, name, write, function):
    model, x = Sometimes(write), digits[1][0][:16]
    before = model.linear.weight.detach().clone()
    data = [x, x, x + 2, x + 2, x]
    settings = Settings(precisions=(name,))
    source = (lambda: copy.deepcopy(model)) if function else model
    run = EvaluationRun(Evaluation(model=source, data=data, task="regression"), settings, None)
    run.execute()
    for own in (run.reference, run.runs[0].candidate):
        weight = own.model.linear.weight
        assert torch.equal(weight, before.to(weight.dtype) / 4)
    assert torch.equal(model.linear.weight, before)


def test_a_function_that_makes_another_model_each_time_is_not_asked_again(digits):
    made = []

    def make():
        made.append(torch.randn(10, 64, generator=torch.Generator().manual_seed(len(made))))
        model = Sometimes(shrunk)
        model.linear.weight.data = made[-1].clone()
        return model

    x = digits[1][0][:16]
    settings = Settings(precisions=("16-mixed",))
    run = EvaluationRun(Evaluation(model=make, data=[x, x + 2], task="regression"), settings, None)
    run.execute()
    assert len(made) == 2
    assert torch.equal(run.reference.model.linear.weight, made[0] / 2)
    assert torch.equal(run.runs[0].candidate.model.linear.weight, made[0] / 4)


def test_an_evaluation_holds_them_once(make_net, digits):
    model, (x, y) = make_net(nn.Tanh()), digits[1]
    settings = Settings(precisions=("16-true", "16-mixed"))
    run = EvaluationRun(Evaluation(model=model, data=[(x[:16], y[:16])]), settings, None)
    run.execute()
    true, mixed = run.runs
    assert tensors(mixed.candidate) == tensors(run.reference)
    assert [p.data_ptr() for p in mixed.theory.model.parameters()] == tensors(run.reference)
    assert [p.data_ptr() for p in true.theory.model.parameters()] == tensors(true.candidate)


def test_a_module_that_a_function_gives_out_stays_its_users(make_net, digits):
    model = make_net(nn.Tanh()).train()
    x, y = digits[1]
    settings = Settings(precisions=("16-true", "16-mixed"))
    EvaluationRun(
        Evaluation(model=lambda: model, data=[(x[:16], y[:16])]), settings, None
    ).execute()
    assert model.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("function", [False, True])
def test_a_mixed_candidate_may_get_the_gradients_that_the_users_model_may(function):
    net = Normalised(lambda weight: None)
    net.linear.bias.requires_grad_(False)
    made = candidates((lambda: copy.deepcopy(net)) if function else net)
    for name, wanted in (("bf16-mixed", [True, False]), ("bf16-true", [False, False])):
        leader = made.made(name)
        for candidate in (leader, made.made(name, like=leader)):
            assert [p.requires_grad for p in candidate.model.parameters()] == wanted
    assert not any(p.requires_grad for p in made.reference.model.parameters())
