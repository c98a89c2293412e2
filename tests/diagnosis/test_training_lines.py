"""A line of a training's own code in float32, and all of its function, as cures."""

import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import check
from pytest_fp16.diagnosis.training_lines import at_its_line, at_the_steps_line, function_of
from pytest_fp16.diagnosis.upcast import Upcast
from pytest_fp16.precision import PRECISIONS
from pytest_fp16.report.model import Culprit


def guarded(x):
    length = (x * 0).norm(dim=-1, keepdim=True) + 1e-8
    return x * 0 / length


class Guarded(nn.Module):
    """What guards its division is lost a line before it."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x):
        h = self.body(x.flatten(1)).relu()
        return self.head(h + guarded(h))


def at(line, mechanism="eps-underflow", module="", variant=None):
    return Culprit(
        module=module,
        operation="div",
        mechanism=mechanism,
        evidence="",
        source=line,
        variant=variant,
    )


FIRST = guarded.__code__.co_firstlineno
LINE = f"{__file__}:{FIRST + 2}"


def test_the_function_of_a_line():
    assert function_of(LINE) == ("guarded", f"{__file__}:{FIRST + 1}-{FIRST + 2}")
    assert function_of(f"{__file__}:3") is None
    assert function_of("nowhere.py:3") is None


def test_it_follows_the_line():
    for name in ("16-true", "16-mixed"):
        proposed = at_its_line(Guarded(), PRECISIONS[name], at(LINE))
        line, around = (p.description for p in proposed)
        outside = ", outside autocast" * PRECISIONS[name].mixed
        assert line == (
            f"compute all of {LINE} in float32{outside}, from what the line reads on, its casts "
            "included, and cast back only where a layer takes the result"
        )
        assert around.startswith("compute all of guarded but its products in float32")


def test_behind_a_line_without_a_kernel_its_function_is_tried():
    found = at_its_line(Guarded(), PRECISIONS["16-true"], at(LINE, "unsupported-op"))
    assert ["all of guarded" in p.description for p in found] == [False, True]


class Whitened(nn.Module):
    """Solves without a kernel, and behind a product takes a logarithm of what is zero in 16 bits.

    Each of the two lines is in vain without the other.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("mixing", torch.eye(64) * 0.5)
        bank = torch.randn(64, 20, generator=torch.Generator().manual_seed(0)) / 64
        self.register_buffer("bank", bank)
        self.head = nn.Linear(20, 10)

    def features(self, x):
        white = torch.linalg.solve(self.mixing, x, left=False)
        bands = white @ self.bank
        return bands.relu().add(1e-10).log()

    def forward(self, x):
        return self.head(self.features(x.flatten(1)) / 10)


def test_a_second_fault_behind_a_missing_kernel_is_mended_with_it(digits_training):
    report = check(digits_training(model=Whitened), precision="16-true", seeds=2)
    assert report.verdict == "not equivalent"
    assert report.culprit.mechanism == "unsupported-op"
    assert report.cure is not None, report
    assert "all of features" in report.cure.description
    assert report.cure.verified


def test_a_guard_lost_a_line_before_is_cured(digits_training):
    report = check(digits_training(model=Guarded), precision="16-true", seeds=2)
    assert report.verdict == "not equivalent"
    assert report.culprit.mechanism == "eps-underflow"
    assert report.cure is not None
    assert report.cure.kind == "upcast"
    assert "all of guarded" in report.cure.description
    assert report.cure.verified


def test_so_it_is_in_a_step_of_ones_own(digits_training):
    def step(model, batch):
        x, y = batch
        h = x.flatten(1)
        return F.cross_entropy(model(x), y) + guarded(h).sum()

    given = digits_training(loss=None, training_step=step)
    found = at_the_steps_line(
        given, given.model(), PRECISIONS["16-true"], at(LINE, "overflow", "<loss>")
    )
    changed = found[-1].subject.training_step
    model = given.model().half()
    batch = given.train_data[0][0].half(), given.train_data[0][1]
    assert not bool(step(model, batch).isfinite())
    assert bool(changed(model, batch).isfinite())


def test_products_stay_as_they_are():
    seen = []

    def mixed(x, w):
        y = F.linear(x, w)
        seen.append(y.dtype)
        y = y * 2
        seen.append(y.dtype)
        return F.linear(y, w)

    first = mixed.__code__.co_firstlineno
    x, w = torch.ones(2, 2).half(), torch.ones(2, 2).half()
    with Upcast([f"{__file__}:{first + 1}-{first + 5}"]):
        out = mixed(x, w)
    assert seen == [torch.float16, torch.float32]
    assert out.dtype == torch.float16


def filtered(x, y):
    """A variance by sums, as box filters take them, whose products lose what is left."""
    ones = torch.ones(x.shape[1], 1).to(x)
    count = x.shape[1]
    spread = (x * x) @ ones / count - ((x @ ones) / count) ** 2
    return (y.float().mean() * 0 + 1e-4 / (spread + 1e-7)).mean()


def test_a_loss_of_products_is_tried_with_them(digits_training):
    def step(model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y) + filtered(300 + x.flatten(1), y)

    line = f"{__file__}:{filtered.__code__.co_firstlineno + 4}"
    for name in ("16-true", "bf16-mixed"):
        given = digits_training(loss=None, training_step=step)
        precision = PRECISIONS[name]
        found = at_the_steps_line(
            given, given.model(), precision, at(line, "cancellation", "<loss>")
        )
        said = [p.description for p in found]
        assert "but its products" in said[-2]
        outside = ", outside autocast" * precision.mixed
        first = filtered.__code__.co_firstlineno + 1
        assert said[-1] == (
            f"compute all of filtered in float32{outside}, its products as well "
            f"({__file__}:{first}-{first + 4})"
        )
        x = 300 + torch.rand(8, 64, generator=torch.Generator().manual_seed(0))
        y = torch.zeros(8, dtype=torch.long)
        low = (lambda v: v) if precision.mixed else torch.Tensor.half

        def loss(run, x=x, y=y, low=low, precision=precision):
            with torch.autocast("cpu", precision.dtype, enabled=precision.mixed):
                return float(run(lambda v: v, (low(x), y)))

        def bare(_, batch):
            return filtered(*batch)

        changed = [
            at_the_steps_line(
                digits_training(loss=None, training_step=bare),
                given.model(),
                precision,
                at(line, "cancellation", "<loss>"),
            )[i].subject.training_step
            for i in (-2, -1)
        ]
        off = [abs(loss(run) / float(filtered(low(x).float(), y)) - 1) for run in changed]
        assert not off[0] < 1e-2  # NaN, too
        assert off[1] < 1e-2
