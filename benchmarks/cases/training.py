"""Planted training failures, and healthy trainings, each in the precisions that are claimed.

The failures are of the kinds that fill public issue trackers: an optimizer's epsilon that rounds to
zero, a loss that under- or overflows, statistics and averages that stop moving, log(0), a mask
constant, a count that leaves the range. Labels were written down by analysis and then confirmed by
`benchmarks.cases.training_judge`, which trains in the native 16-bit kernels of the CPU and shares
no code with pytest-fp16; they were never fitted to its verdicts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.data import batches


@dataclass(frozen=True)
class TrainingCase:
    """A training, the precisions in which it must fail, and those in which it must not."""

    name: str
    build: Callable[[], dict[str, Any]]
    fails: tuple[str, ...]
    sound: tuple[str, ...]
    about: str

    @property
    def origin(self) -> str:
        """Where it was written: ``"planted"``, ``"held out"`` or, after others, ``"reported"``."""
        home = self.build.__module__.rpartition(".")[2]
        kinds = {"training_heldout": "held out", "training": "planted"}
        return kinds.get(home, "reported")

    def training(self, **changes: Any) -> Any:
        """What a user would hand in."""
        from pytest_fp16 import Training

        return Training(**{"name": self.name, **self.build(), **changes})


CASES: dict[str, TrainingCase] = {}
#: The modules in which there are more.
MODULES = (
    *("heldout", "reported", "reported_losses", "reported_models", "reported_more"),
    *("reported_optimizers", "reported_others", "reported_sound", "reported_steps"),
    *("reported_pictures", "reported_densities", "reported_agents", "reported_habits"),
    *("reported_objectives", "reported_worlds", "reported_updates", "reported_rest"),
    *("reported_choices", "reported_fields", "reported_schools"),
    *("reported_measures", "reported_transports", "reported_chances", "reported_grids"),
    *("reported_mended", "reported_repairs", "reported_kept"),
    *("reported_kinds", "reported_likelihoods", "reported_relations"),
    *("reported_paths", "reported_answers", "reported_crowds"),
    *("reported_habitats", "reported_views", "reported_lessons"),
    *("reported_engines", "reported_ledgers", "reported_likenesses"),
    *("reported_colours", "reported_gates", "reported_chains"),
    *("reported_rates", "reported_sources", "reported_strides", "reported_stakes"),
    *("reported_units", "reported_scales", "reported_terms", "reported_turns"),
    *("reported_orders", "reported_wirings"),
)


def load() -> dict[str, TrainingCase]:
    """The cases of all modules, by name."""
    for name in MODULES:
        importlib.import_module(f"benchmarks.cases.training_{name}")
    return CASES


def case(fails: str = "", sound: str = "") -> Callable[..., Any]:
    """Register a function that returns the arguments of a Training."""

    def register(build: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        name = build.__name__
        if name in CASES:
            raise ValueError(f"two trainings are called {name}")
        about = (build.__doc__ or "").split("\n")[0]
        CASES[name] = TrainingCase(name, build, tuple(fails.split()), tuple(sound.split()), about)
        return build

    return register


SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def mlp(inputs: int = 64, hidden: int = 64, outputs: int = 10, *tail: nn.Module) -> nn.Module:
    layers = [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs), *tail]
    return nn.Sequential(nn.Flatten(), *layers)


def cnn(momentum: float = 0.1) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=momentum), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16, momentum=momentum), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )


def recipe(model: Callable[[], nn.Module] = mlp, scale: float = 1.0, **changes: Any) -> dict:
    """Digits for ten epochs with SGD and cross entropy, unless changed."""
    (x, y), (a, b) = data.digits()
    size = changes.pop("size", 64)
    given = {"optimizer": SGD, "loss": F.cross_entropy, "epochs": 10, "model": model}
    given["train_data"] = batches(x * scale, y, size=size)
    given["eval_data"] = batches(a * scale, b, size=200)
    return {**given, **changes}


def raw_tabular(**changes: Any) -> dict:
    """Breast-cancer measurements in their own units."""
    (x, y), (a, b) = data.tabular()
    given = {"optimizer": SGD, "loss": F.cross_entropy, "epochs": 15}
    given["train_data"], given["eval_data"] = batches(x, y, size=32), batches(a, b, size=128)
    return {**given, **changes}


class Stream:
    """Batches in a fixed order (a list would be shuffled)."""

    def __init__(self, parts: list) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> tuple:
        return self.parts[index]


# Planted: the optimizer ---------------------------------------------------------------------------


@case("16-true", "bf16-mixed 16-mixed")
def adam_epsilon() -> dict:
    """Adam's default eps of 1e-8 is zero in float16: 0/0 where a gradient is zero."""
    return recipe(optimizer=partial(torch.optim.Adam, lr=2e-3))


@case("16-true")
def adamw_epsilon_cnn() -> dict:
    """The same in a convolutional network with AdamW."""
    return recipe(cnn, optimizer=partial(torch.optim.AdamW, lr=2e-3), epochs=5)


@case("16-true", "bf16-mixed")
def rmsprop_epsilon() -> dict:
    """RMSprop's eps of 1e-8 in float16."""
    return recipe(optimizer=partial(torch.optim.RMSprop, lr=1e-3))


@case("16-true", "16-mixed")
def adagrad_epsilon() -> dict:
    """Adagrad's eps of 1e-10 in float16."""
    return recipe(optimizer=partial(torch.optim.Adagrad, lr=1e-2))


@case("bf16-true", "bf16-mixed")
def frozen_second_moment() -> dict:
    """One bad batch at the start fills Adam's second moment; bfloat16 cannot decay it any more."""
    given = recipe(
        size=32, epochs=1, optimizer=partial(torch.optim.Adam, lr=2e-3, betas=(0.9, 0.997))
    )
    first, *rest = given["train_data"]
    return {**given, "train_data": Stream([(first[0] * 2000, first[1]), *(rest * 120)])}


@case("bf16-true", "bf16-mixed")
def lost_updates() -> dict:
    """Plain SGD at a small rate: in bfloat16 most steps are below half an ulp of the weights."""
    return recipe(optimizer=partial(torch.optim.SGD, lr=3e-3), size=16, epochs=25)


# Planted: statistics and averages -----------------------------------------------------------------


@case("bf16-true", "bf16-mixed")
def frozen_statistics() -> dict:
    """BatchNorm with a momentum of 0.003: in bfloat16 the running variance never leaves 1."""
    return recipe(lambda: cnn(0.003), scale=0.3, size=16, epochs=25)


class Averaged(nn.Module):
    """Evaluates with an exponential average of its weights."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.body, self.mean = mlp(), mlp().requires_grad_(False)
        self.decay = decay
        self.mean.load_state_dict(self.body.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.mean(x)
        with torch.no_grad():
            for kept, new in zip(self.mean.parameters(), self.body.parameters(), strict=True):
                kept.mul_(self.decay).add_(new, alpha=1 - self.decay)
        return self.body(x)


@case("bf16-true", "bf16-mixed 16-mixed")
def lost_averages() -> dict:
    """An average of weights with decay 0.998: (1 - decay) is below bfloat16's half ulp."""
    return recipe(lambda: Averaged(0.998), size=16, epochs=25, optimizer=partial(SGD, lr=0.02))


# Planted: the loss --------------------------------------------------------------------------------


@case("16-true")
def tiny_loss() -> dict:
    """A loss in small units with a rate to match: its gradients underflow in float16."""
    scaled = lambda z, y: F.cross_entropy(z, y) * 1e-6  # noqa: E731
    return recipe(loss=scaled, optimizer=partial(torch.optim.SGD, lr=1e5))


@case("16-mixed", "bf16-mixed")
def tiny_loss_mixed() -> dict:
    """A loss so small that a scale of 65536 does not lift its gradients into float16's range."""
    scaled = lambda z, y: F.cross_entropy(z, y) * 1e-12  # noqa: E731
    return recipe(loss=scaled, optimizer=partial(torch.optim.SGD, lr=1e11))


@case("16-true", "bf16-mixed")
def rmse_overflow() -> dict:
    """A RMSE of values in the hundreds: the squares overflow, and the root's slope is 0."""
    (x, y), (a, b) = data.digits()
    target = lambda y: y.float().unsqueeze(1) * 150  # noqa: E731
    rooted = lambda z, t: (z - t).square().mean().sqrt()  # noqa: E731
    make = lambda: mlp(64, 64, 1)  # noqa: E731
    train, test = batches(x, target(y), size=64), batches(a, target(b), size=200)
    adam = partial(torch.optim.SGD, lr=3.0)
    return recipe(
        make, loss=rooted, train_data=train, eval_data=test, task="regression", optimizer=adam
    )


@case("16-true 16-mixed")
def log_of_probability() -> dict:
    """log(1 - p + 1e-12) where p has rounded to 1 in float16."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        p, t = torch.sigmoid(4 * z), F.one_hot(y, 10).to(z.dtype)
        return -(t * torch.log(p + 1e-12) + (1 - t) * torch.log(1 - p + 1e-12)).mean()

    return recipe(loss=loss, epochs=15)


@case("16-true")
def kl_epsilon() -> dict:
    """A Kullback-Leibler loss that adds 1e-10 inside its logs: zero times log(0) in float16."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        p, t = torch.softmax(z, -1), F.one_hot(y, 10).to(z.dtype)
        return (t * (torch.log(t + 1e-10) - torch.log(p + 1e-10))).sum(-1).mean()

    return recipe(loss=loss)


@case("16-true", "bf16-true bf16-mixed")
def count_overflow() -> dict:
    """A masked mean over a full batch: more than 65504 valid pixels are counted in float16."""
    (x, _), (a, _) = data.digits()
    train, test = [(x, x.flatten(1))] * 4, [(a, a.flatten(1))]

    def loss(z: Tensor, t: Tensor) -> Tensor:
        valid = torch.ones_like(z)
        return ((z - t).square() * valid).sum() / valid.sum()

    given = {"task": "regression", "epochs": 25, "optimizer": partial(torch.optim.SGD, lr=5.0)}
    return recipe(lambda: mlp(64, 32, 64), loss=loss, train_data=train, eval_data=test, **given)


@case("16-true", "bf16-true bf16-mixed")
def dice_overflow() -> dict:
    """A soft Dice loss whose squared sums run over the whole batch at 255 per foreground pixel."""
    (x, _), (a, _) = data.digits()
    mask = lambda x: (x.flatten(1) > 0.5).float()  # noqa: E731
    train, test = batches(x, mask(x), size=200), batches(a, mask(a), size=200)

    def loss(z: Tensor, t: Tensor) -> Tensor:
        p = torch.sigmoid(z) * 255
        t = t * 255
        return 1 - 2 * (p * t).sum() / (p.square().sum() + t.square().sum() + 1e-6)

    given = {"task": "multilabel", "epochs": 20, "optimizer": partial(SGD, lr=1.0)}
    return recipe(lambda: mlp(64, 32, 64), loss=loss, train_data=train, eval_data=test, **given)


# Planted: inside the model ------------------------------------------------------------------------


class By(nn.Module):
    """A module made of a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def before(function: Callable[[Tensor], Tensor], inputs: int = 64) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Flatten(), By(function), mlp(inputs))


@case("16-true", "bf16-true bf16-mixed")
def standardise_epsilon() -> dict:
    """Features over √(var + 1e-8): some pixels never vary, and 0/0 is left in float16."""
    scale = lambda x: (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-8).sqrt()  # noqa: E731
    return recipe(before(scale))


@case("16-true", "bf16-true bf16-mixed 16-mixed")
def norm_overflow() -> dict:
    """Inputs of 0 to 255 over their own norm, by hand: the squares' sum overflows."""
    unit = lambda x: 8 * x / x.pow(2).sum(-1, keepdim=True).sqrt()  # noqa: E731
    return recipe(before(unit), scale=255.0)


class RMSNorm(nn.Module):
    """T5's norm without its upcast."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)


@case("16-true 16-mixed", "bf16-true bf16-mixed")
def rms_overflow() -> dict:
    """T5's norm without its upcast after a layer whose activations are in the thousands."""
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 64), RMSNorm(64), mlp())  # noqa: E731
    return recipe(make, scale=4000.0, optimizer=partial(SGD, lr=0.02))


@case("16-true", "bf16-true bf16-mixed")
def exponential_overflow() -> dict:
    """A cosine classifier at temperature 0.05 that exponentiates by hand: exp(20) is infinite."""

    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.proto = mlp(64, 64, 32), nn.Parameter(torch.randn(10, 32))

        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(self.body(x), dim=-1) @ F.normalize(self.proto, dim=-1).T

    def loss(z: Tensor, y: Tensor) -> Tensor:
        e = torch.exp(z / 0.05)
        return -torch.log(e.gather(-1, y[:, None]).squeeze(-1) / e.sum(-1)).mean()

    return recipe(Cosine, loss=loss, epochs=12)


class Pooled(nn.Module):
    """Attention pooling over words; padding is masked with a constant."""

    def __init__(self, mask: float) -> None:
        super().__init__()
        self.words, self.score, self.head = (
            nn.Embedding(1200, 32),
            nn.Linear(32, 1),
            nn.Linear(32, 8),
        )
        self.mask = mask

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        score = self.score(x).squeeze(-1).masked_fill(ids == 0, self.mask)
        return self.head((score.softmax(-1).unsqueeze(-1) * x).sum(1))


def text(model: Callable[[], nn.Module], **changes: Any) -> dict:
    (x, y), (a, b) = data.text_split()
    given = {"loss": F.cross_entropy, "epochs": 4, "optimizer": partial(torch.optim.SGD, lr=1.0)}
    given["train_data"], given["eval_data"] = batches(x, y, size=64), batches(a, b, size=200)
    return {"model": model, **given, **changes}


@case("16-true 16-mixed", "bf16-true bf16-mixed")
def mask_constant() -> dict:
    """Padding masked with -1e9, which float16 does not have."""
    return text(lambda: Pooled(-1e9))


@case("16-true 16-mixed", "bf16-mixed")
def square_overflow() -> dict:
    """Squared features of raw measurements: 10⁷ in a network that float16 holds to 65504."""
    square = By(lambda x: x * x / 1e6)
    make = lambda: nn.Sequential(nn.Linear(30, 30), square, nn.BatchNorm1d(30), mlp(30, 32, 2))  # noqa: E731
    return raw_tabular(model=make)


@case("16-true bf16-true", "bf16-mixed")
def one_pass_variance() -> dict:
    """E[x²] - E[x]² of pixels around 100: the difference of two rounded squares goes below zero."""

    def standard(x: Tensor) -> Tensor:
        x = x + 100
        mean, square = x.mean(-1, keepdim=True), (x * x).mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(square - mean * mean + 1e-3)

    return recipe(before(standard), scale=4.0)


# Healthy ------------------------------------------------------------------------------------------

TRUE, MIXED = "16-true bf16-true", "16-mixed bf16-mixed"


@case(sound=f"{TRUE} {MIXED}")
def plain_mlp() -> dict:
    """A perceptron with momentum SGD."""
    return recipe()


@case(sound=f"{TRUE} {MIXED}")
def plain_cnn() -> dict:
    """Convolutions and BatchNorm."""
    return recipe(cnn, epochs=5)


@case(sound="16-true")
def adam_safe_epsilon() -> dict:
    """Adam in float16 with an epsilon that the format holds."""
    return recipe(optimizer=partial(torch.optim.Adam, lr=2e-3, eps=1e-4))


@case(sound="bf16-true bf16-mixed 16-mixed")
def adam_default() -> dict:
    """Adam as it comes, where its epsilon is no problem."""
    return recipe(optimizer=partial(torch.optim.Adam, lr=2e-3))


@case(sound=f"{TRUE} {MIXED}")
def dropout() -> dict:
    """A perceptron with dropout."""
    make = lambda: nn.Sequential(mlp(64, 96, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))  # noqa: E731
    return recipe(make)


@case(sound=f"{TRUE} {MIXED}")
def layer_norm() -> dict:
    """Residual blocks with LayerNorm and GELU."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 96), nn.Linear(96, 64)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(F.gelu(self.up(self.norm(x))))

    def make() -> nn.Module:
        blocks = (Block(), Block(), nn.LayerNorm(64), nn.Linear(64, 10))
        return nn.Sequential(nn.Flatten(), *blocks)

    return recipe(make, optimizer=partial(SGD, lr=0.05))


@case(sound="16-mixed bf16-mixed")
def text_pooling() -> dict:
    """Words, attention pooling and Adam, masked with a constant that both formats hold."""
    return text(lambda: Pooled(-1e4), optimizer=partial(torch.optim.Adam, lr=5e-3))


@case(sound=f"{TRUE} {MIXED}")
def regression() -> dict:
    """A mean squared error on standardised values."""
    (x, y), (a, b) = data.digits()
    target = lambda y: (y.float().unsqueeze(1) - 4.5) / 2.9  # noqa: E731
    train, test = batches(x, target(y), size=64), batches(a, target(b), size=200)
    given = {"task": "regression", "loss": F.mse_loss, "optimizer": partial(SGD, lr=0.05)}
    return recipe(lambda: mlp(64, 64, 1), train_data=train, eval_data=test, **given)


@case(sound=f"{TRUE} {MIXED}")
def multilabel() -> dict:
    """Binary cross entropy on logits: which pixels are bright."""
    (x, _), (a, _) = data.digits()
    bright = lambda x: (x.flatten(1) > 0.5).float()  # noqa: E731
    train, test = batches(x, bright(x), size=64), batches(a, bright(a), size=200)
    given = {"task": "multilabel", "loss": F.binary_cross_entropy_with_logits}
    return recipe(lambda: mlp(64, 32, 64), train_data=train, eval_data=test, **given)


@case(sound=f"{TRUE} {MIXED}")
def scheduled_and_clipped() -> dict:
    """A cosine schedule, clipping, label smoothing and gradients added up over two batches."""
    cosine = lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10)  # noqa: E731
    smooth = partial(F.cross_entropy, label_smoothing=0.1)
    return recipe(loss=smooth, scheduler=cosine, clip_grad_norm=1.0, accumulate=2)


@case(sound=f"{TRUE} {MIXED}")
def standard_tabular() -> dict:
    """Standardised measurements and BatchNorm."""
    (x, y), (a, b) = data.tabular()
    mean, spread = x.mean(0), x.std(0)
    train = batches((x - mean) / spread, y, size=32)
    test = batches((a - mean) / spread, b, size=128)
    make = lambda: nn.Sequential(nn.BatchNorm1d(30), mlp(30, 32, 2))  # noqa: E731
    return raw_tabular(
        model=make, train_data=train, eval_data=test, optimizer=partial(SGD, lr=0.02)
    )


class Tied(nn.Module):
    """An autoencoder that decodes with its encoder's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bias = nn.Linear(64, 24), nn.Parameter(torch.zeros(64))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encoder(x.flatten(1))), self.encoder.weight.T, self.bias)


@case(sound=f"{TRUE} {MIXED}")
def tied_autoencoder() -> dict:
    """Tied weights."""
    (x, _), (a, _) = data.digits()
    train, test = batches(x, x.flatten(1), size=64), batches(a, a.flatten(1), size=200)
    given = {"task": "regression", "loss": F.mse_loss, "optimizer": partial(SGD, lr=0.5)}
    return recipe(Tied, train_data=train, eval_data=test, **given)
