"""One training run: what it starts from, what a step does, and how it ends."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from pytest_fp16.engine.order import ordered
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.train import COLLAPSED, train
from pytest_fp16.engine.trainee import Amendment, Place, Trainee, initial_state
from pytest_fp16.precision import PRECISIONS, REFERENCE

CPU = torch.device("cpu")
EMULATED = Place(CPU, "cuda", emulated=True)
NATIVE = Place(CPU, "cpu", emulated=False)


@pytest.fixture(autouse=True)
def _state():
    with preserved_state():
        yield


def run(subject, precision="32-true", seed=0, place=EMULATED, **keywords):
    state = initial_state(subject, seed)
    return train(subject, PRECISIONS[precision], seed, state, place, **keywords)


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


@pytest.mark.parametrize("name", ["32-true", "16-true", "16-mixed", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("place", [EMULATED, NATIVE], ids=["emulated", "native"])
def test_every_precision_learns_and_keeps_its_dtypes(digits_training, name, place):
    result = run(digits_training(), name, place=place)
    precision = PRECISIONS[name]
    assert result.ended == "finished", result.error
    assert result.metric > 0.85
    held = "float32" if precision.mixed else precision.dtype_name
    assert result.state_dtypes == {"parameters": [held], "optimizer": [held]}
    assert result.dtypes[precision.dtype_name] > 0


def test_the_mixed_precisions_compute_in_both_formats(digits_training):
    for name in ("16-mixed", "bf16-mixed"):
        dtypes = run(digits_training(), name).dtypes
        assert dtypes["float32"] > 0
        assert dtypes[PRECISIONS[name].dtype_name] > 0


def test_pure_16_bit_optimizer_state_never_sees_float32(digits_training):
    result = run(digits_training(), "16-true")
    assert set(result.dtypes) == {"float16"}


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


def test_a_run_is_repeated_exactly(digits_training, digits):
    (x, y), _ = digits
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=64, shuffle=True
    )
    subject = digits_training(train_data=loader)
    first, second, other = run(subject), run(subject), run(subject, seed=1)
    assert first.losses == second.losses
    assert first.losses != other.losses


def test_dropout_drops_the_same_in_every_precision(digits_training):
    def noisy():
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))

    subject = digits_training(model=noisy, epochs=1)
    first = {}
    for name in ("32-true", "16-true", "bf16-mixed"):
        seen = []
        run(subject, name, tell=lambda epoch, step, loss, seen=seen: seen.append(loss))
        first[name] = seen[:3]
    # Another mask moves the loss by several per cent; rounding moves it by less than one.
    assert first["16-true"] == pytest.approx(first["32-true"], rel=2e-3)
    assert first["bf16-mixed"] == pytest.approx(first["32-true"], rel=1e-2)


def test_what_a_model_draws_does_not_move_the_data(digits):
    (x, y), _ = digits
    dataset = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True)
    plain = [y for _, y in ordered(loader, 0, 0)]
    greedy = [(y, torch.rand(1000))[0] for _, y in ordered(loader, 0, 0)]
    assert all(torch.equal(a, b) for a, b in zip(plain, greedy, strict=True))
    assert not torch.equal(plain[0], next(iter(ordered(loader, 0, 1)))[1])


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
        assert run(digits_training(model=Tied), name).metric > 0.8


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    )


@pytest.mark.parametrize("name", ["16-true", "bf16-mixed"])
def test_running_statistics_follow_those_of_float32(digits_training, name):
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


@pytest.mark.parametrize("keywords", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_adam_with_a_sound_epsilon_in_each_of_its_forms(digits_training, keywords):
    def adam(params):
        return torch.optim.Adam(params, lr=3e-3, eps=1e-4, **keywords)

    result = run(digits_training(optimizer=adam), "16-true")
    assert result.ended == "finished"
    assert result.metric > 0.75
    assert result.state_dtypes["optimizer"] == ["float16"]


def test_adams_default_epsilon_is_zero_in_float16(digits_training):
    subject = digits_training(optimizer=lambda params: torch.optim.Adam(params, lr=1e-3))
    assert run(subject).ended == "finished"
    result = run(subject, "16-true")
    assert result.ended == "nan"
    assert result.failed_at == (0, 0)


def test_an_optimizer_that_asks_for_the_loss_itself(digits_training, digits):
    (x, y), _ = digits
    subject = digits_training(
        optimizer=lambda params: torch.optim.LBFGS(params, lr=0.5, max_iter=8),
        train_data=[(x[:400], y[:400])],
        epochs=6,
    )
    result = run(subject)
    assert result.ended == "finished", result.error
    assert result.losses[-1] < 0.5 * result.losses[0]


def test_the_scaler_skips_and_goes_on(digits_training):
    def loud(outputs, targets):
        return 50 * nn.functional.cross_entropy(outputs, targets)

    gentle = lambda params: torch.optim.SGD(params, lr=0.002)  # noqa: E731
    result = run(digits_training(loss=loud, optimizer=gentle), "16-mixed")
    assert result.ended == "finished"
    assert result.skipped > 0
    assert result.scale == 2.0 ** (16 - result.skipped)


def test_a_loss_scale_that_only_falls_has_collapsed(digits_training):
    class Square(nn.Module):
        def forward(self, x):
            far = x * 1e3
            return far * far / 1e6

    def model():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), Square(), nn.Linear(64, 10))

    subject = digits_training(model=model, epochs=4)
    result = run(subject, "16-mixed")
    assert result.ended == "collapsed scale"
    assert result.skipped == COLLAPSED
    assert run(subject).ended == "finished"


def test_a_short_run_whose_every_step_was_skipped_has_lost_its_scale(digits_training):
    subject = digits_training(loss=lambda o, t: nn.functional.cross_entropy(o, t) * math.inf)
    short = replace(subject, train_data=subject.train_data[:3], epochs=1)
    assert run(short, "16-mixed").ended == "collapsed scale"


def test_a_loss_beyond_the_format_ends_the_run(digits_training):
    def far(outputs, targets):
        return (outputs - 300).square().mean() / 1e5

    subject = digits_training(loss=far)
    assert run(subject).ended == "finished"
    assert run(subject, "bf16-true").ended == "finished"
    assert run(subject, "16-true").ended == "nan"


def test_a_loss_that_runs_away_has_diverged(digits_training, digits):
    (x, _), (tx, _) = digits
    data = list(zip(x.split(64), x.flatten(1).sum(1, keepdim=True).split(64), strict=True))

    def subject(rate):
        return digits_training(
            model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 1)),
            optimizer=lambda params: torch.optim.SGD(params, lr=rate),
            loss=nn.functional.mse_loss,
            train_data=data,
            eval_data=[(tx, tx.flatten(1).sum(1, keepdim=True))],
        )

    result = run(subject(0.12))
    assert result.ended == "diverged"
    assert result.failed_at == (0, len(data) - 1)
    assert run(subject(0.01)).ended == "finished"


def test_what_a_16_bit_run_raises_is_its_end(digits_training):
    class Strict(nn.Module):
        def forward(self, x):
            if x.dtype == torch.float16:
                raise RuntimeError("no kernel for float16")
            return x

    def model():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Strict())

    result = run(digits_training(model=model), "16-true")
    assert result.ended == "raised"
    assert result.error == "RuntimeError: no kernel for float16"
    assert run(digits_training(model=model)).ended == "finished"


def test_a_constant_loss_scale_is_taken_out_of_the_gradients(digits_training):
    subject = digits_training()
    plain, scaled = (
        run(subject, "16-true", amendment=Amendment(loss_scale=scale)) for scale in (None, 64.0)
    )
    assert scaled.losses == pytest.approx(plain.losses, rel=1e-2)


def test_the_users_own_training_step(digits_training):
    def step(model, batch):
        x, y = batch
        return nn.functional.cross_entropy(model(x), y)

    plain = run(digits_training())
    assert run(digits_training(loss=None, training_step=step)).losses == plain.losses


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
    result = run(subject, "16-mixed")
    assert result.ended == "finished", result.error
    assert result.metric > 0.8
    trainee = trained(subject, epochs=1)
    assert trainee.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.9**trainee.applied)


def test_regression_is_judged_by_r_squared(digits_training, digits):
    (x, _), (tx, _) = digits
    target = x.flatten(1).mean(1, keepdim=True)
    subject = digits_training(
        model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 1)),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.01),
        loss=nn.functional.mse_loss,
        train_data=list(zip(x.split(64), target.split(64), strict=True)),
        eval_data=[(tx, tx.flatten(1).mean(1, keepdim=True))],
        epochs=10,
    )
    result = run(subject, "16-true")
    assert result.score.name == "R²"
    assert result.metric == pytest.approx(run(subject).metric, abs=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["16-true", "16-mixed", "bf16-true", "bf16-mixed"])
def test_native_training_on_a_gpu(digits_training, name):
    place = Place(torch.device("cuda"), "cuda", emulated=False)
    subject = digits_training(model=convolutional)
    native, emulated = run(subject, name, place=place), run(subject, name)
    assert native.ended == "finished", native.error
    assert native.metric == pytest.approx(emulated.metric, abs=0.03)
