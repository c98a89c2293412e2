"""Theory follows ordinary models: a forecast that is not there is a mistake of ours."""

import gc
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._ops import HigherOrderOperator

from pytest_fp16 import Evaluation, Settings, check
from pytest_fp16.conformance import examine
from pytest_fp16.engine.emulation.wording import is_trouble_with_dtypes
from pytest_fp16.engine.tracing.recorder import Recorder

ALL = ("16-true", "16-mixed", "bf16-true", "bf16-mixed")


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embed, self.layer = nn.Embedding(30, 12), kind(12, 16, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens):
        return self.head(self.layer(self.embed(tokens))[0][:, -1])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens):
        return self.head(self.layers(self.embed(tokens)).mean(1))


class InPlace(nn.Module):
    """Writes into slices, chunks, indexes: what autograd and views make hard."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, tokens):
        x = self.first(tokens.to(self.first.weight.dtype) / 30)
        x[:, :4] *= 2
        x = x.relu_().add_(0.1)
        a, b = x.chunk(2, -1)
        x = torch.cat([a.clamp(max=3), b.sigmoid() * a], -1)
        x[:, [1, 3]] = x[:, [0, 2]].tanh()
        return self.head(x / x.norm(dim=-1, keepdim=True).clamp(min=1e-3))


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, 8, 3, padding=1),
            nn.BatchNorm1d(8),
            nn.GELU(),
            nn.MaxPool1d(2),
            nn.ConvTranspose1d(8, 8, 2, 2),
            nn.GroupNorm(2, 8),
            nn.SiLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        )

    def forward(self, tokens):
        return self.body(tokens.to(self.body[0].weight.dtype).unsqueeze(1) / 30)


MODELS = {
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "rnn": lambda: Recurrent(nn.RNN),
    "encoder": Encoder,
    "in place": InPlace,
    "convolutional": Convolutional,
}


class Checked(nn.Module):
    """Validates its probabilities, as torch.distributions does: to float32's accuracy."""

    def __init__(self, check):
        super().__init__()
        self.layer, self.check = nn.Linear(6, 10), check

    def forward(self, x):
        probabilities = (8 * self.layer(x)).softmax(-1)
        self.check(probabilities)
        return probabilities


def asserts(p):
    assert torch.allclose(p.sum(-1), torch.ones_like(p[:, 0]), atol=1e-5)


def names_what_it_was_given(p):
    if ((p.sum(-1) - 1).abs() > 1e-5).any():
        raise ValueError(f"{type(p).__name__} of {p.dtype} is no distribution: {p[0]}")


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (asserts, "AssertionError"),
        (names_what_it_was_given, "Tensor of torch.float16 is no distribution: tensor("),
    ],
)
def test_a_check_in_the_model_that_rounded_values_fail_is_forecast(check, said):
    torch.manual_seed(0)
    model, x = Checked(check).eval(), torch.randn(60, 6)
    data = [(x, model(x).argmax(-1))]
    true, mixed = examine(Evaluation(model=model, data=data), Settings(("16-true", "16-mixed")))
    assert true.verdict == true.forecast.verdict == "not equivalent"
    assert said in true.forecast.reason
    assert mixed.verdict == mixed.forecast.verdict == "equivalent"


class Chooses(nn.Module):
    """Knows a constant for each dtype but those of 16 bits."""

    def __init__(self, tell):
        super().__init__()
        self.layer, self.tell = nn.Linear(6, 10), tell

    def forward(self, x):
        known = {torch.float32: 1e-6, torch.float64: 1e-8}
        return self.layer(x) + self.tell(known.get(x.dtype), x)


def refuses(constant, x):
    if constant is None:
        raise RuntimeError(f"Unsupported dtype {x.dtype}")
    return constant


@pytest.mark.parametrize(
    ("tell", "said"),
    [
        (lambda constant, x: torch.tensor(constant, dtype=x.dtype), "real number"),
        (refuses, "Unsupported dtype torch.float16"),
    ],
)
def test_a_program_that_refuses_a_dtype_is_forecast_and_told_apart_from_a_kernel(tell, said):
    torch.manual_seed(0)
    subject = Evaluation(Chooses(tell).eval(), [torch.randn(20, 6)], labelled=False)
    (report,) = examine(subject, Settings(("16-true",)))
    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert said in report.error
    assert said in report.forecast.reason
    assert (report.culprit.mechanism, report.culprit.variant) == (
        *("unsupported-op", "refused by the program"),
    )


class Rests(nn.Module):
    """Iterates until the whole batch has come to rest."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.again.weight.mul_(0.5)

    def forward(self, x):
        x = self.first(x)
        state = torch.zeros_like(x)
        for _ in range(30):
            before, state = state, torch.tanh(x + self.again(state))
            if (state - before).abs().max() < 2e-4:
                break
        return self.head(state)


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_a_loop_that_stops_by_a_value_leaves_theory_its_force(precision):
    torch.manual_seed(0)
    model, x = Rests().eval(), torch.randn(200, 6)
    with torch.no_grad():
        data = [(x, model(x).argmax(-1))]
    report = check(Evaluation(model=model, data=data), precision=precision)
    assert report.forecast.method == "random rounding"
    assert any("branches" in note for note in report.forecast.notes)
    assert report.verdict == report.forecast.verdict == "equivalent", str(report)
    assert report.forecast.undecided == 0
    assert report.forecast.flips_allowed < 20
    assert report.standardised is not None
    assert 0.5 < report.standardised.spread < 1.5


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_an_ordinary_model_is_forecast(name, target):
    torch.manual_seed(2)
    model, tokens = MODELS[name]().eval(), torch.randint(0, 30, (40, 6))
    with torch.no_grad():
        data = [(tokens, model(tokens).argmax(-1))]

    # Whether a CPU has a 16-bit LSTM under autocast depends on the CPU, and the canary says so.
    uncertain = (target, name) == ("cpu", "lstm")
    names = tuple(p for p in ALL if not (uncertain and p.endswith("mixed")))
    for report in examine(Evaluation(model=model, data=data), Settings(names, target=target)):
        # Views written in place have no reverse pass: the noise of repeated runs stands in.
        method = "random rounding" if name == "in place" else "adjoint"
        assert report.forecast.method == method, report.forecast.reason
        assert report.forecast.verdict == report.verdict == "equivalent", str(report)


def test_a_batch_leaves_nothing_that_waits_for_a_collection_of_garbage():
    """Memory that does is another's as long, and grows with the inputs."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(16, 6)
    with torch.no_grad():
        subject = Evaluation(model=model, data=[(x, model(x).argmax(-1))] * 3)
    left = []

    class Data:
        def __iter__(self):
            for i, batch in enumerate(subject.data):
                if i == 2:
                    left.append(sum(type(o) is Recorder for o in gc.get_objects()))
                yield batch

    gc.collect()
    gc.disable()
    try:
        examine(replace(subject, data=Data()), Settings(ALL))
    finally:
        gc.enable()
    assert left
    assert left[0] <= len(ALL)  # the last of each is in use


@pytest.mark.skipif(torch.cuda.is_available(), reason="autocast is CUDA's own there")
def test_autocast_is_made_like_cudas_once_a_batch(monkeypatch):
    made, library = [], torch.library.Library
    monkeypatch.setattr(
        torch.library, "Library", lambda *a: made.append(a[2] if len(a) > 2 else "") or library(*a)
    )
    torch.manual_seed(0)
    model, batches = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), 40
    x = torch.randn(batches, 16, 6)
    with torch.no_grad():
        data = [(part, model(part).argmax(-1)) for part in x]
    report = check(Evaluation(model=model, data=data), precision="16-mixed")
    assert report.verdict == "equivalent"
    assert batches <= made.count("AutocastCPU") < 1.5 * batches  # counting and speed are no batch's


def test_an_error_of_a_carrier_is_not_the_programs():
    """torch's advice on memory that is not there speaks of a "custom kernel"."""
    ours = RuntimeError("its data is not allocated yet. ... erroneously tracing a custom kernel")
    assert not is_trouble_with_dtypes(ours)
    assert is_trouble_with_dtypes(RuntimeError("expected scalar type Half but found Float"))


class _Applied(HigherOrderOperator):
    def __init__(self):
        super().__init__("applied_in_a_test")

    def __call__(self, function, x):
        return super().__call__(function, x)


def test_an_operator_that_takes_a_function_is_run_where_it_cannot_be_followed():
    """One of which torch tells no parts, and that no mode may see: it still runs in 16 bits."""
    applied = _Applied()
    applied.py_impl(torch._C.DispatchKey.CPU)(lambda function, x: function(x))
    applied.fallthrough(torch._C.DispatchKey.AutocastCPU)
    applied.fallthrough(torch._C.DispatchKey.AutogradCPU)

    class Applies(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(6, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.head(applied(torch.tanh, self.first(x)))

    torch.manual_seed(0)
    made = Evaluation(model=Applies().eval(), data=[torch.randn(8, 6)] * 2, labelled=False)
    for emulate in ("auto", "never"):
        report = check(made, emulate=emulate, budget=0.2)
        assert report.verdict == "equivalent"
        assert report.run.mode == "native"
        assert report.forecast.method == "unavailable"
        assert any("was not seen" in w and "0x" not in w for w in report.warnings)


class Neighbours(nn.Module):
    """Adds to each node of a graph those it is joined with; memory does not do for 16 bits."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x, edges):
        if x.dtype == torch.float16 and len(x) > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.linear(x + torch.zeros_like(x).index_add(0, edges[1], x[edges[0]]))


def test_a_graph_that_memory_does_not_do_for_is_not_cut():
    random = torch.Generator().manual_seed(0)
    x, edges = (
        torch.randn(64, 3, generator=random),
        torch.randint(0, 64, (2, 200), generator=random),
    )
    subject = Evaluation(Neighbours().eval(), [(x, edges)], labelled=False)
    report = check(subject, precision="16-true")
    assert report.verdict == "inconclusive"
    assert "no memory for a batch" in str(report)


class Spoken(nn.Module):
    """Frames for each token, as many as a rounded exponential says: of another length in 16 bits.

    A token's duration lies just above a whole number, which bfloat16 rounds it to.
    """

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(30, 8), nn.Linear(8, 4)
        self.register_buffer("durations", torch.linspace(2.0, 9.0, 30).round() + 1e-3)

    def forward(self, tokens):
        frames = torch.ceil(self.durations[tokens]).long()
        longest = int(frames.sum(1).max())
        rows = zip(self.embed(tokens), frames, strict=True)
        rows = (torch.repeat_interleave(h, n, 0) for h, n in rows)
        return torch.stack(
            [nn.functional.pad(self.head(r), (0, 0, 0, longest - len(r))) for r in rows]
        )


def spoken(**more):
    torch.manual_seed(0)
    data = [torch.randint(30, (4, 10)) for _ in range(3)]
    if "metric" in more:
        data = [(tokens, torch.zeros(4)) for tokens in data]
    return Evaluation(model=Spoken(), data=data, task="regression", **more)


def test_outputs_of_another_shape_are_a_verdict():
    report = check(spoken(labelled=False), precision="bf16-true")
    assert report.verdict == "not equivalent"
    failed = [c for c in report.checks if not c.passed]
    assert [c.name for c in failed] == ["same shape"]
    assert "where 32-true gives (4, " in failed[0].detail
    assert report.metric is None
    assert report.forecast.verdict == "not equivalent"
    assert "an input's outputs have the shape" in report.forecast.reason
    assert report.culprit is not None
    assert "same shape: the outputs of a batch have the shape (4, " in str(report)


def test_outputs_of_the_same_shape_may_be_longer_in_one_batch_than_in_another():
    report = check(spoken(labelled=False), precision="16-mixed")
    assert report.equivalent
    assert report.metric.candidate == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("allowed", [1.0, 1e-4])
def test_a_metric_of_ones_own_judges_outputs_of_any_shape(allowed):
    def length(outputs, labels):
        return torch.full((len(labels),), outputs.shape[1] / 100)

    report = check(spoken(metric=length), precision="bf16-true", budget=allowed)
    assert report.equivalent == (allowed == 1.0)
    (said,) = [w for w in report.warnings if w.startswith("in 16 bits outputs have the shape")]
    assert said.endswith(": length alone judges them")
    assert report.forecast.verdict == "inconclusive"


class WideNorm(nn.Module):
    """Normalises with weights in float32, which the kernels of a CPU take beside 16-bit values."""

    def __init__(self):
        super().__init__()
        self.lin, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        weight, bias = self.norm.weight.float(), self.norm.bias.float()
        return self.head(nn.functional.layer_norm(self.lin(x), (8,), weight, bias))


@pytest.mark.parametrize("target", ["cuda", "cpu"])
@pytest.mark.parametrize("name", ["16-true", "bf16-true"])
def test_what_the_targets_kernel_refuses_is_no_matter_of_this_devices(name, target):
    torch.manual_seed(0)
    settings = Settings(precisions=(name,), target=target)
    subject = Evaluation(WideNorm().eval(), [torch.randn(40, 8)], labelled=False)
    (report,) = examine(subject, settings)
    wanted = "not equivalent" if target == "cuda" else "equivalent"
    assert report.verdict == report.forecast.verdict == wanted
    if target == "cuda":
        assert report.culprit.variant == "mixed dtypes"
        assert report.cure.verified
