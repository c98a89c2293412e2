"""Whether a function of the user's uses the model it is given, or another that it knows of."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16.engine.copies import make_model
from pytest_fp16.engine.use import called, ignores, reaches

OUTSIDE = nn.Linear(4, 3)
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


class Encoder(nn.Module):
    """A model whose users never call it itself."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.config = {"scale": 2.0}

    def encode(self, x):
        return self.layer(x)


class Pure(nn.Module):
    """A function, as a module without parameters."""

    def forward(self, x):
        return x.softmax(1)


def cast(net, x):
    assert isinstance(net, nn.Module)
    net = net.eval().to(next(net.parameters()).device)
    return OUTSIDE(x.to(device=next(net.parameters()).device, dtype=OUTSIDE.weight.dtype))


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: OUTSIDE(x),
        lambda net, x: OUTSIDE(x.float()),
        lambda net, x: OUTSIDE(x) if not net.training else None,
        cast,
    ],
)
def test_one_that_runs_a_model_from_outside_ignores_its_own(forward):
    model = Encoder().eval()
    with called(model) as calls:
        forward(model, X)
    assert not calls
    assert ignores(model, lambda given: forward(given, X))


def asks_with_a_default(net, x):
    return OUTSIDE(x) * getattr(net, "config", {"scale": 1.0})["scale"]


def hides_what_it_stumbles_over(net, x):
    try:
        return net.encode(x)
    except RuntimeError:
        return OUTSIDE(x)


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.encode(x),
        lambda net, x: net.eval().encode(x),
        lambda net, x: net(x),
        lambda net, x: F.linear(x, net.layer.weight),
        lambda net, x: F.linear(x, *net.parameters()),
        lambda net, x: F.linear(x, dict(net.named_parameters())["layer.weight"].t().t()),
        lambda net, x: copy.deepcopy(net).encode(x),
        lambda net, x: vars(net)["_modules"]["layer"](x),
        lambda net, x: Encoder.encode(net, x),
        lambda net, x: torch.func.functional_call(net, dict(net.named_parameters()), (x,)),
        asks_with_a_default,
        hides_what_it_stumbles_over,
    ],
)
def test_any_way_to_use_a_model_counts(forward):
    model = Encoder()
    assert not ignores(model, lambda given: forward(given, X))


def test_a_sequence_is_used_by_its_places():
    model = nn.Sequential(nn.Linear(4, 3))
    assert not ignores(model, lambda given: given[0](X))
    assert not ignores(model, lambda given: [part(X) for part in given])


@pytest.mark.parametrize(
    "forward", [lambda net, x: net(x), lambda net, x: net.forward(x), lambda net, x: net.train()(x)]
)
def test_a_model_without_parameters_is_used_when_it_is_called(forward):
    assert not ignores(Pure(), lambda given: forward(given, X))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize(
    "made",
    [
        torch.jit.script,
        lambda model: torch.jit.trace(model, X),
        lambda model: torch.export.export(model, (X,)).module(),
        nn.DataParallel,
        lambda model: torch.compile(model, backend="eager"),
        torch.fx.symbolic_trace,
    ],
)
def test_a_call_of_every_kind_of_module_is_seen(made):
    model = make_model(made(nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()))
    with called(model) as calls:
        model(X)
    assert calls
    with called(model) as calls:
        pass
    model(X)
    assert not calls  # it has no hook any more


class Checkpointed(torch.autograd.Function):
    """Runs a part anew on the way back: its parameters are not in the graph."""

    @staticmethod
    def forward(ctx, x, part):
        ctx.part = part
        ctx.save_for_backward(x)
        return part(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            ctx.part(x).backward(grad)
        return grad @ ctx.part.weight, None


@pytest.mark.parametrize("hidden", [False, True])
def test_a_loss_reaches_what_it_depends_on(hidden):
    model = nn.Linear(4, 3)
    x = X.clone().requires_grad_()
    loss = (Checkpointed.apply(x, model) if hidden else model(x)).sum()
    assert reaches(loss, [model.weight])
    assert not reaches(OUTSIDE(x).sum(), list(nn.Linear(4, 3).parameters()))
