"""Gradients recorded at rounding sites against finite differences; what counts as a site."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.tracing.recorder import Recorder
from pytest_fp16.engine.tracing.shadow import Shadow, wrap_inputs
from pytest_fp16.engine.tracing.trace import Trace
from pytest_fp16.theory.rounding import FLOAT16, FORMATS, ulp

BATCH = 5
CPU = torch.device("cpu")


def traced(program, *inputs, dtype=torch.float16, **options):
    target = options.pop("target", "cuda")
    options = {"totals": {}, "where": lambda: "here"} | options
    trace = Trace(Recorder(batch=BATCH, device=CPU, **options), target, constants={})
    shadows = wrap_inputs(inputs, dtype)
    with preserved_state(), torch.no_grad(), trace:
        out = program(*shadows)
    return trace, out


def site_names(trace):
    return [name for _, name in trace.recorder.totals]


@pytest.mark.parametrize(
    "program",
    [
        lambda x, w: (x @ w).tanh().sum(-1),
        lambda x, w: F.layer_norm((x @ w).exp(), (4,)).sin().sum(-1),
        lambda x, w: F.softmax(x @ w, -1)[:, 0].log(),
        lambda x, w: (x.view(BATCH, 2, 3).mul(1.7).sin() @ w[:3]).amax((1, 2)),
        lambda x, w: torch.where(x @ w > 0, x @ w, (x @ w).exp()).sum(-1),
    ],
)
def test_contributions_are_the_derivative_at_each_site(program):
    """Perturb one site at a time, by a known amount in float64, and compare."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, 6, generator=generator).half()
    w = torch.randn(6, 4, generator=generator).half()
    trace, out = traced(lambda x: program(x, w), x)
    torch.autograd.grad(
        out.inner.sum(), trace.recorder.leaves, retain_graph=True, allow_unused=True
    )
    sites = Sites()
    with torch.no_grad(), sites:
        plain = program(x, w)
    absolute = torch.zeros(BATCH, dtype=torch.float64)
    square = torch.zeros(BATCH, dtype=torch.float64)
    for i, (shape, values) in enumerate(sites.seen):
        at = ulp(values.float(), FLOAT16).double()
        for j in range(values.numel()):
            step = torch.zeros(values.numel(), dtype=torch.float64)
            step[j] = 1e-6
            with torch.no_grad(), Sites(perturb=(i, step.view(shape))) as run:
                change = (program(x, w) - run.base(plain)) / 1e-6
            absolute += (change * at.flatten()[j]).abs()
            square += (change * at.flatten()[j]) ** 2

    sums = trace.recorder.contributions.sums[FLOAT16]
    torch.testing.assert_close(sums.bound.double(), absolute / 2, rtol=2e-3, atol=1e-9)
    torch.testing.assert_close(sums.sigma.double(), (square / 12).sqrt(), rtol=2e-3, atol=1e-9)


class Sites(torch.utils._python_dispatch.TorchDispatchMode):
    """The program in float64, with its 16-bit results in order, one of them perturbed."""

    QUIET = ("t", "view", "expand", "where", "select", "gt", "amax", "detach", "_unsafe_view",
             "unsqueeze", "transpose", "slice", "permute", "clone", "_to_copy")  # fmt: skip

    def __init__(self, perturb=None):
        super().__init__()
        self.perturb, self.seen = perturb, []

    def base(self, plain):
        return plain

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        def wide(v):
            return v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v

        out = func(*(wide(a) for a in args), **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if name in self.QUIET:
            return out
        first = out[0] if isinstance(out, tuple) else out
        if self.perturb and len(self.seen) == self.perturb[0]:
            first = first + self.perturb[1]
        self.seen.append((first.shape, first.clone()))
        return (first, *out[1:]) if isinstance(out, tuple) else first


def test_what_only_moves_values_is_no_site():
    def program(x):
        y = x.relu().t().contiguous().t().clamp(-1, 1)
        y = torch.cat([y, y.flip(1)], 1)[:, 1:5].reshape(BATCH, 2, 2)
        return F.max_pool1d(y, 2).neg().abs().masked_fill(y[:, :1, :1] > 0, 0.5)

    trace, _ = traced(program, torch.randn(BATCH, 6))

    assert trace.recorder.totals == {}


def test_sites_are_where_the_emulated_program_rounds():
    w = torch.randn(6, 6).half()

    def program(x):
        y = x @ w
        wide = y.float().exp().sum(-1, keepdim=True)
        return (y * wide.half()).float().log1p().to(torch.bfloat16)

    trace, out = traced(program, torch.rand(BATCH, 6))

    assert site_names(trace) == ["mm", "_to_copy", "mul"]
    assert out.dtype == torch.bfloat16
    assert set(trace.dtypes) == {"float16", "bfloat16"}


def test_constants_of_the_program_round_for_good():
    def program(x):
        place = torch.arange(6, device=x.device, dtype=x.dtype) / 7
        table = (place * 3).sin()
        return x + table

    x = 4 + torch.rand(BATCH, 6)  # beside which the table is no matter of a few steps
    trace, out = traced(program, x)
    with Emulation():
        table = (torch.arange(6, dtype=torch.float16) / 7 * 3).sin()

    assert site_names(trace) == ["add"]
    assert torch.equal(out.inner.detach(), x.half().float() + table.float())


def test_shadows_show_the_program_its_own_dtypes_and_shapes():
    seen = []

    def program(x):
        seen.append((x.dtype, x.float().dtype, (x > 0).dtype, x.sum(-1, dtype=torch.float32).dtype))
        seen.append((x.shape, x.t().shape, x[0].stride(), x.is_floating_point(), x.numel()))
        return x

    _, out = traced(program, torch.randn(BATCH, 6))

    assert seen[0] == (torch.float16, torch.float32, torch.bool, torch.float32)
    assert seen[1] == ((BATCH, 6), (6, BATCH), (1,), True, BATCH * 6)
    assert isinstance(out, Shadow)


def test_the_host_reads_16_bit_values():
    x = torch.full((BATCH, 2), 0.1)
    read = []

    def program(x):
        read.append((x.numpy(), x.tolist(), x[0, 0].item(), x.float().numpy()))
        return x

    traced(program, x)
    array, nested, scalar, wide = read[0]

    assert array.dtype == "float16"
    assert wide.dtype == "float32"
    assert nested[0][0] == scalar == float(x.half()[0, 0])
    assert (wide == array).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_noise_has_the_spread_of_rounding_errors(dtype):
    x = torch.rand(BATCH, 20000) + 0.5
    _, plain = traced(lambda t: t * 1.25, x, dtype=dtype, adjoint=False)
    _, noisy = traced(lambda t: t * 1.25, x, dtype=dtype, noise=torch.Generator().manual_seed(0))
    error = (noisy.inner - plain.inner) / ulp(plain.inner, FORMATS[dtype])

    assert error.abs().max() <= 0.5
    assert error.std().item() == pytest.approx(12**-0.5, rel=0.02)
    assert abs(error.mean().item()) < 0.01


@pytest.mark.parametrize("noise", [False, True])
def test_whole_numbers_that_the_format_holds_do_not_round(noise):
    """Counted places are exact in float16, and coarse in bfloat16 beyond 256."""

    x = torch.rand(BATCH, 600) + 0.5
    for dtype, exact in ((torch.float16, True), (torch.bfloat16, False)):
        options = {"noise": torch.Generator().manual_seed(0)} if noise else {}
        trace, out = traced(lambda x: (x > 0).to(x.dtype).cumsum(-1) / 4, x, dtype=dtype, **options)
        wrong = out.inner - torch.arange(1, 601) / 4
        assert bool(wrong.any()) != exact  # how a count rounds is no matter of chance
        assert bool(trace.recorder.leaves) != (exact or noise)


@pytest.mark.parametrize("noise", [False, True])
def test_another_format_that_shares_the_gradients_may_round_what_this_one_holds(noise):
    x, both = torch.rand(BATCH, 600) + 0.5, (FLOAT16, FORMATS[torch.bfloat16])
    options = {"noise": torch.Generator().manual_seed(0)} if noise else {}
    trace, out = traced(lambda x: (x > 0).to(x.dtype).cumsum(-1), x, formats=both, **options)
    assert torch.equal(out.inner.detach(), torch.arange(1.0, 601.0).expand(BATCH, 600))
    assert bool(trace.recorder.leaves) != noise


def test_noise_does_not_touch_the_generators_of_the_program():
    def program(x):
        return F.dropout(x * 1.1, 0.5, training=True)

    def draw(**options):
        torch.manual_seed(3)
        return traced(program, torch.ones(BATCH, 50), **options)[1].inner != 0

    assert torch.equal(draw(), draw(noise=torch.Generator().manual_seed(0)))


def test_in_place_writes_and_views_share_memory():
    def program(x):
        y = x * 1.0
        z = y.view(BATCH, 2, 3)
        z[:, 0] = 7.0
        y.add_(1.0)
        y.transpose_(0, 1)
        return y, z

    _, (y, z) = traced(program, torch.randn(BATCH, 6))

    assert y.shape == (6, BATCH)
    assert torch.equal(y.inner.t().reshape(BATCH, 2, 3), z.inner)
    assert (z.inner[:, 0] == 8.0).all()


def test_a_change_of_shape_in_place_keeps_the_gradient():
    def program(x):
        y = (x * 1.5).exp()  # its result is what its backward pass reads
        y.t_()
        y.unsqueeze_(0)
        return y.squeeze_(0).sum(0)

    trace, out = traced(program, torch.randn(BATCH, 6))
    assert not trace.severed
    torch.autograd.grad(out.inner.sum(), trace.recorder.leaves)


def test_overflow_is_applied_and_its_inputs_are_marked():
    x = torch.ones(BATCH, 3)
    x[2] = 300.0
    trace, out = traced(lambda t: t * t, x)

    assert trace.recorder.overflowed.tolist() == [False, False, True, False, False]
    assert out.inner[2].isinf().all()
    assert trace.recorder.totals["here", "mul"].largest == 90000.0


def test_a_sum_that_was_infinite_already_is_no_overflow():
    x = torch.ones(BATCH, 3)
    mask = torch.tensor([0.0, 0.0, -torch.inf]).half()
    trace, _ = traced(lambda t: (t + mask).softmax(-1), x)

    assert not trace.recorder.overflowed.any()


def test_subnormal_and_zeroed_values_are_counted():
    x = torch.tensor([[1.0, 1e-3, 1e-6, 0.0]]).expand(BATCH, 4)
    trace, _ = traced(lambda t: t * 1e-5 * 1.0, x, detailed=True)
    totals = trace.recorder.totals["here", "mul"]

    assert totals.values == 2 * BATCH * 4
    assert totals.subnormal > 0
    assert totals.zeroed >= BATCH


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_scripted_and_functional_programs_are_traced():
    layer = torch.jit.script(nn.Sequential(nn.Linear(6, 4), nn.Tanh())).half()
    trace, out = traced(lambda x: torch.vmap(lambda v: v * v)(layer(x)), torch.randn(BATCH, 6))

    assert out.dtype == torch.float16
    assert {"addmm", "tanh", "mul"} <= set(site_names(trace))


@pytest.mark.parametrize(("accumulate", "rounds"), [(False, False), (True, True)])
def test_an_assignment_moves_values_and_rounds_none(accumulate, rounds):
    """``x[mask] = y`` is `index_put`; where it accumulates it is a sum like any other."""

    def program(x):
        y, at = torch.exp(x), (torch.arange(BATCH), torch.zeros(BATCH, dtype=torch.long))
        return y.index_put(at, y[:, 1] * 3, accumulate=accumulate)

    trace, _ = traced(program, torch.randn(BATCH, 4))
    assert ("index_put" in site_names(trace)) is rounds


def test_an_infinite_number_that_is_assigned_stays_so():
    def program(x):
        y = torch.exp(x)
        y[y > 1] = -torch.inf
        return y

    x = torch.linspace(-1, 1, BATCH).unsqueeze(1)
    for noise in (None, torch.Generator().manual_seed(0)):
        _, out = traced(program, x, noise=noise)
        assert torch.equal(out.inner == -torch.inf, x > 0)
        assert not out.inner.isnan().any()


def test_cudas_fused_attention_is_followed_with_its_gradient():
    flash = torch.ops.aten._scaled_dot_product_flash_attention.default

    def program(q, k, v):
        return flash(q, k, v, 0.0, True)[0].sum((1, 2, 3))

    q, k, v = (torch.randn(BATCH, 2, 5, 8) for _ in range(3))
    trace, out = traced(program, q, k, v)
    plain = F.scaled_dot_product_attention(*(t.half().float() for t in (q, k, v)), is_causal=True)
    assert torch.allclose(out.inner, plain.sum((1, 2, 3)), atol=1e-5)
    assert out.inner.requires_grad
    assert not trace.severed
    assert site_names(trace)[0] == "attention probabilities"


def test_cudas_softmax_of_float16_that_gives_float32():
    softmax = torch.ops.aten._softmax.default
    x = torch.randn(BATCH, 6)
    trace, out = traced(lambda x: softmax(x * 2, -1, True), x)
    assert out.dtype == torch.float32
    assert site_names(trace) == ["mul"]


def test_what_a_kernel_keeps_for_its_backward_pass_severs_no_gradient():
    x, target = torch.randn(BATCH, 6), torch.randint(0, 6, (BATCH,))
    weight = torch.rand(6).half()
    trace, out = traced(lambda x: F.nll_loss((x * 2).log_softmax(-1), target, weight), x)
    assert out.inner.requires_grad
    assert not trace.severed


@pytest.mark.parametrize(
    "program",
    [
        lambda x: x.clamp(min=1e-10).float().log(),
        lambda x: 1 / x.clamp(min=1e-10).float().relu(),
        lambda x: ((x + 1) * 1e-10).float().view(-1).log(),
    ],
)
def test_a_cast_to_float32_comes_too_late_for_what_underflowed(program):
    trace, out = traced(program, torch.zeros(BATCH))
    assert out.inner.isinf().all()
    assert trace.recorder.bent


def test_a_floor_set_in_float32_holds():
    programs = (
        lambda x: x.float().clamp(min=1e-10).log(),
        lambda x: (x.float() + 1e-10).log(),
        lambda x: x.float().add_(1e-10).log(),
    )
    for program in programs:
        assert traced(program, torch.zeros(BATCH))[1].inner.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_what_is_written_into_a_buffer_is_read_there(dtype):
    cache = torch.zeros(3, BATCH, 4, dtype=dtype)

    def program(x):
        for t in range(3):
            cache[t] = x * (t + 1)
        return cache.sum((0, 2))

    x = torch.rand(BATCH, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    cast = dtype if dtype == torch.float16 else None
    trace, out = traced(program, x, dtype=cast)
    torch.testing.assert_close(out.inner, 6 * x.float().sum(1), rtol=1e-2, atol=0)
    assert out.cell.depends
    assert out.inner.requires_grad is (dtype == torch.float16)
    assert not cache.any(), "the model's own memory stays as it was"
    assert trace.severed == set()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize(
    ("cast", "layout"),
    [(lambda a: a, torch.sparse_csr), (torch.Tensor.float, torch.sparse_coo)],
)
def test_a_constant_sparse_matrix_stays_one(cast, layout):
    matrix = torch.eye(4).roll(1, 0).half().to_sparse(layout=layout)
    x = torch.rand(4, BATCH).half()

    def program(x):
        a = cast(matrix)
        return torch.sparse.mm(a, x.to(a.dtype)).t()

    out = traced(program, x)[1]
    torch.testing.assert_close(out.inner, x.float().roll(1, 0).t())


def test_jagged_tensors_are_followed():
    w = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).half()
    offsets = torch.tensor([0, 2, 3, 7, 8, 12])

    def program(x):
        nested = torch.nested.nested_tensor_from_jagged(x, offsets)
        return (nested @ w).sin().to_padded_tensor(0.0).sum((1, 2))

    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(1)).half()
    trace, out = traced(program, x)

    assert torch.allclose(out.inner, program(x).float(), atol=0.02)
    assert "sin" in site_names(trace)


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_a_count_that_no_input_has_a_part_in_stands_still(target):
    """The degrees of a graph: ones are added to 2048 in vain."""
    goal = torch.zeros(3000, dtype=torch.long)

    def degrees(x):
        return x * x.new_zeros(1).index_add(0, goal, x.new_ones(3000))

    _, out = traced(degrees, torch.ones(BATCH, 1), target=target)
    assert out.inner.tolist() == [[2048.0]] * BATCH


def test_bits_that_are_read_are_those_of_the_programs_format():
    x = torch.randn(BATCH, 2).half()
    for program in (
        lambda x: x.view(torch.int16),
        lambda x: x.view(torch.int32),  # two numbers as one
        lambda x: (x.view(torch.int16) & 0x7FFF).view(torch.float16),
        lambda x: (x.float().view(torch.int32) >> 23 << 23).view(torch.float32),
    ):
        out, wanted = traced(program, x)[1], program(x)
        assert (out.dtype, out.shape) == (wanted.dtype, wanted.shape)
        assert torch.equal(out.native(), wanted)
    with pytest.raises(RuntimeError, match="different element sizes"):
        traced(lambda x: x[:, :1].view(torch.int32), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_no_gradient_passes_bits(dtype):
    whole = torch.int16 if dtype is torch.float16 else torch.int32
    trace, _ = traced(lambda x: (x * 1.7).to(dtype).view(whole), torch.randn(BATCH, 2))
    assert trace.severed == {"view"}


@pytest.mark.parametrize("eight", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_no_slope_tells_what_becomes_of_errors_in_eight_bits(eight):
    trace, _ = traced(lambda x: (x * 1.7).to(eight).to(x.dtype), torch.randn(BATCH, 2))
    assert trace.severed == {"_to_copy"}
    trace, _ = traced(lambda x: x.to(eight).to(x.dtype), torch.randn(BATCH, 2))
    assert trace.severed == set()  # inputs, in which no error is
