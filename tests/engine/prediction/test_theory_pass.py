"""σ, the bound and the certificates against errors that really happen."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_fp16 import check
from pytest_fp16.engine.copies import make_model
from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.emulation.refusal import UnsupportedOperation
from pytest_fp16.engine.models import autocast, call, prepare, quiet
from pytest_fp16.engine.outputs import main_output
from pytest_fp16.engine.prediction.theory_pass import TheoryPass
from pytest_fp16.engine.randomness import preserved_state, seed_everything
from pytest_fp16.precision import REFERENCE, precision
from pytest_fp16.subject import Evaluation
from pytest_fp16.telling import infer_task
from pytest_fp16.theory.standardised import mean_allowed, spread_allowed

CPU = torch.device("cpu")
N = 40


def spread(errors):
    return float(np.sqrt(np.mean(np.square(errors))))


class Functional(nn.Module):
    def __init__(self, function, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.function = function

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        y += x
        return F.relu(y)


def mlp():
    layers = (nn.Linear(20, 48), nn.GELU(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 10))
    return nn.Sequential(*layers), torch.randn(N, 20)


def residual():
    stem, head = nn.Conv2d(3, 8, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return (
        nn.Sequential(stem, Block(8), nn.MaxPool2d(2), Block(8), head, nn.Linear(8, 5)),
        torch.randn(N, 3, 10, 10),
    )


def attention():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
    return (
        Functional(lambda s, x: s.head(s.body(x).mean(1)), body=layer, head=nn.Linear(16, 5)),
        torch.randn(N, 9, 16),
    )


def fused_attention():
    def forward(s, x):
        q, k, v = (t.unflatten(-1, (4, 4)).transpose(1, 2) for t in s.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return s.head(y.transpose(1, 2).flatten(2).mean(1))

    return Functional(forward, qkv=nn.Linear(16, 48), head=nn.Linear(16, 5)), torch.randn(N, 7, 16)


def lstm():
    body = nn.LSTM(6, 16, batch_first=True, bidirectional=True)
    return (
        Functional(lambda s, x: s.head(s.body(x)[0][:, -1]), body=body, head=nn.Linear(32, 5)),
        torch.randn(N, 8, 6),
    )


def embedding():
    def forward(s, ids):
        x = s.embed(ids) + s.place(torch.arange(ids.shape[1], device=ids.device))
        return s.head(s.norm(x).relu().mean(1))

    modules = {"embed": nn.Embedding(30, 16), "place": nn.Embedding(9, 16)}
    return (
        Functional(forward, **modules, norm=nn.LayerNorm(16), head=nn.Linear(16, 5)),
        torch.randint(0, 30, (N, 9)),
    )


def branches_on_dtype():
    def forward(s, x):
        y = s.a(x)
        if y.dtype in (torch.float16, torch.bfloat16):
            y = y.clamp(-3, 3)
        return s.b(y / (y.norm(dim=-1, keepdim=True) + torch.finfo(y.dtype).eps))

    return Functional(forward, a=nn.Linear(12, 24), b=nn.Linear(24, 5)), torch.randn(N, 12)


def float32_island():
    def forward(s, x):
        y = s.a(x)
        wide = y.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return s.b(wide.to(y.dtype))

    return Functional(forward, a=nn.Linear(12, 24), b=nn.Linear(24, 5)), torch.randn(N, 12)


def spectrum():
    def forward(s, x):
        return s.head(torch.fft.rfft(x.float()).abs().to(x.dtype))

    return Functional(forward, head=nn.Linear(13, 5)), torch.randn(N, 24)


def writes():
    def forward(s, x):
        y = s.a(x)
        y[:, :5] *= 2
        y[:, 5:].add_(1.0)
        z = y.view(-1, 4, 5)
        z[:, 0] = z[:, 1].tanh()
        out = torch.empty_like(y)
        torch.mul(y, y, out=out)
        out.add_(y)
        torch._foreach_mul_([out], 0.5)
        return s.b(out)

    return Functional(forward, a=nn.Linear(10, 20), b=nn.Linear(20, 5)), torch.randn(N, 10)


def several_inputs_to_a_dict():
    def forward(s, left, right):
        return {"aux": None, "logits": s.a(left).sin() @ s.b.weight + s.c(right)}

    modules = {"a": nn.Linear(6, 8), "b": nn.Linear(5, 8), "c": nn.Linear(7, 5)}
    inputs = {"left": torch.randn(N, 6), "right": torch.randn(N, 7)}
    return Functional(forward, **modules), inputs


def graph():
    edges = torch.randint(0, 9, (2, 30))

    def forward(s, x):
        for layer in (s.a, s.b):
            y = layer(x)
            x = torch.relu(torch.zeros_like(y).index_add_(1, s.edges[1], y[:, s.edges[0]]) + y)
        return s.head(x.mean(1))

    model = Functional(forward, a=nn.Linear(6, 12), b=nn.Linear(12, 12), head=nn.Linear(12, 5))
    model.register_buffer("edges", edges)
    return model, torch.randn(N, 9, 6)


def unet():
    def forward(s, x):
        a = s.norm(s.down(x))
        b = s.mid(F.max_pool2d(a, 2)).relu()
        return s.head(torch.cat([s.up(b), a], 1)).mean((2, 3))

    modules = {
        "down": nn.Conv2d(3, 8, 3, padding=1),
        "norm": nn.GroupNorm(2, 8),
        "mid": nn.Conv2d(8, 8, 3, padding=1),
        "up": nn.ConvTranspose2d(8, 8, 2, 2),
        "head": nn.Conv2d(16, 5, 1),
    }
    return Functional(forward, **modules), torch.randn(N, 3, 8, 8)


def as_wide_as_a_chunk():
    layers = (nn.Linear(13, 61), nn.ReLU(), nn.Linear(61, 31), nn.ReLU(), nn.Linear(31, 7))
    return nn.Sequential(*layers), torch.randn(N, 13)


def windows():
    def forward(s, x):
        w = x.view(-1, 2, 4, 2, 4, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 8)
        q = s.q(w)
        y = (q @ q.mT / 3).softmax(-1) @ w
        return s.head(y.view(-1, 4, 16, 8).mean((1, 2)))

    return Functional(forward, q=nn.Linear(8, 8), head=nn.Linear(8, 5)), torch.randn(N, 8, 8, 8)


def time_first():
    return (
        Functional(
            lambda s, x: s.head(s.body(x)[0][-1]), body=nn.GRU(6, 16), head=nn.Linear(16, 5)
        ),
        torch.randn(8, N, 6),
    )


def packed():
    lengths = torch.randint(2, 9, (N,))

    def forward(s, x, lengths):
        x = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return s.head(s.body(x)[1][0][-1])

    model = Functional(forward, body=nn.LSTM(6, 16, batch_first=True), head=nn.Linear(16, 5))
    return model, (torch.randn(N, 8, 6), lengths)


def one_graph():
    def forward(s, x, edges):
        y = s.a(x)
        count = torch.bincount(edges[1], minlength=len(x)).clamp(min=1).to(y.dtype)
        y = torch.zeros_like(y).index_add_(0, edges[1], y[edges[0]]) / count.unsqueeze(1) + y
        return s.head(y.relu())

    model = Functional(forward, a=nn.Linear(6, 12), head=nn.Linear(12, 5))
    return model, (torch.randn(N, 6), torch.randint(0, N, (2, 90)))


def batch_size_written_in():
    model = Functional(
        lambda s, x: s.b(s.a(x).view(N, 4, 6).tanh().mean(1)), a=nn.Linear(6, 24), b=nn.Linear(6, 5)
    )
    return model, torch.randn(N, 6)


def masked_rows(constant=-3e4):
    """Attention whose padded rows are masked whole: what is left there is up to the mask."""

    def forward(s, x):
        blank = x[..., :1] < 0
        scores = s.q(x) @ s.k(x).mT / 4 + (blank | blank.mT).to(x.dtype) * constant
        return s.head((scores.softmax(-1) @ s.v(x)).flatten(1))

    parts = {n: nn.Linear(6, 16) for n in "qkv"}
    return Functional(forward, **parts, head=nn.Linear(128, 5)), torch.randn(N, 8, 6)


def rows_masked_by_a_billion():
    return masked_rows(-1e9)


def read_on_the_host():
    def forward(s, x):
        y = s.a(x)
        limit = float(np.percentile(y.detach().cpu().float().numpy(), 99.9))
        return s.b(y.clamp(max=max(limit, 50.0)))

    return Functional(forward, a=nn.Linear(10, 20), b=nn.Linear(20, 5)), torch.randn(N, 10)


def traced():
    model = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 5))
    return torch.jit.trace(model, torch.randn(N, 10)), torch.randn(N, 10)


def tokens():
    body = nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, 16), nn.GELU(), nn.LayerNorm(16))
    return nn.Sequential(body, nn.Linear(16, 9)), torch.randint(0, 30, (N, 7))


def regression():
    return nn.Sequential(nn.Linear(10, 32), nn.SiLU(), nn.Linear(32, 1)), torch.randn(N, 10)


REVERSE = (
    mlp, residual, attention, fused_attention, lstm, embedding, branches_on_dtype, float32_island,
    spectrum, writes, several_inputs_to_a_dict, graph, unet, as_wide_as_a_chunk, windows, traced,
    regression, masked_rows,
)  # fmt: skip
RANDOM = (time_first, packed, one_graph, batch_size_written_in, tokens)
PRECISIONS = ("16-true", "16-mixed", "bf16-true", "bf16-mixed")


def canonical(task, model, inputs, name, mode=None):
    with preserved_state(), quiet(), torch.no_grad():
        at = precision(name)
        ours = prepare(make_model(model), at, CPU)
        seed_everything(0)
        with autocast(at, CPU, "cuda"), mode or torch.no_grad():
            output = main_output(call(ours, inputs, at, Evaluation(model=None, data=[])))
        return output if task is None else task.canonical(output.float())


def examined(build, name, n=N, seed=0):
    torch.manual_seed(seed)
    with quiet():
        model, inputs = build()
    model.eval()
    raw = canonical(None, model, inputs, REFERENCE.name)
    task = infer_task("auto", raw, None, n, -100)
    reference = task.canonical(raw)
    theory = TheoryPass(
        prepare(make_model(model), precision(name), CPU),
        precision(name),
        "cuda",
        CPU,
        Evaluation(model=model, data=[]),
        task,
    )
    with preserved_state(), quiet():
        batch = theory.run(inputs, n, reference, 0)
    candidate = canonical(task, model, inputs, name, Emulation("cuda"))
    error = task.margins(candidate, reference) - batch.margin
    return theory, batch, error, reference, candidate


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize(
    ("build", "name"),
    [
        *((b, p) for b in REVERSE for p in PRECISIONS),
        *((rows_masked_by_a_billion, p) for p in ("bf16-true", "bf16-mixed")),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_reverse_mode_predicts_the_error_of_the_16_bit_program(build, name):
    theory, batch, error, reference, candidate = examined(build, name)
    z = (error / batch.sigma).double().numpy()

    assert theory.method == "adjoint", theory.notes
    assert not theory.notes
    assert not batch.overflowed.any()
    assert spread(z) <= spread_allowed(z.size)
    assert spread(z) >= 0.4  # a σ far too large would pass the limit above
    assert abs(z.mean()) <= mean_allowed(z.size)
    # First order: errors of second order are of relative size u.
    assert (error.abs() <= batch.bound * 1.02).all()
    assert (batch.sigma < batch.bound).all()
    if theory.task.decides:
        same = reference.argmax(-1) == candidate.argmax(-1)
        assert same[batch.bounded].all()
        assert (batch.probable | ~batch.bounded).all()


@pytest.mark.parametrize("name", ["16-true", "bf16-mixed"])
@pytest.mark.parametrize("build", RANDOM, ids=lambda b: b.__name__)
def test_random_rounding_stands_in_and_says_so(build, name):
    theory, batch, error, *_ = examined(build, name)
    z = (error / batch.sigma).double().numpy()

    assert theory.method == "random rounding"
    assert len(theory.notes) == 1
    assert "at random" in theory.notes[0] or "random rounding" in theory.notes[0]
    assert batch.bound is None
    assert not batch.bounded.any()
    assert 0.4 <= spread(z) <= spread_allowed(z.size)
    assert abs(z.mean()) <= mean_allowed(z.size)


def test_what_is_read_on_the_host_has_the_dtype_of_the_program():
    theory, batch, error, *_ = examined(read_on_the_host, "16-true")

    assert spread((error / batch.sigma).double().numpy()) <= spread_allowed(N)
    assert theory.method == "adjoint"


@pytest.mark.parametrize("build", [mlp, attention, residual], ids=lambda b: b.__name__)
def test_both_ways_agree_on_sigma(build):
    theory, reverse, _, reference, _ = examined(build, "16-true")
    torch.manual_seed(0)
    _, inputs = build()
    theory._fall_back("for comparison")
    with preserved_state(), quiet():
        noise = theory.run(inputs, N, reference, 1)
    ratio = (noise.sigma / reverse.sigma).square().mean().sqrt()

    assert reverse.bound is not None
    assert noise.bound is None
    # σ from 8 runs, scaled so that 1/σ² has the right mean: E σ² = 8/6 of the true one.
    assert ratio.item() == pytest.approx((8 / 6) ** 0.5, rel=0.15)


@pytest.mark.parametrize("n", [1, 2, 6, 7, 14])
def test_sigma_of_an_input_does_not_depend_on_its_batch(n):
    torch.manual_seed(0)
    model, inputs = residual()
    model.eval()
    _, whole, *_ = examined(residual, "16-true")
    theory, part, *_ = examined(lambda: (model, inputs[:n]), "16-true", n=n)

    assert theory.method == "adjoint"
    torch.testing.assert_close(part.sigma, whole.sigma[:n], rtol=0.02, atol=0)
    torch.testing.assert_close(part.bound, whole.bound[:n], rtol=0.02, atol=0)


def test_a_chunk_may_hold_fewer_inputs_than_were_looked_at_first(monkeypatch):
    """Twelve large inputs go in three chunks of four, each padded to five."""
    module = "pytest_fp16.engine.prediction.theory_pass"
    monkeypatch.setattr(f"{module}._CHUNK_BYTES", 1)
    monkeypatch.setattr(f"{module}._FEW_VALUES", 1)
    monkeypatch.setattr(f"{module}._CHUNK", 5)
    torch.manual_seed(0)
    model, inputs = residual()
    model.eval()
    theory, part, *_ = examined(lambda: (model, inputs[:12]), "16-true", n=12)
    assert theory.method == "adjoint"
    assert len(part.sigma) == 12


def test_only_where_sites_are_small_do_many_inputs_share_a_chunk():
    def wide():
        layers = (nn.Linear(20, 4096), nn.ReLU(), nn.Linear(4096, 10))
        return nn.Sequential(*layers), torch.randn(300, 20)

    def narrow():
        return mlp()[0], torch.randn(300, 20)

    theory, narrow_batch, *_ = examined(narrow, "16-true", n=300)
    assert theory.chunk > 200
    assert len(narrow_batch.sigma) == 300
    assert examined(wide, "16-true", n=300)[0].chunk == 131

    theory.chunk = 31
    torch.manual_seed(0)
    model, inputs = narrow()
    with torch.no_grad():
        reference = model.eval()(inputs).unsqueeze(1)
    again = theory.run(inputs, 300, reference, seed=0)
    torch.testing.assert_close(again.sigma, narrow_batch.sigma, rtol=1e-3, atol=0)


def test_a_model_that_mixes_its_inputs_is_not_cut_into_chunks():
    def build():
        return (
            Functional(
                lambda s, x: s.b(s.a(x) - s.a(x).mean(0)), a=nn.Linear(6, 8), b=nn.Linear(8, 3)
            ),
            torch.randn(N, 6),
        )

    for n in (4, N):
        theory, *_ = examined(lambda n=n: (build()[0], torch.randn(n, 6)), "16-true", n=n)
        assert theory.method == "random rounding", n
        assert "depends on its batch" in theory.notes[0]


def test_overflow_is_forecast_for_the_inputs_it_happens_to():
    def build():
        x = torch.randn(N, 6)
        x[::4] *= 3000
        return Functional(lambda s, x: s.a(x.square()), a=nn.Linear(6, 3)), x

    theory, batch, _, _, candidate = examined(build, "16-true")
    expected = ~candidate.isfinite().all(-1).squeeze(1)

    assert expected.any()
    assert not expected.all()
    assert torch.equal(batch.overflowed, expected)
    assert max(t.largest for t in theory.totals.values()) > 65504
    assert not examined(build, "bf16-true")[1].overflowed.any()
    assert not examined(build, "16-mixed")[1].overflowed.any()


def test_underflow_is_part_of_the_same_formula():
    def build():
        return (
            Functional(
                lambda s, x: s.b((s.a(x) * 1e-5) * 1e4), a=nn.Linear(6, 8), b=nn.Linear(8, 3)
            ),
            torch.randn(N, 6),
        )

    theory, batch, error, *_ = examined(build, "16-true")
    z = (error / batch.sigma).double().numpy()
    share = {key: t.variance for key, t in theory.totals.items()}

    assert 0.4 <= spread(z) <= spread_allowed(N)
    assert sum(t.subnormal for t in theory.totals.values()) > 0
    assert max(share, key=share.get)[1] == "mul"


def test_the_share_of_variance_names_module_and_operation():
    def build():
        layers = nn.Sequential(
            nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
        )
        return Functional(
            lambda s, x: s.body(x) + s.late(x * 64), body=layers, late=nn.Linear(10, 4)
        ), torch.randn(N, 10)

    theory, batch, *_ = examined(build, "16-true")
    total = sum(t.variance for t in theory.totals.values())

    assert total == pytest.approx(batch.sigma.square().sum().item(), rel=0.01)
    assert ("late", "addmm") in theory.totals
    assert ("body.2", "addmm") in theory.totals
    assert max(theory.totals, key=lambda k: theory.totals[k].variance)[0] in ("late", "")
    assert {key[1] for key in theory.totals} == {"addmm", "add", "mul"}


def test_an_input_near_a_decision_inside_the_model_loses_its_certificate():
    def forward(s, x):
        y = s.a(x)
        return s.b(torch.where(y > s.limit, y + 4.0, y))

    torch.manual_seed(0)
    model = Functional(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    inputs = torch.randn(N, 6)
    with torch.no_grad():
        model.limit = float(model.a(inputs.half().float())[3, 2])
    _, batch, *_ = examined(lambda: (model, inputs), "16-true")

    assert batch.undecided[3]
    assert batch.undecided.sum() < N / 2
    assert not batch.bounded[batch.undecided].any()
    assert not batch.probable[batch.undecided].any()


def test_a_decision_on_a_difference_is_as_uncertain_as_what_was_subtracted():
    """float16 has steps of 0.06 at 64 and of 2e-6 at the difference that is compared."""

    def forward(s, x):
        y = s.a(x)
        moved = (y + 64.0) - 64.0
        return s.b(torch.where(moved > s.limit, y + 4.0, y))

    torch.manual_seed(0)
    model = Functional(forward, a=nn.Linear(6, 1), b=nn.Linear(1, 3))
    inputs = torch.randn(N, 6)
    with torch.no_grad():
        model.limit = float(model.a(inputs)[3, 0]) - 0.02
    _, batch, *_ = examined(lambda: (model, inputs), "16-true")

    assert batch.undecided[3]
    assert batch.undecided.sum() < N / 2


@pytest.mark.parametrize("precision", ["16-true", "16-mixed"])
def test_a_router_that_decides_in_float32_is_as_uncertain_as_what_it_reads(precision):
    """Mixtures of experts take the softmax of their router in float32, then the largest."""

    def forward(s, x):
        weights, chosen = s.route(x).float().softmax(-1).topk(1, -1)
        experts = torch.stack([expert(x) for expert in s.experts], 1)
        taken = experts.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 5)).squeeze(1)
        return taken * weights.to(taken.dtype)

    torch.manual_seed(0)
    experts = nn.ModuleList(nn.Linear(6, 5) for _ in range(4))
    model = Functional(forward, route=nn.Linear(6, 4), experts=experts)
    inputs = torch.randn(N, 6)
    with torch.no_grad():  # input 3 stands on the edge between two experts
        first, second = model.route(inputs[3]).topk(2).indices
        gap = model.route.weight[first] - model.route.weight[second]
        offset = model.route.bias[first] - model.route.bias[second]
        inputs[3] -= (inputs[3] @ gap + offset) / gap.square().sum() * gap
    _, batch, *_ = examined(lambda: (model, inputs), precision)

    assert batch.undecided[3]
    assert batch.undecided.sum() < N / 2
    assert not batch.probable[3].any()


def test_what_is_scaled_in_place_before_any_rounding_has_a_gradient():
    """Embeddings times the root of their width, in place: the first rounding of many a model."""

    def forward(s, x):
        y = s.embed(x)
        y *= 5.7
        return s.head(y.mean(1).tanh())

    def build():
        model = Functional(forward, embed=nn.Embedding(30, 16), head=nn.Linear(16, 5))
        return model, torch.randint(0, 30, (N, 7))

    assert examined(build, "16-true")[0].method == "adjoint"


@pytest.mark.parametrize("positions", [False, True])
def test_a_mask_is_compared_without_doubt(positions):
    """Zeros and ones made by arithmetic: no rounding moves them, however near zero is to zero."""

    def forward(s, x, mask):
        hidden = (1.0 - mask).unsqueeze(-1) > 0
        y = s.a(x).masked_fill(hidden, 0.0)
        return s.b(y if positions else y.sum(1))

    def build():
        mask = (torch.arange(7) < torch.arange(1, N + 1).unsqueeze(1) % 7 + 1).float()
        model = Functional(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3))
        return model, (torch.randn(N, 7, 6), mask)

    theory, batch, *_ = examined(build, "16-true")
    assert theory.method == ("random rounding" if positions else "adjoint")
    assert not batch.undecided.any()


def test_the_order_of_a_sort_matters_only_if_its_indices_are_read():
    def values(s, x):
        return s.b(torch.sort(s.a(x).repeat(1, 2), -1).values)

    def indices(s, x):
        return s.b(torch.sort(s.a(x).repeat(1, 2), -1).indices.to(x.dtype))

    for forward, expected in ((values, False), (indices, True)):
        build = lambda f=forward: (  # noqa: E731
            Functional(f, a=nn.Linear(6, 8), b=nn.Linear(16, 3)),
            torch.randn(N, 6),
        )
        assert examined(build, "16-true")[1].undecided.all().item() is expected


def test_a_third_class_with_a_larger_error_is_cleared_too():
    """Class 2 trails class 1 but is a difference of large numbers: its bound is far wider."""

    class Far(nn.Module):
        def forward(self, x):
            large = x[:, 0] * 3000
            wild = (large + 5 * x[:, 1]) - large - 4 * x[:, 1]
            return torch.stack([x[:, 1] + 2.0, x[:, 1] + 1.5, wild + 1.0], -1)

    def build():
        return Far(), torch.rand(N, 2) * 0.5 + 0.5

    _, batch, _, reference, candidate = examined(build, "16-true")
    flipped = (reference.argmax(-1) != candidate.argmax(-1)) | (
        candidate[..., 2] > candidate[..., 1]
    )

    assert flipped.any()
    assert (batch.margin > batch.bound).all()  # the runner-up's own bound sees nothing
    assert not batch.bounded[flipped].any()
    assert not batch.probable[flipped].any()


def test_what_the_program_refuses_is_raised():
    def constant(s, x):
        return s.a(x.masked_fill(x > 0, -1e9))

    def solve(s, x):
        return s.a(torch.linalg.inv(x.view(-1, 2, 2) + 3 * torch.eye(2, dtype=x.dtype)).flatten(1))

    make = lambda f: lambda: (Functional(f, a=nn.Linear(4, 3)), torch.rand(N, 4))  # noqa: E731
    with pytest.raises(RuntimeError, match="without overflow"):
        examined(make(constant), "16-true")
    with pytest.raises(UnsupportedOperation, match="linalg_inv_ex"):
        examined(make(solve), "16-true")
    assert examined(make(constant), "bf16-true")[1].logits.isfinite().all()


def test_a_custom_kernel_without_a_gradient_falls_back():
    library = torch.library.Library("fp16theory", "FRAGMENT")
    library.define("double(Tensor x) -> Tensor")
    library.impl("double", lambda x: x * 2, "CPU")
    library.impl("double", lambda x: torch.empty_like(x), "Meta")

    def build():
        return (
            Functional(
                lambda s, x: s.b(torch.ops.fp16theory.double(s.a(x))),
                a=nn.Linear(6, 8),
                b=nn.Linear(8, 3),
            ),
            torch.randn(N, 6),
        )

    try:
        theory, batch, error, *_ = examined(build, "16-true")
        assert theory.method == "random rounding"
        assert "double" in theory.notes[0]
        assert "double" in theory.opaque
        assert spread((error / batch.sigma).double().numpy()) <= spread_allowed(N)
    finally:
        library._destroy()


def test_the_formats_seen_are_counted():
    assert set(examined(mlp, "bf16-mixed")[0].dtypes) == {"bfloat16"}
    assert set(examined(mlp, "16-true")[0].dtypes) == {"float16"}


def test_outputs_that_are_not_a_row_for_each_input_are_not_cut(monkeypatch):
    """Positions flattened into the batch: labels count 60 rows, inputs only 12."""

    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack((0.5 - x, x - 0.5), -1).flatten(0, 1)

    torch.manual_seed(0)
    model, inputs = Flat().eval(), torch.rand(12, 5)
    logits = model(inputs)
    task = infer_task("auto", logits, logits.argmax(-1), 60, -100)
    subject = Evaluation(model=model, data=[])
    theory = TheoryPass(model, precision("16-mixed"), "cuda", CPU, subject, task)
    batch = theory.run(inputs, 60, task.canonical(logits), seed=0)
    assert theory.method == "random rounding"
    assert torch.equal(batch.margin, task.margins(task.canonical(logits), task.canonical(logits)))


def test_an_open_decision_among_values_is_run():
    """Second and third of a row, closer than their rounding: which is taken is no matter of σ."""

    class Largest(nn.Module):
        def forward(self, x):
            x = x * 1.1
            return torch.gather(x.flip(-1), 1, x.topk(2, -1).indices)

    torch.manual_seed(0)
    inputs = torch.randn(N, 6)
    inputs[3, :3] = torch.tensor([9.0, 5.0, 5.0005])
    model = Largest()
    task = infer_task("regression", model(inputs), None, N, -100)
    subject = Evaluation(model=model, data=[], task="regression")
    theory = TheoryPass(model, precision("16-true"), "cuda", CPU, subject, task)
    batch = theory.run(inputs, N, task.canonical(model(inputs)), 0)
    assert theory.method == "random rounding"
    assert "decision" in theory.notes[0]
    assert batch.sigma[3] > 0.1
    assert batch.sigma.median() < 0.01


class _Contrasts(nn.Module):
    """Every input against every other of its batch, as CLIP's logits are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 4)

    def forward(self, x):
        y = self.layer(x)
        return y @ y.mT


def test_logits_between_the_inputs_of_a_batch_have_a_forecast():
    torch.manual_seed(0)
    data = [torch.randn(8, 10), torch.randn(9, 10)]
    report = check(Evaluation(model=_Contrasts().eval(), data=data, labelled=False))
    assert report.forecast.method == "random rounding", report.forecast.reason
    assert report.forecast.verdict == "equivalent"


class Normals(torch.nn.Module):
    """Turns a density by its own gradient, which torch.func takes input by input."""

    def __init__(self):
        super().__init__()
        self.density = torch.nn.Sequential(
            torch.nn.Linear(3, 16), torch.nn.GELU(), torch.nn.Linear(16, 1)
        )
        self.head = torch.nn.Linear(3, 1)

    def forward(self, x):
        weights = dict(self.density.named_parameters())

        def one(at):
            return 0.5 * torch.func.functional_call(self.density, weights, (at,)).squeeze(-1)

        slopes = torch.func.vmap(torch.func.grad(one))(x)
        return self.head(slopes / slopes.square().sum(-1, keepdim=True).add(1e-3).sqrt())


@pytest.mark.parametrize("name", ["16-true", "bf16-mixed"])
def test_a_number_that_torch_func_has_wrapped_is_followed(name):
    torch.manual_seed(0)
    subject = Evaluation(Normals().eval(), [torch.randn(64, 3)], task="regression")
    report = check(subject, precision=name)
    assert report.verdict == report.forecast.verdict == "equivalent"
    assert report.forecast.method == "adjoint"
