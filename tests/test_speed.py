import sys
import time
from functools import partial

import pytest
import torch

from pytest_fp16 import Evaluation, Settings, Training
from pytest_fp16.errors import DataError
from pytest_fp16.speed import clock as real_clock
from pytest_fp16.speed import measure, race, ratio

CPU = Settings(device="cpu")


#: Seconds a model takes, by the dtype it runs in.
SECONDS = {torch.float32: 0.004, torch.float16: 0.001, torch.bfloat16: 0.002}


class Time:
    """A clock that only models advance, so that a busy machine changes no ratio."""

    now = 0.0


@pytest.fixture(autouse=True)
def _time(monkeypatch):
    monkeypatch.setattr("pytest_fp16.speed.clock", lambda: Time.now)


class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x):
        y = self.layer(x)
        Time.now += SECONDS[y.dtype]
        return y


class Pedantic:
    """Runs as pytest-benchmark does, and remembers the order."""

    def __init__(self):
        self.order, self.keywords = [], {}

    def __call__(self, target, *, setup, **keywords):
        self.keywords = keywords
        for _ in range(keywords["rounds"] + keywords["warmup_rounds"]):
            setup()
            self.order.append("setup")
            target()
            self.order.append("target")


@pytest.fixture
def evaluation():
    return Evaluation(model=Slow(), data=[torch.randn(2, 4)])


def test_the_ratio_is_that_of_what_ran(evaluation):
    speed = measure(evaluation, "16-true", CPU, Pedantic(), rounds=9)

    assert speed.speedup == pytest.approx(4)
    assert (speed.reference_seconds, speed.seconds) == pytest.approx((0.004, 0.001))


def test_a_true_precision_is_compared_with_its_mixed_one_where_that_is_selected(evaluation):
    both = measure(evaluation, "16-true", CPU, Pedantic(), rounds=3)
    alone = measure(evaluation, "16-true", CPU.with_(precisions="16-true"), Pedantic(), rounds=3)
    mixed = measure(evaluation, "16-mixed", CPU, Pedantic(), rounds=3)
    brain = measure(evaluation, "bf16-true", CPU, Pedantic(), rounds=3)

    assert both.speedup_over_mixed == pytest.approx(1)
    assert brain.speedup_over_mixed == pytest.approx(1)
    assert (alone.speedup_over_mixed, mixed.speedup_over_mixed) == (None, None)


def test_reference_and_candidate_alternate(evaluation):
    pedantic = Pedantic()

    measure(evaluation, "bf16-true", CPU, pedantic, rounds=3)

    assert pedantic.keywords == {"rounds": 3, "warmup_rounds": 1, "iterations": 1}
    assert pedantic.order == ["setup", "target"] * 4


def test_slow_models_get_few_rounds_and_fast_ones_many(evaluation, monkeypatch):
    pedantic = Pedantic()
    measure(evaluation, "bf16-true", CPU, pedantic)
    assert pedantic.keywords["rounds"] == 50

    monkeypatch.setitem(SECONDS, torch.float32, 1.0)
    measure(evaluation, "bf16-true", CPU, pedantic)
    assert pedantic.keywords["rounds"] == 5


def test_a_training_is_timed_by_its_step():
    training = Training(
        model=Slow,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        loss=torch.nn.functional.cross_entropy,
        train_data=[(torch.randn(8, 4), torch.randint(3, (8,)))],
        eval_data=[],
    )

    speed = measure(training, "bf16-true", CPU, Pedantic(), rounds=5)

    assert speed.speedup == pytest.approx(2)


def test_the_model_and_the_random_state_are_as_before(evaluation):
    before = torch.get_rng_state()
    weights = evaluation.model.layer.weight.clone()

    measure(evaluation, "16-true", CPU, Pedantic(), rounds=1)

    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(evaluation.model.layer.weight, weights)
    assert evaluation.model.layer.weight.dtype == torch.float32
    assert evaluation.model.training


@pytest.mark.parametrize("train", [False, True])
def test_a_module_that_a_function_gives_out_is_left_as_it_is(evaluation, train):
    model = Slow()
    subject = Evaluation(model=lambda: model, data=evaluation.data)
    if train:
        sgd = partial(torch.optim.SGD, lr=0.1)
        data = [(torch.randn(8, 4), torch.randint(3, (8,)))]
        subject = Training(lambda: model, sgd, torch.nn.functional.cross_entropy, data, data)
    weights = model.layer.weight.clone()
    measure(subject, "16-true", CPU, Pedantic(), rounds=1)
    assert model.training
    assert model.layer.weight.dtype == torch.float32
    assert torch.equal(model.layer.weight, weights)


def test_memory_is_none_where_nobody_counts_it(evaluation):
    speed = measure(evaluation, "16-true", CPU, Pedantic(), rounds=1)

    assert (speed.peak_memory, speed.reference_peak_memory) == (None, None)


@pytest.mark.gpu
def test_memory_on_cuda_is_that_of_each_model_alone():
    model = torch.nn.Linear(4096, 4096, bias=False)
    evaluation = Evaluation(model=model, data=[torch.randn(64, 4096)])

    speed = measure(evaluation, "16-true", Settings(device="cuda"), Pedantic(), rounds=3)

    assert speed.reference_peak_memory >= 4 * 4096 * 4096
    assert 0.45 < speed.peak_memory / speed.reference_peak_memory < 0.6


def test_the_clock_counts_seconds():
    start = real_clock()
    time.sleep(0.02)

    assert real_clock() - start >= 0.02


def test_what_traces_python_traces_neither_side(evaluation, monkeypatch):
    seen = []

    class Traced(Slow):
        def forward(self, x):
            seen.append(sys.gettrace())
            return super().forward(x)

    trace = lambda *args: None  # noqa: E731
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        measure(Evaluation(Traced(), [torch.randn(2, 4)]), "16-true", CPU, Pedantic(), rounds=2)
        after = sys.gettrace()
    finally:
        sys.settrace(before)

    assert (set(seen), after) == ({None}, trace)


def test_no_data():
    with pytest.raises(DataError, match="it yielded no batch"):
        measure(Evaluation(model=Slow(), data=[]), "16-true", CPU, Pedantic())


def test_a_race_lets_all_take_turns(monkeypatch):
    order = []

    def runner(name, seconds):
        def run():
            order.append(name)
            Time.now += seconds

        return run

    times = race({"fast": runner("fast", 0.1), "slow": runner("slow", 0.3)})
    assert order == ["fast", "slow"] * 6  # one round to warm up, then five of 0.4 s
    assert ratio(times["slow"], times["fast"]) == pytest.approx(3)
