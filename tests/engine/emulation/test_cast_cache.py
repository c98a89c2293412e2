"""Casts of weights that autocast keeps, against those that torch's own autocast keeps."""

from contextlib import ExitStack, nullcontext
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.emulation.autocast import held_policy, target_autocast
from pytest_fp16.engine.emulation.cast_cache import nothing_kept
from pytest_fp16.engine.emulation.emulate import Emulation

BFLOAT16 = torch.bfloat16
ONE = torch.ones(1, 1)
MODES = {"g": torch.enable_grad, "n": torch.no_grad, "i": torch.inference_mode}


def _torchs(target):
    return torch.autocast("cpu", dtype=BFLOAT16)


def _ours(target):
    return target_autocast("cpu", BFLOAT16, target)


def _device(target, region):
    return "cpu" if region is _torchs else target


def _changed(weight, value):
    with torch.no_grad():
        weight.fill_(value)


def _sequence(modes, region, target, emulated):
    """What products with a weight give that is changed before each of them."""
    weight, seen = nn.Parameter(torch.ones(1, 1)), []
    with region(target), Emulation(target) if emulated else nullcontext():
        for number, mode in enumerate(modes):
            _changed(weight, number + 1.0)
            with MODES[mode]():
                product = ONE @ weight
            seen.append((product.item(), product.requires_grad))
    return seen


@pytest.mark.parametrize("emulated", [False, True])
@pytest.mark.parametrize("target", ["cuda", "cpu"])
@pytest.mark.parametrize("modes", ["gg", "nn", "ng", "gn", "ngn", "gng", "ii", "ni", "in", "gi"])
def test_a_weight_that_is_changed_stays_as_stale_as_in_torch(modes, target, emulated):
    real = _sequence(modes, _torchs, target, emulated=False)
    assert _sequence(modes, _ours, target, emulated) == real


def _nested(region, target):
    device = _device(target, region)
    weight = nn.Parameter(torch.ones(1, 1))

    def product():
        return (ONE @ weight).item(), torch.is_autocast_cache_enabled()

    with region(target):
        yield product()
        _changed(weight, 2.0)
        with torch.autocast(device, dtype=BFLOAT16, cache_enabled=False):
            yield product()
        yield product()
        with torch.autocast(device, enabled=False):
            yield product()
            with torch.autocast(device, dtype=BFLOAT16):
                yield product()
        torch.clear_autocast_cache()
        yield product()
        _changed(weight, 3.0)
        weight.requires_grad_(False)
        yield product()
        weight.requires_grad_()
        yield product()
    _changed(weight, 4.0)
    with region(target):
        yield product()
    with nothing_kept(), region(target):
        yield product()
        _changed(weight, 5.0)
        yield product()


@pytest.mark.parametrize("emulated", [False, True])
@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_nested_and_disabled_regions_keep_what_torchs_keep(target, emulated):
    with torch.no_grad():
        real = list(_nested(_torchs, target))
        assert real[2] == (1.0, True)
        with held_policy("cpu", target), Emulation(target) if emulated else nullcontext():
            assert list(_nested(_ours, target)) == real


def _kinds(region, target):
    """Weights of several kinds, each used, changed, and used again."""
    trained, frozen = nn.Parameter(torch.ones(1, 1)), nn.Parameter(torch.ones(1, 1), False)
    buffer, double = torch.ones(1, 1), nn.Parameter(torch.ones(1, 1, dtype=torch.float64))
    kinds = {
        "trained": lambda: trained,
        "frozen": lambda: frozen,
        "buffer": lambda: buffer,
        "double": lambda: double,
        "view": lambda: trained[:],
        "computed": lambda: trained * 1,
        "detached": lambda: trained.detach(),
    }
    found = {}
    for name, weight in kinds.items():
        for each in (trained, frozen, buffer, double):
            _changed(each, 1.0)
        with region(target):
            first = ONE.to(weight().dtype) @ weight()
            for each in (trained, frozen, buffer, double):
                _changed(each, 2.0)
            second = ONE.to(weight().dtype) @ weight()
        found[name] = first.item(), second.item(), second.dtype
    return found


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_casts_of_the_same_tensors_are_kept(target):
    real = _kinds(_torchs, target)
    assert {name for name, (first, second, _) in real.items() if first == second} == {"trained"}
    assert _kinds(_ours, target) == real


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_a_kept_cast_has_the_format_that_it_was_made_in(target):
    """In torch the dtype is no part of what a cast is found by: the product is refused."""
    weight = nn.Parameter(torch.ones(1, 1))
    with _ours(target):
        ONE @ weight
        other = torch.autocast(target, dtype=torch.float16)
        with other, pytest.raises(RuntimeError, match="same dtype"):
            ONE @ weight


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_gradients_of_one_cast_meet_in_16_bits(target):
    """Of a weight that is used twice: 256 + 1 is 256 in bfloat16."""
    found = []
    for region in (_torchs, _ours):
        weight = nn.Parameter(torch.ones(1, 1))
        with region(target):
            loss = (ONE @ weight).float() * 256 + (ONE @ weight).float()
        loss.sum().backward()
        found.append(weight.grad.item())
    assert found == [256.0, 256.0]


def test_weights_of_a_layer_that_cudnn_runs_are_cast_at_each_call():
    layer, cell = nn.LSTM(1, 1, bias=False), nn.LSTMCell(1, 1, bias=False)
    for module, keeps in ((layer, False), (cell, True)):
        with torch.no_grad(), _ours("cuda"), Emulation("cuda"):
            first = module(torch.ones(1, 1))
            for weight in module.parameters():
                weight.fill_(3.0)
            second = module(torch.ones(1, 1))
        first, second = (out[0].float() for out in (first, second))
        assert torch.equal(first, second) == keeps
        with torch.no_grad(), _ours("cuda"), Emulation("cuda"):
            assert not torch.equal(module(torch.ones(1, 1))[0].float(), first)


def test_nothing_is_kept_when_the_policy_has_gone():
    from pytest_fp16.engine.emulation import cast_cache

    clear, weight = torch.clear_autocast_cache, nn.Parameter(torch.ones(1, 1))
    with _ours("cuda"):
        ONE @ weight
        assert cast_cache._kept
    assert not cast_cache._kept
    assert torch.clear_autocast_cache is clear
    with held_policy("cpu", "cuda"):
        with _ours("cuda"):
            ONE @ weight
        assert not cast_cache._kept


class _Streamed(nn.Module):
    """One layer in memory, whose weight is loaded anew for each of many."""

    def __init__(self, **region):
        super().__init__()
        self.store = [torch.randn(16, 16) / 4 for _ in range(4)]
        self.layer, self.head = nn.Linear(16, 16, bias=False), nn.Linear(16, 5)
        self.region = region

    def forward(self, x):
        for weight in self.store:
            with torch.no_grad():
                self.layer.weight.copy_(weight)
            with ExitStack() as stack:
                if self.region:
                    stack.enter_context(torch.autocast(**self.region))
                x = torch.tanh(self.layer(x))
        return self.head(x)


def _flips(model, x, **region):
    with torch.no_grad():
        wanted = model(x).argmax(-1)
        with torch.autocast("cpu", dtype=BFLOAT16, **region):
            return int((model(x).argmax(-1) != wanted).sum())


def _judged(model, x, **settings):
    subject = Evaluation(model=model, data=[x], labelled=False)
    return check(subject, precision="bf16-mixed", **settings)


@pytest.mark.parametrize(
    "settings",
    [{}, {"target": "cpu"}, {"target": "cpu", "emulate": "never"}],
    ids=["cuda", "cpu", "native"],
)
def test_a_weight_streamed_into_a_region_is_stale_as_it_is_for_its_user(settings):
    torch.manual_seed(0)
    model, x = _Streamed().eval(), torch.randn(200, 16)
    real = _flips(model, x)
    report = _judged(model, x, **settings)
    assert report.flips == real > 100
    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert _judged(model.requires_grad_(False), x, **settings).equivalent
    assert _flips(model, x) <= 2


@pytest.mark.parametrize("trained", [True, False])
def test_a_model_that_a_function_makes_has_the_weights_that_it_makes(trained):
    torch.manual_seed(0)
    model, x = _Streamed().eval().requires_grad_(trained), torch.randn(200, 16)
    assert _judged(lambda: deepcopy(model), x).equivalent != trained


@pytest.mark.parametrize("settings", [{}, {"target": "cpu"}], ids=["cuda", "cpu"])
def test_a_region_that_keeps_nothing_is_a_cure(settings):
    torch.manual_seed(0)
    device = settings.get("target", "cuda")
    model = _Streamed(device_type=device, dtype=BFLOAT16, cache_enabled=False).eval()
    assert _judged(model, torch.randn(200, 16), **settings).equivalent


@pytest.mark.parametrize("name", ["no_grad", "inference_mode"])
def test_a_program_that_enters_inference_mode_itself_is_as_stale_as_in_torch(name):
    torch.manual_seed(0)
    model, x = _Streamed().eval(), torch.randn(200, 16)

    def forward(given, inputs):
        with getattr(torch, name)():
            return given(inputs)

    with torch.autocast("cpu", dtype=BFLOAT16):
        out = forward(model, x)
    with torch.no_grad():
        stale = bool((model(x).argmax(-1) != out.argmax(-1)).sum() > 100)
    subject = Evaluation(model=model, data=[x], labelled=False, forward=forward)
    for settings in ({}, {"target": "cpu"}, {"target": "cpu", "emulate": "never"}):
        assert check(subject, precision="bf16-mixed", **settings).equivalent != stale


def test_what_is_kept_does_not_outlast_a_batch():
    """A weight that is changed from one batch to the next is cast anew."""
    torch.manual_seed(0)

    class Drifting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x):
            y = F.relu(self.layer(x))
            with torch.no_grad():
                self.layer.weight.neg_()
            return y

    subject = Evaluation(model=Drifting().eval(), data=list(torch.randn(4, 50, 8)), labelled=False)
    for settings in ({}, {"target": "cpu"}, {"target": "cpu", "emulate": "never"}):
        with torch.autocast("cpu", dtype=BFLOAT16):  # a caller's own region makes none of it nested
            assert check(subject, precision="bf16-mixed", **settings).equivalent
