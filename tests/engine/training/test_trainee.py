"""A model in training: what it starts from, what a step does, and what it leaves behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from pytest_fp16 import Training, check
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.training.place import Amendment, Place
from pytest_fp16.engine.training.score import score
from pytest_fp16.engine.training.trainee import Trainee, gradient_of, initial_state
from pytest_fp16.errors import ModelError
from pytest_fp16.precision import PRECISIONS, REFERENCE

CPU = torch.device("cpu")
EMULATED = Place(CPU, "cuda", emulated=True)
NATIVE = Place(CPU, "cpu", emulated=False)


@pytest.fixture(autouse=True)
def _state():
    with preserved_state():
        yield


def trained(subject, precision="32-true", seed=0, epochs=None, place=EMULATED):
    """A trainee after its epochs, for a look inside."""
    trainee = Trainee(subject, PRECISIONS[precision], seed, initial_state(subject, seed), place)
    with trainee.installed():
        for _ in range(epochs or subject.epochs):
            trainee.model.train()
            batches = list(subject.train_data)
            losses = [trainee.step(b, i + 1 == len(batches)) for i, b in enumerate(batches)]
            trainee.end_epoch(sum(losses) / len(losses))
    return trainee


def by_hand(subject, seed=0, accumulate=1, clip=None):
    """The loop every tutorial shows, over the same order of batches."""
    torch.manual_seed(seed)
    model = subject.model()
    optimizer = subject.optimizer(list(model.parameters()))
    model.train()
    batches = list(subject.train_data)
    for i, (x, y) in enumerate(batches):
        (subject.loss(model(x), y) / accumulate).backward()
        if (i + 1) % accumulate == 0 or i + 1 == len(batches):
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return model


def weights(model):
    return torch.cat([p.detach().float().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (3, None), (1, 0.1), (4, 0.05)])
def test_float32_is_the_loop_every_tutorial_shows(digits_training, accumulate, clip):
    subject = digits_training(accumulate=accumulate, clip_grad_norm=clip)
    ours = trained(subject, epochs=1).model
    assert torch.equal(weights(ours), weights(by_hand(subject, 0, accumulate, clip)))


def test_clipping_changes_the_training(digits_training):
    free, clipped = (by_hand(digits_training(), clip=clip) for clip in (None, 0.05))
    assert not torch.allclose(weights(free), weights(clipped))


@pytest.mark.parametrize("name", ["16-true", "bf16-true"])
def test_emulation_trains_as_the_native_kernels_do(digits_training, name):
    emulated, native = (trained(digits_training(), name, place=p).model for p in (EMULATED, NATIVE))
    start = weights(digits_training().model())
    difference = (weights(emulated) - weights(native)).norm()
    assert difference < 0.05 * (weights(native) - start).norm()


def test_one_seed_starts_every_precision_from_the_same_weights(digits_training):
    subject = digits_training()
    state = initial_state(subject, 3)
    full, half = (
        weights(Trainee(subject, PRECISIONS[p], 3, state, EMULATED).model)
        for p in ("32-true", "16-true")
    )
    assert torch.equal(full.half().float(), half)
    assert not torch.equal(
        full, weights(Trainee(subject, REFERENCE, 4, initial_state(subject, 4), EMULATED).model)
    )


def test_tied_weights_stay_tied(digits_training):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
            self.two.weight = self.one.weight
            self.head = nn.Linear(64, 10)

        def forward(self, x):
            return self.head(torch.relu(self.two(torch.relu(self.one(x.flatten(1))))))

    for name in ("16-true", "16-mixed"):
        model = trained(digits_training(model=Tied), name, epochs=1).model
        assert model.one.weight is model.two.weight


@pytest.mark.parametrize("name", ["16-true", "bf16-mixed"])
def test_running_statistics_follow_those_of_float32(digits_training, convolutional, name):
    subject = digits_training(model=convolutional)
    full, low = (trained(subject, p).model[1] for p in ("32-true", name))
    assert low.running_var.dtype == (torch.float16 if name == "16-true" else torch.float32)
    assert low.num_batches_tracked == full.num_batches_tracked > 0
    assert torch.allclose(low.running_var.float(), full.running_var, rtol=0.1)
    assert not torch.allclose(full.running_var, torch.ones(8), rtol=0.1)


def test_schedulers_step_by_epoch_or_by_step(digits_training):
    def halving(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    steps = len(digits_training().train_data)
    for interval, times in (("epoch", 2), ("step", 2 * steps)):
        trainee = trained(digits_training(scheduler=halving, scheduler_step=interval), "16-mixed")
        assert trainee.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**times)


def test_a_plateau_scheduler_is_told_the_loss(digits_training):
    def plateau(optimizer):
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.99)

    trainee = trained(digits_training(scheduler=plateau, epochs=3), epochs=3)
    assert trainee.optimizer.param_groups[0]["lr"] < 0.1


def test_a_lightning_module_brings_step_and_optimizer(digits_training):
    class Lit(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            x, y = batch
            return {"loss": nn.functional.cross_entropy(self(x), y)}

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "interval": "step"},
            }

    subject = digits_training(model=Lit, optimizer=None, loss=None)
    trainee = trained(subject, epochs=1)
    assert trainee.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.9**trainee.applied)


def pupil(subject, name="32-true", amendment=None, place=EMULATED):
    state = initial_state(subject, 0)
    return Trainee(subject, PRECISIONS[name], 0, state, place, amendment)


@pytest.mark.parametrize(
    ("name", "held", "scaled"),
    [
        ("32-true", torch.float32, False),
        ("16-true", torch.float16, False),
        ("bf16-true", torch.bfloat16, False),
        ("16-mixed", torch.float32, True),
        ("bf16-mixed", torch.float32, False),
    ],
)
def test_each_precision_holds_its_dtype_and_float16_autocast_a_scaler(
    digits_training, name, held, scaled
):
    trainee = pupil(digits_training(), name)
    assert {p.dtype for p in trainee.parameters()} == {held}
    assert (trainee.scaler is not None) == scaled
    assert trainee.scale == (2.0**16 if scaled else 1.0)
    batch = digits_training().train_data[0]
    assert trainee.placed(batch)[0].dtype == held
    assert trainee.placed(batch)[1].dtype == torch.int64


def test_a_batch_is_copied_before_the_model_may_write_to_it(digits_training):
    batch = digits_training().train_data[0]
    assert pupil(digits_training()).placed(batch)[0].data_ptr() != batch[0].data_ptr()


@pytest.mark.parametrize("name", ["16-true", "bf16-mixed"])
def test_the_last_batches_of_an_epoch_are_applied_though_they_are_few(digits_training, name):
    trainee = pupil(digits_training(accumulate=3), name)
    start = weights(trainee.model)
    batches = digits_training().train_data[:5]
    applied = []
    with trainee.installed():
        for i, batch in enumerate(batches):
            trainee.step(batch, last=i == 4)
            applied.append(trainee.applied)
    assert applied == [0, 0, 1, 1, 2]
    assert not torch.equal(weights(trainee.model), start)


@pytest.mark.parametrize("scale", [64.0, 1024.0])
def test_a_constant_scale_is_taken_out_of_the_gradients(digits_training, scale):
    plain, scaled = (
        pupil(digits_training(), amendment=Amendment(loss_scale=s)) for s in (None, scale)
    )
    batch = digits_training().train_data[0]
    losses = [trainee.step(batch, last=True) for trainee in (plain, scaled)]
    assert losses[0] == losses[1]
    assert torch.equal(weights(plain.model), weights(scaled.model))  # a power of two is exact
    assert scaled.scale == scale


def test_what_a_cure_does_to_the_model_comes_before_its_cast(digits_training):
    seen = []
    amendment = Amendment(model=lambda model: seen.append(model[1].weight.dtype))
    assert pupil(digits_training(), "16-true", amendment).model[1].weight.dtype == torch.float16
    assert seen == [torch.float32]


def test_the_users_own_step_gives_the_loss(digits_training):
    def step(model, batch):
        x, y = batch
        return {"loss": nn.functional.cross_entropy(model(x), y), "more": 3}

    batch = digits_training().train_data[0]
    own = pupil(digits_training(loss=None, training_step=step))
    assert own.step(batch) == pupil(digits_training()).step(batch)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda z, y: nn.functional.cross_entropy(z, y, reduction="none"), r"of shape \(64,\)"),
        (lambda z, y: None, "got None"),
    ],
)
def test_a_loss_that_is_no_scalar_says_so(digits_training, loss, said):
    trainee = pupil(digits_training(loss=loss))
    with pytest.raises(ModelError, match=said):
        trainee.step(digits_training().train_data[0])


def test_initial_weights_are_the_seeds_and_nobody_elses(digits_training):
    subject = digits_training()
    first, again, other = (initial_state(subject, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])
    model = nn.Linear(2, 2)
    state = initial_state(digits_training(model=model), 0)
    state["weight"].add_(1.0)
    assert not torch.equal(state["weight"], model.weight)


def test_a_sparse_gradient_is_read_as_a_dense_one():
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 1, 4])).sum().backward()
    assert embedding.weight.grad.is_sparse
    assert gradient_of(embedding.weight).tolist() == [[0] * 3, [2] * 3, [0] * 3, [0] * 3, [1] * 3]


def test_a_training_of_a_lazy_model_is_refused(digits_training):
    lazy = digits_training(model=lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)))
    with pytest.raises(ModelError, match="lazy module without weights yet"):
        initial_state(lazy, 0)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_script_is_trained_in_one_mixed_precision_after_the_other(digits_training):
    def scripted():
        layers = nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)
        return torch.jit.script(nn.Sequential(*layers))

    subject = digits_training(model=scripted)
    state = initial_state(subject, 0)
    for name in ("16-mixed", "bf16-mixed", "16-mixed"):
        trainee = Trainee(subject, PRECISIONS[name], 0, state, EMULATED)
        with trainee.installed():
            losses = [trainee.step(batch) for batch in subject.train_data[:4]]
        assert losses[-1] < losses[0] * 2


@pytest.mark.parametrize("name", ["32-true", "16-mixed"])
def test_a_batch_that_the_step_leaves_out_is_no_step(digits_training, name):
    def step(model, batch):
        x, y = batch
        return None if len(seen) % 2 else nn.functional.cross_entropy(model(x), y)

    seen = [0, 0]
    subject = digits_training(loss=None, training_step=step)
    trainee = Trainee(subject, PRECISIONS[name], 0, initial_state(subject, 0), EMULATED)
    with trainee.installed():
        first = trainee.step(subject.train_data[0])
        before, applied = weights(trainee.model), trainee.applied
        seen.append(0)
        assert trainee.step(subject.train_data[1]) == first
        assert trainee.left_out
    assert torch.equal(weights(trainee.model), before)
    assert (trainee.applied, trainee.skipped) == (applied, 0)


def test_a_batch_that_is_left_out_counts_among_those_that_are_accumulated(digits_training):
    def step(model, batch):
        x, y = batch
        return None if len(y) == 32 else nn.functional.cross_entropy(model(x), y)

    subject = digits_training(loss=None, training_step=step, accumulate=2)
    x, y = subject.train_data[0]
    trainee, alone = pupil(subject), pupil(subject)
    for batch in ((x, y), (x[:32], y[:32])):
        trainee.step(batch)
    alone.step((x, y), last=True)
    assert trainee.applied == 1
    assert torch.equal(weights(trainee.model), weights(alone.model))


def test_a_scale_that_has_fallen_to_zero_is_told_as_zero(digits_training):
    trainee = pupil(digits_training(), "16-mixed")
    trainee.scaler.scale(torch.ones(()))
    trainee.scaler.update(0.0)
    assert trainee.scale == 0.0


@pytest.mark.parametrize("own_step", [False, True])
def test_inputs_that_are_kept_reach_the_model_as_they_are(own_step):
    seen = set()

    class Clocked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(8, 4)

        def forward(self, x, t):
            seen.add((x.dtype, t.dtype))
            return self.body(x) * torch.sin(t).to(x.dtype).unsqueeze(1)

    def step(model, batch):
        return nn.functional.cross_entropy(model(*batch[:2]).float(), batch[2])

    torch.manual_seed(0)
    x, t, y = torch.randn(64, 8), 1000 * torch.rand(64), torch.randint(0, 4, (64,))
    training = Training(
        model=Clocked,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        loss=None if own_step else nn.functional.cross_entropy,
        training_step=step if own_step else None,
        train_data=[(x, t, y) if own_step else ((x, t), y)],
        eval_data=[((x, t), y)],
        keep_inputs=[1],
    )
    check(training, precision="bf16-true", seeds=2)
    assert seen == {(torch.float32, torch.float32), (torch.bfloat16, torch.float32)}


class _Shifted(nn.Module):
    """A layer used twice, its weight another one the second time (a fast weight)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2, bias=False)

    def forward(self, x):
        first = self.layer(x)
        with torch.no_grad():
            self.layer.weight.neg_()
        second = self.layer(x)
        with torch.no_grad():
            self.layer.weight.neg_()
        return first - second  # twice the first; nothing, where the weight is stale


class _OfLightning(_Shifted):
    """The same as a module that a Trainer runs, whose autocast keeps no casts."""

    def training_step(self, batch, index):
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _first_step(model, precision, place, **step):
    torch.manual_seed(0)
    batch = (torch.randn(32, 8), torch.zeros(32, 2))
    subject = Training(model=model, train_data=[batch], eval_data=[batch], epochs=1, **step)
    trainee = Trainee(subject, PRECISIONS[precision], 0, initial_state(subject, 0), place)
    with trainee.installed():
        loss = trainee.step(batch, last=True)
        subject = replace(subject, metric=lambda outputs, targets: outputs.abs().sum(-1))
        scored, _ = score(subject, trainee.model, trainee.precision, trainee.place, None)
    return loss, scored.value


@pytest.mark.parametrize("place", [EMULATED, Place(CPU, "cpu", emulated=True), NATIVE])
def test_a_weight_that_changes_inside_the_forward_pass_is_stale_under_autocast(place):
    step = {"loss": nn.MSELoss(), "optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}
    wide, scored = _first_step(_Shifted, "32-true", place, **step)
    assert wide > 0.1
    assert scored > 0.1
    torch.manual_seed(0)
    model, batch = _Shifted(), torch.randn(32, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        real = float(model(batch).detach().abs().max())
    loss, scored = _first_step(_Shifted, "bf16-mixed", place, **step)
    assert loss == scored == real == 0
    loss, scored = _first_step(_OfLightning, "bf16-mixed", place, loss=None, optimizer=None)
    assert loss == pytest.approx(wide, rel=0.05)
    assert scored > 0.1
