"""The paper's MNIST study: δ against Γ of a float16 network and its float32 twin.

δ(x) is the largest difference between their probabilities, Γ(x) the float32 network's largest
probability less its second; where Γ > 2δ they must agree (the lemma). The twins here start from the
same weights and see the same batches, on Fashion-MNIST, because MNIST itself cannot be had offline.
Three pairs are compared on its 10,000 test images: trained apart in the two precisions (the paper's
pair), the float32 network merely evaluated in float16, and two float32 networks whose seeds differ.
Without a GPU the float16 arithmetic is emulated. Writes a result and a picture.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import common, data
from benchmarks.models import MLP
from benchmarks.paper.data import Batches
from pytest_fp16 import Training
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.training.place import Amendment, Place
from pytest_fp16.engine.training.score import score
from pytest_fp16.engine.training.train import train
from pytest_fp16.engine.training.trainee import initial_state
from pytest_fp16.precision import precision

PAIRS = (
    "trained apart: float16 and float32",
    "one float32 network, evaluated in float16",
    "trained apart: float32, two seeds",
)


@dataclass(frozen=True)
class Pair:
    """What two networks say of the same images.

    Attributes:
        delta, gamma: δ and Γ of each image, [N].
        flips: which images get another class, [N].
    """

    delta: Tensor
    gamma: Tensor
    flips: Tensor

    @property
    def certified(self) -> Tensor:
        """Where the lemma says that both must agree, [N]."""
        return self.gamma > 2 * self.delta


def compare(candidate: Tensor, reference: Tensor) -> Pair:
    """The pair of two sets of logits [N, C]; probabilities in double precision."""
    p, q = candidate.double().softmax(-1), reference.double().softmax(-1)
    first, second = q.topk(2).values.unbind(-1)
    return Pair((p - q).abs().amax(-1), first - second, p.argmax(-1) != q.argmax(-1))


def subject(epochs: int, count: int) -> Training:
    """Two hidden layers of 256; the authors' recipe of SGD 0.01, momentum 0.9, batches of 256."""
    x, y = data.fashion("train")
    return Training(
        model=MLP,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
        loss=F.cross_entropy,
        train_data=Batches(x[:count], y[:count], 256, shuffle=True),
        eval_data=Batches(*data.fashion("test"), 1000, shuffle=False),
        epochs=epochs,
    )


def trained(training: Training, name: str, seed: int, place: Place) -> tuple[Tensor, float, Any]:
    """Test logits, accuracy and weights of a network trained at that precision."""
    kept: list[torch.nn.Module] = []
    result = train(
        training,
        precision(name),
        seed,
        initial_state(training, seed),
        place,
        amendment=Amendment(model=kept.append),
    )
    if result.broke or result.score is None:
        raise RuntimeError(f"the training in {name} broke: {result.ended} {result.error or ''}")
    return result.score.predictions[:, 0], result.score.value, kept[0]


def in_float16(training: Training, model: torch.nn.Module, place: Place) -> tuple[Tensor, float]:
    """Test logits and accuracy of a float32 network cast to float16."""
    found, _ = score(training, model.half(), precision("16-true"), place, None)
    return found.predictions[:, 0], found.value


def studied(seed: int, training: Training, place: Place) -> tuple[list[Pair], dict[str, float]]:
    """The three pairs of one seed, and the accuracies behind them."""
    with preserved_state():
        full, full_accuracy, model = trained(training, "32-true", seed, place)
        half, half_accuracy, _ = trained(training, "16-true", seed, place)
        other, other_accuracy, _ = trained(training, "32-true", seed + 1000, place)
        cast, cast_accuracy = in_float16(training, model, place)
    pairs = [compare(candidate, full) for candidate in (half, cast, other)]
    said = {"32": full_accuracy, PAIRS[0]: half_accuracy, PAIRS[1]: cast_accuracy}
    return pairs, {**said, PAIRS[2]: other_accuracy}


def row(name: str, pairs: list[Pair], accuracies: list[dict[str, float]]) -> list[str]:
    """One line of the result, over all seeds."""
    delta = torch.cat([p.delta for p in pairs])
    certified = torch.cat([p.certified for p in pairs])
    flips = torch.cat([p.flips for p in pairs])
    loss = [100 * (a["32"] - a[name]) for a in accuracies]
    spread = np.std(loss, ddof=1) if len(loss) > 1 else 0.0
    return [
        name,
        f"{np.mean(loss):+.2f} ± {spread:.2f}",
        f"{delta.median():.1e}",
        f"{delta.quantile(0.99):.1e}",
        f"{delta.max():.1e}",
        common.share(int(certified.sum()), len(certified)),
        f"{int(flips.sum())}",
        f"{int((flips & certified).sum())}",
    ]


def picture(first: list[Pair], path: Any) -> None:
    """Distributions of δ and Γ, and each image's δ against its Γ beside the lemma's line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    bins = np.geomspace(1e-7, 1, 71)
    colours = ("tab:red", "tab:blue", "tab:grey")
    for name, pair, colour in zip(PAIRS, first, colours, strict=True):
        shown = pair.delta.clamp(min=1e-7).numpy()
        left.hist(shown, bins, histtype="step", color=colour, label=f"δ, {name}")
    gamma = first[0].gamma.clamp(min=1e-7).numpy()
    left.hist(gamma, bins, color="gold", alpha=0.5, label="Γ of the float32 network")
    left.set(xscale="log", xlabel="δ, Γ", ylabel="test images")
    left.legend(fontsize=7, loc="upper left")
    pair = first[0]
    for mask, colour, label in (
        (pair.certified, "tab:blue", "certified"),
        (~pair.certified & ~pair.flips, "tab:orange", "not certified, same class"),
        (pair.flips, "tab:red", "another class"),
    ):
        x, y = pair.gamma[mask].clamp(min=1e-6), pair.delta[mask].clamp(min=1e-7)
        right.scatter(x, y, s=3, c=colour, label=f"{label}: {int(mask.sum())}")
    edge = np.geomspace(1e-6, 1, 50)
    right.plot(edge, edge / 2, "k--", linewidth=1, label="Γ = 2δ")
    right.set(xscale="log", yscale="log", xlabel="Γ", ylabel="δ", title=PAIRS[0])
    right.legend(fontsize=7, loc="upper left")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Train the pairs over seeds, write the table and the picture of the first seed."""
    options = common.options(
        __doc__,
        ("--seeds", {"type": int, "default": 3}),
        ("--epochs", {"type": int, "default": 10}),
        ("--device", {"default": "cuda" if torch.cuda.is_available() else "cpu"}),
    )
    count, epochs, seeds = 60_000, options.epochs, options.seeds
    if options.quick:
        count, epochs, seeds = 2560, 1, 1
    place = Place(torch.device(options.device), "cuda", emulated=options.device == "cpu")
    training, start = subject(epochs, count), time.perf_counter()
    found = [studied(seed, training, place) for seed in range(seeds)]
    accuracies = [said for _, said in found]
    rows = [row(name, [pairs[i] for pairs, _ in found], accuracies) for i, name in enumerate(PAIRS)]
    full = [100 * said["32"] for said in accuracies]
    how = "emulated" if place.emulated else "native"
    if not options.quick:
        common.RESULTS.mkdir(exist_ok=True)
        picture(found[0][0], common.RESULTS / "paper-mnist.png")
    common.write(
        "paper-mnist",
        "δ against Γ of a float16 and float32 pair, on Fashion-MNIST for want of MNIST",
        f"A network of 784-256-256-10, {epochs} epochs, {seeds} seed(s), 10,000 test images each; "
        f"float16 {how}. The float32 network reaches {np.mean(full):.2f} %. The lemma was broken "
        f"by {sum(int(r[-1]) for r in rows)} images (it is a theorem: any would be a mistake of "
        f"ours). {time.perf_counter() - start:.0f} s.",
        ("pair", "loss, points", "median δ", "99 % of δ below", "largest δ",
         "certified by the lemma", "another class", "certified, another class"),
        rows,
        "![δ and Γ](paper-mnist.png)\n\nThe picture shows the first seed.",
        quick=options.quick,
    )  # fmt: skip


if __name__ == "__main__":
    main()
