"""Make the pictures of docs/explanation/theory.md: ``python docs/pictures/make.py``.

The second and third come from a real run: the network of examples/digits, trained here, its theory
pass, and its 16-bit candidates.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "examples" / "digits"))

from digit_models import CNN, train  # noqa: E402

from pytest_fp16 import Evaluation  # noqa: E402
from pytest_fp16.engine.candidate import Candidate  # noqa: E402
from pytest_fp16.engine.prediction.theory_pass import TheoryPass  # noqa: E402
from pytest_fp16.precision import precision  # noqa: E402
from pytest_fp16.task import Task  # noqa: E402
from pytest_fp16.theory.flips import FlipCount, distribution, flip_probability  # noqa: E402
from pytest_fp16.theory.rounding import BFLOAT16, FLOAT16, ulp  # noqa: E402
from pytest_fp16.theory.standardised import GRANTED_SPREAD  # noqa: E402

COLOURS = {"float16": "#1b6ca8", "bfloat16": "#c8553d"}
TRAINED_ON = 1197


def save(figure: plt.Figure, name: str) -> None:
    """Write an SVG that does not change from run to run."""
    figure.savefig(HERE / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def spacing() -> None:
    """Relative spacing of both formats against the value."""
    values = torch.logspace(-10, 5.2, 4000, dtype=torch.float64).float()
    figure, axes = plt.subplots(figsize=(7, 3.4))
    for fmt in (FLOAT16, BFLOAT16):
        inside = values < fmt.overflow_threshold
        relative = (ulp(values, fmt) / values)[inside]
        axes.loglog(values[inside], relative, color=COLOURS[fmt.name], label=fmt.name)
    axes.axvline(FLOAT16.largest, color=COLOURS["float16"], linestyle=":")
    axes.annotate("65504: float16 overflows", (FLOAT16.largest, 1), ha="right", fontsize=8)
    axes.axvline(FLOAT16.smallest_normal, color=COLOURS["float16"], linestyle=":")
    axes.annotate("2⁻¹⁴: below, the spacing is constant", (2.0**-13.8, 3), fontsize=8)
    axes.set(xlabel="value y", ylabel="ulp(y) / y", ylim=(2e-4, 20))
    axes.legend(loc="center right")
    save(figure, "ulp")


class Run:
    """Predictions and errors of one format on the digits no model was trained on."""

    def __init__(self, model: torch.nn.Module, x: Tensor, name: str) -> None:
        self.chosen = precision(name)
        subject = Evaluation(model=model, data=[x], labelled=False)
        task = Task("classification")
        cpu = torch.device("cpu")

        def candidate() -> Candidate:
            return Candidate(_copy(model), self.chosen, subject, cpu, "cuda")

        theory = TheoryPass(candidate().model, self.chosen, "cuda", cpu, subject, task)
        with torch.no_grad():
            reference = task.canonical(model(x))
        said = theory.run(x, len(x), reference, seed=0)
        actual = task.canonical(candidate().outputs(x, 0, emulated=True))
        self.margin, self.sigma = said.margin[:, 0].numpy(), said.sigma[:, 0].numpy()
        self.error = (task.margins(actual, reference) - said.margin)[:, 0].numpy()
        self.flips = int((actual.argmax(-1) != reference.argmax(-1)).sum())


def _copy(model: torch.nn.Module) -> torch.nn.Module:
    twin = CNN()
    twin.load_state_dict(model.state_dict())
    return twin


def errors(runs: list[Run]) -> None:
    """Actual error against predicted σ, one point an input."""
    figure, axes = plt.subplots(figsize=(7, 3.8))
    for run in runs:
        name = run.chosen.dtype_name
        spread = np.sqrt(np.mean((run.error / run.sigma) ** 2))
        label = f"{name}: root mean square of error/σ {spread:.2f}"
        axes.loglog(
            run.sigma, np.abs(run.error), ".", markersize=3, color=COLOURS[name], label=label
        )
    ends = np.array(axes.get_xlim())
    for factor, style in ((1, "-"), (4, "--")):
        axes.plot(ends, factor * ends, style, color="black", linewidth=1, label=f"{factor} σ")
    axes.set(xlabel="predicted σ of the margin", ylabel="|actual error| of the margin", xlim=ends)
    axes.set_ylim(bottom=1e-6)
    axes.legend(fontsize=8)
    save(figure, "error")


def flips(run: Run) -> None:
    """The number of flips that theory expects, and what happened."""
    chances = flip_probability(run.margin, run.sigma)
    granted = flip_probability(run.margin, GRANTED_SPREAD * run.sigma)
    pmf, count = distribution(chances), FlipCount()
    count.add(granted)
    allowed = count.allowed()
    shown = range(max(allowed, run.flips) + 3)
    figure, axes = plt.subplots(figsize=(7, 3))
    heights = [pmf[k] if k < len(pmf) else 0.0 for k in shown]
    axes.bar(shown, heights, color=COLOURS[run.chosen.dtype_name])
    axes.axvline(allowed + 0.5, color="black", linestyle="--", label="flips allowed")
    axes.plot([run.flips], [0], "v", color="black", markersize=9, label="what happened")
    axes.set(
        xlabel=f"flips among {len(run.margin)} digits ({run.chosen.name})", ylabel="probability"
    )
    axes.legend()
    save(figure, "flips")


def main() -> None:
    """Train, run and draw."""
    mpl.rcParams["svg.hashsalt"] = "pytest-fp16"
    torch.set_num_threads(1)
    raw = load_digits()
    order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(raw.images, dtype=torch.float32)[order].unsqueeze(1) * (255 / 16)
    y = torch.tensor(raw.target)[order]
    torch.manual_seed(0)
    pairs = zip(x[:TRAINED_ON].split(50), y[:TRAINED_ON].split(50), strict=True)
    model = train(CNN(), list(pairs))
    runs = [Run(model, x[TRAINED_ON:], name) for name in ("bf16-true", "16-true")]
    spacing()
    errors(runs)
    flips(runs[0])


if __name__ == "__main__":
    main()
