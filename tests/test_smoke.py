import pytest
import torch

from pytest_fp16 import Evaluation, Training
from pytest_fp16.errors import DataError, ModelError
from pytest_fp16.smoke import smoke


class Counting(torch.nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x):
        type(self).calls += 1
        assert x.dtype == torch.float32
        return self.layer(x)


@pytest.fixture
def batches():
    return [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(3)]


@pytest.fixture(autouse=True)
def _no_calls():
    Counting.calls = 0


def training(batches, **changes):
    known = {
        "model": Counting,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        "loss": torch.nn.functional.cross_entropy,
        "train_data": batches,
        "eval_data": batches,
    }
    return Training(**{**known, **changes})


def test_an_evaluation_runs_one_batch(batches):
    smoke(Evaluation(model=Counting(), data=batches))

    assert Counting.calls == 1


def test_a_training_makes_one_step(batches):
    stepped = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            stepped.append(1)
            return super().step(closure)

    smoke(training(batches, optimizer=lambda parameters: Spy(parameters, lr=0.1)))

    assert (Counting.calls, stepped) == (1, [1])


def test_no_batch(batches):
    with pytest.raises(DataError, match=r"^data is empty"):
        smoke(Evaluation(model=Counting(), data=[]))
    with pytest.raises(DataError, match=r"^train_data is empty"):
        smoke(training([]))


def test_no_logits(batches):
    class Silent(Counting):
        def forward(self, x):
            return None

    with pytest.raises(ModelError, match="returned no logits"):
        smoke(Evaluation(model=Silent(), data=batches))


def test_what_the_users_model_raises(batches):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        smoke(Evaluation(model=Counting(), data=[torch.randn(8, 5)], labelled=False))


def test_a_module_that_a_function_gives_out_is_left_as_it_is(batches):
    model = Counting().train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    smoke(Evaluation(model=lambda: model, data=batches))
    smoke(training(batches, model=lambda: model))
    assert model.training
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
