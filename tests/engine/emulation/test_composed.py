"""Composed operations round where the native kernel's parts do."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.tracing.recorder import Recorder
from pytest_fp16.engine.tracing.shadow import wrap_inputs
from pytest_fp16.engine.tracing.trace import Trace

X = 3 * torch.randn(40, 7, 5, generator=torch.Generator().manual_seed(0))
INFINITE = X.clone()
INFINITE[3], INFINITE[5, :, 2], INFINITE[7, 1, 1] = -torch.inf, -torch.inf, torch.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("values", [X, INFINITE, 300 + X], ids=["plain", "infinite", "offset"])
@pytest.mark.parametrize(("dim", "keepdim"), [(-1, False), (1, True), ((0, 2), False)])
def test_logsumexp_is_the_native_one(values, dtype, dim, keepdim):
    x = values.to(dtype)
    with Emulation("cuda"):
        emulated = torch.logsumexp(x, dim, keepdim)
    assert emulated.dtype == dtype
    assert torch.equal(emulated, torch.logsumexp(x, dim, keepdim))


def test_in_float32_it_is_one_operation():
    with Emulation("cuda"):
        assert torch.equal(torch.logsumexp(X, 1), X.logsumexp(1))


def test_of_nothing_it_is_minus_infinity():
    with Emulation("cuda"):
        assert (
            torch.logsumexp(torch.zeros(2, 0, dtype=torch.float16), 1).tolist() == [-torch.inf] * 2
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_its_gradient_is_the_native_one(dtype):
    def gradient():
        x = (300 + X).to(dtype).requires_grad_()
        torch.logsumexp(x, 1).sum().backward()
        return x.grad

    with Emulation("cuda"):
        emulated = gradient()
    assert torch.equal(emulated, gradient())


def test_a_trace_has_a_site_for_each_part_and_the_gradient_of_the_whole():
    recorder = Recorder(len(X), torch.device("cpu"), where=str, totals={})
    (shadow,) = wrap_inputs((X,), torch.bfloat16)
    with torch.no_grad(), Trace(recorder, "cuda", {}) as trace:
        traced = torch.logsumexp(shadow, 1)
    # What is certain to fall back onto an operand does so in a trace, too.
    assert torch.allclose(traced.inner, X.bfloat16().float().logsumexp(1), rtol=2**-7)
    names = {key[1] for key in recorder.totals}
    assert {"sub", "exp", "sum", "log", "add"} <= names
    assert trace.doubts.decisions == 0


class Forward(nn.Module):
    """The forward algorithm of a chain of tags."""

    def __init__(self):
        super().__init__()
        self.move = nn.Parameter(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))

    def forward(self, x):
        score = x[:, 0]
        for t in range(1, x.shape[1]):
            score = (score[:, :, None] + self.move).logsumexp(1) + x[:, t]
        return score


def test_a_chain_of_them_is_predicted(theory_of):
    theory, reference = theory_of(Forward(), X, "bf16-true")
    said = theory.run(X, len(X), reference, 0)
    with torch.no_grad():
        low = Forward().bfloat16()(X.bfloat16()).float()
    actual = theory.task.margins(low.unsqueeze(1), reference) - said.margin
    spread = float((actual / said.sigma).square().mean().sqrt())
    assert 0.7 < spread < 1.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("exponent", [2, 3, 3.0, -2, -1, 4, -3])
@pytest.mark.parametrize("change", [torch.pow, lambda x, e: x.clone().pow_(e)])
def test_powers_are_those_of_a_cpu(dtype, exponent, change):
    x = X.to(dtype)
    with Emulation("cpu"):
        emulated = change(x, exponent)
    assert torch.equal(emulated, change(x, exponent))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu_a_third_power_rounds_twice_in_both_formats(dtype):
    x = X.to(dtype)
    with Emulation("cuda"):
        assert torch.equal(x**3, x * x * x)
        assert torch.equal(x**-2, 1 / (x * x))
    assert not torch.equal(x * x * x, (x.float() ** 3).to(dtype))


@pytest.mark.parametrize(("target", "parts"), [("cuda", {"mul"}), ("cpu", {"pow"})])
def test_a_trace_has_sites_where_the_target_rounds(target, parts):
    recorder = Recorder(len(X), torch.device("cpu"), where=str, totals={})
    (shadow,) = wrap_inputs((X,), torch.float16)
    with torch.no_grad(), Trace(recorder, target, {}):
        traced = shadow**3
    assert torch.allclose(traced.inner, X.half().float() ** 3)
    assert {key[1] for key in recorder.totals} == parts


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("scale", [2, 12])
def test_a_soft_margin_is_the_native_one(dtype, reduction, scale):
    z = (scale * torch.randn(16, 8, generator=torch.Generator().manual_seed(0))).to(dtype)
    target = torch.randn(16, 8, generator=torch.Generator().manual_seed(1)).sign().to(dtype)

    def loss_and_slope():
        x = z.clone().requires_grad_()
        loss = nn.functional.soft_margin_loss(x, target, reduction=reduction)
        loss.sum().backward()
        return loss.detach(), x.grad

    with Emulation("cuda"):
        emulated = loss_and_slope()
    for found, native in zip(emulated, loss_and_slope(), strict=True):
        assert torch.equal(found.nan_to_num(7), native.nan_to_num(7))
    overflows = dtype == torch.float16 and scale == 12
    assert bool(emulated[1].isnan().any()) == overflows


def test_a_soft_margin_is_as_narrow_as_its_outputs():
    z = torch.ones(3, dtype=torch.float16)
    with Emulation("cuda"):
        assert nn.functional.soft_margin_loss(z, torch.ones(3)).dtype == torch.float16


def mean_of_pixels(dtype, pictures, weight=None):
    random = torch.Generator().manual_seed(0)
    z = torch.randn(pictures, 3, 64, 64, generator=random).to(dtype).requires_grad_()
    target = torch.randint(0, 3, (pictures, 64, 64), generator=random)
    target[0, 0] = -100
    with Emulation("cuda"):
        loss = nn.functional.cross_entropy(z, target, weight)
        loss.backward()
    wide = weight if weight is None else weight.float()
    exact = nn.functional.cross_entropy(z.detach().float(), target, wide)
    return loss.item(), exact.item(), z.grad.abs().max().item()


def test_a_mean_over_more_pixels_than_float16_counts_is_none():
    loss, exact, slope = mean_of_pixels(torch.float16, 20)
    assert loss != loss
    assert exact < 2
    assert slope == 0


def test_a_sum_over_pixels_may_leave_the_range_where_their_number_does_not():
    loss, exact, slope = mean_of_pixels(torch.float16, 15)
    assert loss == float("inf")
    assert exact < 2
    assert slope > 0


@pytest.mark.parametrize(("dtype", "pictures"), [(torch.float16, 4), (torch.bfloat16, 20)])
@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 0.5, 0.25])])
def test_within_the_range_it_is_the_mean(dtype, pictures, weight):
    weight = weight if weight is None else weight.to(dtype)
    loss, exact, slope = mean_of_pixels(dtype, pictures, weight)
    assert loss == pytest.approx(exact, rel=3 * torch.finfo(dtype).eps)
    assert slope > 0


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_reduced_to_places_is_added_and_counted_in_turn(reduce, include_self, dtype):
    many = 5000
    x, terms = torch.full((2, 3), 0.5, dtype=dtype), torch.ones(2, many, dtype=dtype)
    index = torch.zeros(2, many, dtype=torch.long)
    index[1, 10:] = 1
    with Emulation("cuda"):
        found = x.scatter_reduce(1, index, terms, reduce, include_self=include_self)
        again = x.clone().scatter_reduce_(1, index, terms, reduce, include_self=include_self)
    most = 2048.0 if dtype == torch.float16 else 256.0
    start, count = (0.5, 1) if include_self else (0.0, 0)
    few = start + 10, count + 10
    if reduce == "sum":
        assert found.tolist() == [[most, 0.5, 0.5], [few[0], most, 0.5]]
    else:  # a mean of ones, and of the value that was there
        assert found[0].tolist() == [1.0, 0.5, 0.5]
        assert float(found[1, 0]) == float(torch.tensor(few[0] / few[1]).to(dtype))
    assert torch.equal(found, again)
    with Emulation("cpu"):
        native = x.scatter_reduce(1, index, terms, reduce, include_self=include_self)
    assert torch.equal(native, x.scatter_reduce(1, index, terms, reduce, include_self=include_self))


def test_a_mean_of_many_in_places_is_forecast_and_explained():
    class Pooled(nn.Module):
        """Whether what is meant of a cloud of points lies above a threshold."""

        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 8)

        def forward(self, x):
            h = self.body(x)
            place = torch.zeros(len(h), 1000, 8, dtype=torch.long)
            base = torch.zeros(len(h), 1, 8, dtype=h.dtype)
            mean = base.scatter_reduce(1, place, h, "mean", include_self=False)[:, 0]
            return torch.stack([mean.sum(-1), torch.full_like(mean[:, 0], 2.0)], -1)

    torch.manual_seed(0)
    model, x = Pooled().eval(), 0.1 * torch.randn(100, 1000, 4) + torch.randn(100, 1, 4)
    with torch.no_grad():
        model.body.bias.fill_(0.25)
    report = check(Evaluation(model, [x], labelled=False), precision="bf16-true")
    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert (report.culprit.operation, report.culprit.mechanism) == ("scatter_reduce", "absorption")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("sides", [(24, 17), (5, 7, 12)])
def test_an_affine_grid_is_the_native_one(dtype, align_corners, sides):
    shape = (3, len(sides), len(sides) + 1)
    theta = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    run = lambda t: torch.affine_grid_generator(t, [3, 1, *sides], align_corners)  # noqa: E731
    recorder = Recorder(3, torch.device("cpu"), where=str, totals={})
    (shadow,) = wrap_inputs((theta.float(),), dtype)

    with Emulation("cuda"):
        emulated = run(theta)
    with torch.no_grad(), Trace(recorder, "cuda", {}):
        traced = run(shadow)

    assert torch.equal(emulated, run(theta))
    assert torch.equal(traced.native(), emulated)
    assert {key[1] for key in recorder.totals} == {"affine_grid_generator"}  # not its parts


def test_an_affine_grid_has_the_gradient_it_had():
    def gradient(dtype):
        theta = torch.eye(2, 3).expand(4, -1, -1).to(dtype).requires_grad_()
        grid = torch.nn.functional.affine_grid(theta, (4, 1, 8, 8), align_corners=False)
        grid.square().sum().backward()
        return theta.grad

    with Emulation("cuda"):
        emulated = gradient(torch.bfloat16)
    assert torch.allclose(emulated.float(), gradient(torch.float32), rtol=2**-6, atol=0.5)


class Turned(nn.Module):
    """A picture turned by a grid that no input has a part in, and a layer on it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("theta", torch.tensor([[[0.9, 0.1, 0.03], [-0.1, 0.87, 0.02]]]))
        self.head = nn.Linear(64, 4)

    def forward(self, x):
        theta = self.theta.expand(len(x), -1, -1)
        grid = nn.functional.affine_grid(theta, x.shape, align_corners=False)
        turned = nn.functional.grid_sample(x, grid.to(x.dtype), align_corners=False)
        return self.head(turned.flatten(1))


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_a_cpus_own_affine_grid_is_not_astray(precision):
    x = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    subject = Evaluation(Turned().eval(), [x], labelled=False, task="regression")
    report = check(subject, precision=precision, target="cpu", emulate="never", budget=0.01)

    assert report.verdict == "equivalent"
    assert 0.7 < report.standardised.spread < 1.4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 5.0])
@pytest.mark.parametrize("batches", [(), (3,)])
def test_distances_of_many_rows_are_the_native_ones(dtype, offset, batches):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(*batches, n, 8, generator=generator) + offset for n in (40, 30)]
    a, b = (x.to(dtype) for x in rows)
    native, exact = torch.cdist(a, b).float(), torch.cdist(a.float(), b.float())
    with Emulation("cuda"):
        emulated = torch.cdist(a, b)
        again = torch.cdist(a[..., :20, :], b[..., :20, :], 2.0, "use_mm_for_euclid_dist")
    assert emulated.dtype == dtype
    assert emulated.shape == native.shape
    step = torch.finfo(dtype).eps * float(native.max())
    torch.testing.assert_close(emulated.float(), native, atol=step, rtol=0)
    torch.testing.assert_close(again.float(), native[..., :20, :20], atol=step, rtol=0)
    if offset:  # what is left of squares of 200 is another distance
        assert float((emulated.float() - exact).abs().max()) > 3 * step


class Nearest(nn.Module):
    """The nearest of a few prototypes, which have as much in common as the inputs."""

    def __init__(self, offset):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("prototypes", torch.randn(30, 8, generator=generator) + offset)

    def forward(self, x):
        return -torch.cdist(x, self.prototypes)


@pytest.mark.parametrize(("offset", "verdict"), [(0.0, "equivalent"), (20.0, "not equivalent")])
@pytest.mark.parametrize("emulate", ["always", "never"])
def test_near_rows_far_from_zero_are_foreseen_as_they_run(offset, verdict, emulate):
    model = Nearest(offset)
    x = model.prototypes[torch.arange(300) % 30]
    x = x + 0.8 * torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    subject = Evaluation(model=model, data=[x], labelled=False)
    report = check(subject, precision="16-true", emulate=emulate)
    assert report.verdict == verdict
    assert report.forecast.verdict == verdict


def test_rows_that_are_compared_with_themselves_are_followed():
    """The root of zero has no gradient; the kernel's is zero there."""

    class Apart(nn.Module):
        def forward(self, x):
            return torch.cdist(x, x).topk(3, largest=False).values[:, 1:]

    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    report = check(
        Evaluation(model=Apart(), data=[x], labelled=False, task="regression"), precision="16-true"
    )
    assert report.equivalent
    assert report.forecast.verdict == "equivalent"
