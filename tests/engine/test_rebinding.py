"""Functions that know a model by a closure or a global name: those of a copy know the copy."""

import functools
import types
import weakref

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.copies import make_model


class Net(nn.Module):
    """Runs whatever `body` is made of it."""

    def __init__(self, make=None):
        super().__init__()
        self.emb, self.head = nn.Embedding(50, 8), nn.Linear(8, 4)
        if make is not None:
            make(self)

    def inner(self, ids, by=1.0):
        return self.emb(ids).mean(1) * by

    def forward(self, ids):
        return self.head(self.body(ids))


def by_lambda(net):
    net.body = lambda ids: net.inner(ids)


def by_default(net):
    net.body = lambda ids, of=net: of.inner(ids)


def by_keyword(net):
    def body(ids, *, of=net.emb):
        return of(ids).mean(1)

    net.body = body


def by_two(net):
    def deeper(ids):
        return net.inner(ids)

    net.body = lambda ids: deeper(ids)


def by_itself(net):
    def body(ids, again=True):
        return body(ids, False) if again else net.inner(ids)

    net.body = body


def by_partial(net):
    net.body = functools.partial(lambda by, ids: net.inner(ids, by), 2.0)


def by_named_partial(net):
    net.body = functools.partial(lambda ids, by, of: of(ids, by), by=2.0, of=net.inner)


def by_table(net):
    net.table = {"bodies": [(lambda ids: net.inner(ids), 1)]}
    net.body = net.emb.body = lambda ids: net.table["bodies"][0][0](ids)


def by_method(net):
    net.body = types.MethodType(lambda self, ids: self.inner(ids) + net.inner(ids), net)


def by_container_in_a_closure(net):
    parts = {"emb": [net.emb]}
    net.body = lambda ids: parts["emb"][0](ids).mean(1)


def by_wrapped(net):
    @functools.wraps(net.inner)
    def body(ids):
        return body.__wrapped__(ids)

    net.body = body


def by_weak_reference(net):
    net.of = (weakref.ref(net),)
    net.body = lambda ids: net.of[0]().inner(ids)


def by_cache(net):
    net.table = functools.lru_cache(maxsize=3)(lambda n: net.emb.weight[:n] * 2)
    net.body = lambda ids: net.table(50)[ids].mean(1)


def by_hook(net):
    net.body = net.inner
    net.emb.register_forward_hook(lambda module, args, out: out + net.head.weight.mean())
    net.emb.register_forward_pre_hook(lambda module, args: (args[0] * (net.head.bias[0] < 9),))


def by_parent(net):
    parent = nn.ModuleDict({"net": net, "other": nn.Linear(8, 8)})
    net.body = lambda ids: parent["net"].inner(ids)


def by_patched_forward(net):
    net.body, old = net.inner, net.forward
    net.forward = lambda ids: old(ids) * 2


class Holder:
    def __init__(self, net):
        self.run = lambda ids: net.inner(ids)


def by_object(net):
    net.holder = Holder(net)
    net.body = lambda ids: net.holder.run(ids)


def by_object_in_a_closure(net):
    holder = Holder(net)
    net.body = lambda ids: holder.run(ids)


def by_object_that_knows_it(net):
    class Knows:
        def __init__(self):
            self.model = net

    knows = Knows()
    net.body = lambda ids: knows.model.inner(ids)


WAYS = [way for name, way in dict(globals()).items() if name.startswith("by_")]


@pytest.fixture
def ids():
    return torch.randint(0, 50, (6, 3), generator=torch.Generator().manual_seed(0))


def ways():
    return pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


@ways()
def test_a_copy_computes_with_its_own_weights(way, ids):
    model = Net(way).eval()
    want = model(ids)
    ours = make_model(model)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(2)
        assert torch.equal(model(ids), want), "the original's own functions are left alone"
        for parameter in ours.parameters():
            parameter.div_(2)
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    assert torch.equal(ours(ids), want)


@ways()
def test_a_copy_of_a_copy_knows_the_last(way, ids):
    ours = make_model(make_model(Net(way).eval()))
    assert torch.isfinite(ours.half()(ids)).all()
    assert ours(ids).dtype == torch.float16


net = Net()
SHIFT = 1


def helper(ids):
    return net.inner(ids)


def body_of_a_script(ids):
    return helper(ids) + net.inner(ids) + SHIFT


def test_a_function_of_a_script_knows_the_model_by_its_global_name(ids, monkeypatch):
    monkeypatch.setattr(net, "body", body_of_a_script, raising=False)
    want = net(ids)
    ours = make_model(net)
    assert torch.equal(ours(ids), want)
    assert ours.half()(ids).dtype == torch.float16
    assert ours.body.__name__ == "body_of_a_script"
    assert net.body is body_of_a_script
    monkeypatch.setitem(globals(), "SHIFT", torch.inf)
    assert not torch.isfinite(ours(ids)).any(), "other names are those of the script"


def test_a_function_that_knows_no_part_of_the_model_is_shared():
    seen = []

    def save(module, args, output):
        seen.append(output)

    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(save)
    model.also = cached = functools.lru_cache(lambda n: n)
    ours = make_model(model)
    ours(torch.ones(1, 2))
    assert len(seen) == 1, "a program outside reads what the hook saves"
    assert list(ours[0]._forward_hooks.values()) == [save]
    assert ours.also is cached


class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))
        self.head = nn.Linear(32, 4)

        def save(module, args, output):
            self.features = output

        self.backbone[1].register_forward_hook(save)

    def forward(self, x):
        self.backbone(x)
        return self.head(self.features)


def test_a_feature_extractor_is_evaluated():
    torch.manual_seed(0)
    report = check(Evaluation(Features().eval(), [torch.randn(64, 16)], labelled=False))
    assert report.equivalent
    assert report.run.dtypes == {"float16": 3}


@pytest.mark.parametrize("source", [lambda: Net(scaled).eval(), lambda: lambda: Net(scaled).eval()])
def test_what_a_closure_computes_is_computed_in_16_bits(source):
    torch.manual_seed(0)
    ids = torch.randint(0, 50, (64, 4))
    report = check(Evaluation(source(), [ids], labelled=False), precision="16-true")
    assert report.verdict == "not equivalent"
    assert report.culprit.mechanism == "overflow"


def scaled(net):
    net.body = lambda ids: (net.inner(ids) * 1e7) / 1e7
