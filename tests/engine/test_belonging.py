"""A copy that still runs its original is found out, or made by its function."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, Training, check
from pytest_fp16.engine.belonging import Reads
from pytest_fp16.engine.copies import make_model
from pytest_fp16.engine.models import Location
from pytest_fp16.errors import ModelError

REGISTRY = {}


class Registered(nn.Module):
    """Runs what it has put into a registry, where no copy finds it."""

    def __init__(self):
        super().__init__()
        self.emb, self.head = nn.Embedding(50, 8), nn.Linear(8, 4)
        self.key = f"model {len(REGISTRY)}"
        REGISTRY[self.key] = self.emb

    def forward(self, ids):
        h = REGISTRY[self.key](ids).mean(1) * 1e7 / 1e7
        return self.head(h.to(self.head.weight.dtype))


@pytest.fixture
def ids():
    torch.manual_seed(0)
    return torch.randint(0, 50, (64, 4))


SAID = r"still belongs to the original: it reads emb\.weight of the module that was passed"


def test_a_copy_that_runs_its_original_is_refused(ids):
    with pytest.raises(ModelError, match=SAID):
        check(Evaluation(Registered(), [ids], labelled=False))


def test_a_function_then_makes_each_model(ids):
    report = check(Evaluation(Registered, [ids, ids + 0], labelled=False), precision="16-true")
    assert report.verdict == "not equivalent"
    assert report.culprit.mechanism == "overflow"
    report = check(Evaluation(Registered, [ids], labelled=False), precision="bf16-true")
    assert report.verdict == "equivalent"
    assert report.run.dtypes.keys() == {"bfloat16"}


def test_a_function_that_gives_out_such_a_model_is_refused(ids):
    model = Registered()
    with pytest.raises(ModelError, match=SAID):
        check(Evaluation(lambda: model, [ids], labelled=False))


def test_a_function_that_makes_other_shapes_is_refused(ids):
    def make():
        model = Registered()
        model.extra = nn.Linear(len(REGISTRY), 1)
        return model

    with pytest.raises(ModelError, match=r"^model= makes another module each time: .*extra"):
        check(Evaluation(make, [ids], labelled=False))


def training(model, ids, **more):
    data = [(ids, ids[:, 0] // 13)]
    sgd = lambda parameters: torch.optim.SGD(parameters, 0.5)  # noqa: E731
    return Training(model, sgd, nn.functional.cross_entropy, data, data, **more)


def test_a_training_of_such_a_copy_is_refused(ids):
    with pytest.raises(ModelError, match=SAID):
        check(training(Registered(), ids))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.head = nn.Embedding(50, 8), nn.Linear(8, 4)

    def forward(self, ids):
        return self.head(self.emb(ids).mean(1))


def test_a_loss_may_hold_weights_against_those_of_the_original(ids):
    model = Plain()

    def step(mine, batch):
        apart = (mine.head.weight - model.head.weight).square().sum()
        return nn.functional.cross_entropy(mine(batch[0]), batch[1]) + apart

    report = check(training(model, ids, training_step=step), seeds=3, budget=0.9)
    assert report.error is None


def test_a_forward_may_know_the_original_as_well(ids):
    model = Plain().eval()
    subject = Evaluation(
        model, [ids], labelled=False, forward=lambda mine, x: mine(x) + 0 * model(x).mean()
    )
    assert check(subject).equivalent


def test_what_a_program_does_between_modules_counts_where_nobody_else_runs_it(ids):
    model = Plain()
    ours = make_model(model)
    for inside, found in ((True, None), (False, "head.weight")):
        with Reads(ours, Location(ours), inside) as seen:
            model.head.weight + 1
        assert seen.found == found
    with Reads(ours, Location(ours), False) as seen:
        ours(ids)
    assert seen.found is None


def test_weights_that_a_copy_was_given_to_read_are_its_own(ids):
    model = Plain()
    first = make_model(model)
    second = make_model(model, first)
    third = make_model(first, first)
    for ours in (second, third):
        with Reads(ours, Location(ours), False) as seen:
            ours(ids)
        assert seen.found is None
