"""Batches that cannot be cut, kernels the target lacks, scripted modules, lost regressions."""

import math
import warnings
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pytest_fp16 import Evaluation, Settings, Training, check
from pytest_fp16.conformance import examine
from pytest_fp16.errors import DataError, ModelError, SettingError


class Graph(nn.Module):
    """One mean over neighbours; `gain` is taken back after the sum."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 16)
        self.leave = nn.Linear(16, 3)
        self.gain = gain

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        messages = (self.enter(x).relu() * self.gain)[source]
        total = torch.zeros_like(messages[: len(x)]).index_add(0, target, messages)
        return 10 * self.leave(total / self.gain)


def graph(gain: float) -> Evaluation:
    torch.manual_seed(0)
    model, x = Graph(gain).eval(), torch.randn(60, 8) + 2
    edges = torch.randint(0, 60, (2, 400))
    with torch.no_grad():
        labels = model(x, edges).argmax(-1)
    return Evaluation(model=model, data=[{"x": x, "edges": edges, "labels": labels}])


def test_a_graph_is_never_cut():
    report = check(graph(1.0), precision="16-true")
    assert report.verdict == "equivalent", str(report)
    assert not report.warnings, "the canary runs on all nodes, or the edges point nowhere"


def test_a_graph_that_overflows_is_diagnosed():
    report = check(graph(5000.0), precision="16-true")
    assert report.verdict == "not equivalent"
    assert report.culprit is not None, report.warnings
    assert report.culprit.mechanism == "overflow"


class Histogram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.stack([torch.histc(row, bins=8, min=0.0, max=1.0) for row in x]))


@pytest.mark.parametrize(("target", "verdict"), [("cuda", "not equivalent"), ("cpu", "equivalent")])
def test_a_kernel_the_target_lacks_is_no_matter_of_this_device(target, verdict):
    torch.manual_seed(0)
    model, x = Histogram().eval(), torch.rand(40, 20)
    report = check(
        Evaluation(model=model, data=[x], labelled=False), precision="16-true", target=target
    )
    assert report.verdict == verdict, str(report)
    if target == "cuda":
        assert report.culprit is not None
        assert report.culprit.mechanism == "unsupported-op"
        assert report.forecast.verdict == verdict


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_scripted_module_is_examined_without_a_warning():
    model = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not a leaf Tensor.*")
        report = check(
            Evaluation(model=model, data=[torch.randn(30, 8)], labelled=False), precision="16-true"
        )
    assert report.verdict == "equivalent", str(report)


def test_a_regression_lost_to_infinity_has_no_finite_r2():
    torch.manual_seed(0)
    model, x = nn.Linear(8, 1), torch.randn(60, 8)
    nn.init.constant_(model.bias, 2e5)
    with torch.no_grad():
        labels = model(x)
    report = check(Evaluation(model=model.eval(), data=[(x, labels)]), precision="16-true")
    assert report.verdict == "not equivalent"
    assert report.metric.candidate == -math.inf
    assert "R² -infinite" in str(report)


def test_a_regression_that_cannot_run_has_a_report():
    class Symmetric(nn.Module):  # linear algebra has no 16-bit kernel anywhere
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvalsh(x.unsqueeze(2) * x.unsqueeze(1))

    data = [torch.randn(20, 4), torch.randn(20, 4)]
    subject = Evaluation(model=Symmetric().eval(), data=data, labelled=False, task="regression")
    report = check(subject, precision="16-true")
    assert report.verdict == "not equivalent"
    assert report.culprit.mechanism == "unsupported-op", str(report)
    assert report.metric is None
    assert report.forecast.verdict == "not equivalent"


class Always(nn.Linear):
    """The same values for every input: those of its bias."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 0)


@pytest.mark.parametrize(
    ("model", "n", "gain", "verdict"),
    [
        (nn.Linear, 1, 1.0, "equivalent"),
        (Always, 50, 1.0, "equivalent"),
        (Always, 50, 0.0, "equivalent"),
        (Always, 50, 1e6, "not equivalent"),
    ],
)
def test_a_regression_whose_outputs_do_not_vary_has_an_r2(model, n, gain, verdict):
    torch.manual_seed(0)
    made = model(8, 5).eval()
    with torch.no_grad():
        made.bias.mul_(gain)
    subject = Evaluation(model=made, data=[torch.randn(n, 8)], labelled=False, task="regression")
    report = check(subject, precision="16-true")
    assert report.verdict == report.forecast.verdict == verdict, str(report)
    assert report.metric.reference == 1


def nearness(outputs: Tensor, labels: Tensor) -> Tensor:
    return 1 - (outputs - labels).abs().mean(1)


def test_a_metric_of_the_users_own_is_forecast():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)).eval(), torch.randn(60, 8)
    with torch.no_grad():
        data = [(x, model(x))]
    sound = check(Evaluation(model=model, data=data, metric=nearness), precision="16-true")
    assert sound.forecast.verdict == sound.verdict == "equivalent", str(sound)
    assert sound.forecast.metric_loss == pytest.approx(sound.metric.loss, rel=0.5)
    coarse = check(
        Evaluation(model=model, data=data, metric=nearness), precision="bf16-true", budget=1e-4
    )
    assert coarse.forecast.verdict == coarse.verdict == "not equivalent", str(coarse)


class Hashed(nn.Module):
    """Looks rows up by a number that passed through the precision of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        keys = (ids.to(self.head.weight.dtype) * 1000).long() // 1000
        return self.head(self.table(keys.clamp(0, 99)).mean(1))


def test_open_decisions_are_forecast_by_random_rounding():
    torch.manual_seed(0)
    model, ids = Hashed().eval(), torch.randint(0, 100, (120, 4))
    with torch.no_grad():
        labels = model(ids).argmax(-1)
    report = check(Evaluation(model=model, data=[(ids, labels)]), precision="bf16-true")
    assert report.verdict == "not equivalent"
    assert report.forecast.method == "random rounding"
    assert report.forecast.verdict == "not equivalent", report.forecast.reason


class Clamped(nn.Module):
    """A large feed-forward whose float16 run is clamped to the range, as T5's is."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.wide = nn.Linear(8, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.wide(1000 * self.enter(x).relu()) * 1.0
        if h.dtype == torch.float16:
            h = h.clamp(-64504, 64504)
        return self.head(h / 1e4)


def test_an_overflow_that_is_clamped_is_still_the_culprit():
    torch.manual_seed(0)
    model, x = Clamped().eval(), torch.randn(200, 8)
    with torch.no_grad():
        model.wide.weight.mul_(300)
        labels = model(x).argmax(-1)
    report = check(Evaluation(model=model, data=[(x, labels)]), precision="16-true")
    assert report.verdict == "not equivalent", str(report)
    assert report.culprit.mechanism == "overflow", str(report)
    assert report.culprit.module == "wide"


@pytest.mark.parametrize("precision", ["16-true", "16-mixed"])
def test_a_single_bias_beyond_the_range_is_no_mask(precision):
    torch.manual_seed(0)
    model, x = nn.Linear(8, 1), torch.randn(60, 8)
    nn.init.constant_(model.bias, 2e5)
    with torch.no_grad():
        labels = model(x)
    report = check(Evaluation(model=model.eval(), data=[(x, labels)]), precision=precision)
    assert report.culprit.mechanism == "overflow", str(report)


class Directions(nn.Module):
    """Divides by a norm whose squares vanish in float16, in front of a product in 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.classes = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x) * 1e-4
        return self.classes(h / ((h * h).sum(-1, keepdim=True).sqrt() + 1e-12))


def test_an_overflow_that_follows_from_an_underflow_is_an_underflow():
    torch.manual_seed(0)
    model, x = Directions().eval(), torch.randn(100, 8)
    with torch.no_grad():
        labels = model(x).argmax(-1)
    report = check(Evaluation(model=model, data=[(x, labels)]), precision="16-mixed")
    assert report.verdict == "not equivalent", str(report)
    assert report.culprit.mechanism == "underflow", str(report)
    assert report.culprit.operation == "mul"


def test_tensors_of_two_dtypes_are_called_so():
    class Promoted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * torch.linspace(0.5, 1, 8))

    torch.manual_seed(0)
    report = check(
        Evaluation(model=Promoted(8, 3).eval(), data=[torch.randn(30, 8)], labelled=False),
        precision="16-true",
    )
    assert report.culprit.mechanism == "unsupported-op"
    assert "different dtypes" in str(report)


class Singular(nn.Module):
    """Values that are exactly zero, and a function whose derivative there is infinite."""

    def __init__(self, function) -> None:
        super().__init__()
        self.enter, self.leave, self.function = nn.Linear(8, 32), nn.Linear(32, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.function(self.enter(x).relu()))


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
@pytest.mark.parametrize(
    "function",
    [
        lambda y: torch.sqrt(y + 1e-12),
        lambda y: torch.nan_to_num(y / y.amax(1, keepdim=True)),
    ],
)
def test_an_infinite_gradient_is_no_infinite_error(function, precision):
    torch.manual_seed(0)
    model, x = Singular(function).eval(), torch.randn(100, 8)
    nn.init.constant_(model.enter.bias, 0)
    x[:10] = 0  # nothing passes the rectifier: 0/0
    report = check(Evaluation(model=model, data=[x], labelled=False), precision=precision)
    assert report.verdict == report.forecast.verdict == "equivalent", str(report)


class Remembering(nn.Module):
    """Keeps a table in float32, which no cast reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)
        self.table = torch.linspace(0, 1, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x + self.table)[0][:, -1])


class Summed(nn.Module):
    """Autocast gives the terms in float32, and the sum in 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        return torch.zeros_like(y).index_add_(0, torch.arange(len(y)), y.exp())


@pytest.mark.parametrize(
    ("model", "x", "precision"),
    [(Remembering, (30, 5, 8), "16-true"), (Summed, (30, 8), "16-mixed")],
)
def test_the_kernel_is_not_blamed_for_tensors_of_two_dtypes(model, x, precision):
    torch.manual_seed(0)
    made = model().eval()
    report = check(
        Evaluation(model=made, data=[torch.randn(x)], labelled=False), precision=precision
    )
    assert report.culprit.mechanism == "unsupported-op", str(report)
    assert "tensors of different dtypes meet" in str(report)
    assert "to one dtype at" in report.cure.description
    assert report.cure.verified


class Turning(nn.Module):
    """A rotation by complex numbers of 64 bits, in the way of rotary embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("turn", torch.polar(torch.ones(4), torch.linspace(0, 3, 4)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        pairs = torch.view_as_complex(y.float().unflatten(-1, (4, 2)))
        return self.leave(torch.view_as_real(pairs * self.turn).flatten(-2).to(y.dtype))


def test_complex_tensors_stay_complex_and_are_told():
    torch.manual_seed(0)
    subject = Evaluation(model=Turning().eval(), data=[torch.randn(60, 8)], labelled=False)
    for report in examine(subject, Settings(precisions=("16-true", "16-mixed"))):
        assert report.verdict == "equivalent", str(report)
        told = [w for w in report.warnings if "turn stays complex" in w]
        assert len(told) == (report.precision == "16-true")


def test_mass_ties_are_said():
    torch.manual_seed(0)
    x = torch.randn(100, 8)
    inner = nn.Linear(8, 4)

    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) + 2000

    with torch.no_grad():
        labels = inner(x).argmax(-1)
    report = check(
        Evaluation(model=Offset().eval(), data=[(x, labels)]), precision="16-true", budget=0.99
    )

    assert report.ties > 5
    said = [w for w in report.warnings if "tie exactly" in w]
    order = "argmax takes the first of the tied classes, so the metric depends on their order"
    assert said == [f"{report.ties} of 100 decisions tie exactly in float16: {order}"]


class WritesItsInput(nn.Module):
    """Normalises what it is given in place, as detection models do with images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(1.0).mul_(0.5)
        return self.layer(x)


def test_a_model_that_writes_into_its_input_spoils_no_other_run():
    torch.manual_seed(0)
    model, x = WritesItsInput().eval(), torch.randn(100, 6)
    with torch.no_grad():
        labels = model(x.clone()).argmax(-1)
    before = x.clone()
    settings = Settings(precisions=("16-true", "16-mixed", "bf16-true", "bf16-mixed"))

    for report in examine(Evaluation(model=model, data=[(x, labels)]), settings):
        assert report.verdict == "equivalent", str(report)
        assert report.metric.reference == 1.0
        assert report.warnings == []
    assert torch.equal(x, before)


def test_a_training_that_writes_into_its_batches_spoils_no_other_run():
    torch.manual_seed(0)
    x = torch.randn(96, 6)
    data = [(part, (part[:, 0] > 0).long()) for part in x.clone().split(32)]
    before = [part.clone() for part, _ in data]

    check(
        Training(
            model=WritesItsInput,
            optimizer=lambda params: torch.optim.SGD(params, lr=0.5),
            loss=nn.functional.cross_entropy,
            train_data=data,
            eval_data=data,
            epochs=4,
        ),
        precision="bf16-mixed",
        seeds=2,
    )

    assert all(torch.equal(part, was) for (part, _), was in zip(data, before, strict=True))


def batch(n=40):
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    return x, x[:, :3].argmax(-1)


class First(nn.Module):
    """The first few of the inputs, which are right by construction."""

    def __init__(self, many: int = 3) -> None:
        super().__init__()
        self.many = many

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.many] * 1.0


def test_a_later_batch_without_labels_is_refused_and_not_counted_as_right():
    x, y = batch()
    with pytest.raises(DataError, match="batch 1 holds no labels"):
        check(Evaluation(model=First(), data=[(x, y), x]))


def test_labels_that_are_all_padding_leave_nothing_to_decide():
    x, y = batch()
    with pytest.raises(DataError, match=r"no decision counts.*-100"):
        check(Evaluation(model=First(), data=[(x, torch.full_like(y, -100))]))
    some = torch.where(torch.arange(40) < 30, y, -100)
    assert check(Evaluation(model=First(), data=[(x, some)])).decisions == 30


@pytest.mark.parametrize("shape", [(40,), (40, 1), (40, 2)])
def test_a_regression_never_broadcasts_its_labels(shape):
    x, _ = batch()
    with pytest.raises(DataError, match=r"labels of shape .* do not fit outputs of shape .40, 3"):
        check(Evaluation(model=First(), data=[(x, torch.randn(shape))], task="regression"))


@pytest.mark.parametrize("shape", [(40,), (40, 1)])
def test_one_value_per_input_may_lie_flat_or_in_a_column(shape):
    x, _ = batch()
    given = Evaluation(model=First(1), data=[(x, x[:, 0].reshape(shape))], task="regression")
    assert check(given).metric.reference == 1


def test_labels_of_numpy_are_labels():
    x, y = batch()
    assert check(Evaluation(model=First(), data=[(x, y.numpy())])).metric.labelled


@pytest.mark.parametrize("budget", [1, "100pt", 1.5, 5, "100%", "200%"])
def test_a_budget_that_nothing_could_exceed_is_refused(budget):
    x, y = batch()
    subject = Evaluation(model=First(), data=[(x, y)])
    with pytest.raises(SettingError, match="could not fail: it is all"):
        check(subject, budget=budget)
    assert check(subject, budget="99.9pt").equivalent


def test_a_metric_with_units_of_its_own_takes_any_budget():
    x, y = batch()

    def points(outputs, labels):
        return 100.0 * (outputs.argmax(-1) == labels)

    assert check(Evaluation(model=First(), data=[(x, y)], metric=points), budget=5).equivalent


class Predictor:
    """Called with inputs, as a model is, but no module."""

    def __call__(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("model", [Predictor(), lambda x: x], ids=["object", "function"])
def test_what_wants_inputs_makes_no_model(model):
    x, y = batch()
    with pytest.raises(ModelError, match=r"without arguments that makes one.*forward="):
        check(Evaluation(model=model, data=[(x, y)]))


class Propagated(nn.Module):
    """A graph network: features go along the edges of a matrix that the model holds."""

    def __init__(self, layout, island=False):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        edges = (torch.rand(60, 60, generator=random) < 0.05).float() + torch.eye(60)
        self.register_buffer("edges", edges.to_sparse(layout=layout))
        self.first, self.head, self.island = nn.Linear(20, 16), nn.Linear(16, 4), island

    def forward(self, x):
        x = self.first(x).relu()
        if not self.island:
            return self.head(torch.sparse.mm(self.edges, x))
        with torch.autocast("cuda", enabled=False):
            x = torch.sparse.mm(self.edges.float(), x.float())
        return self.head(x.to(self.head.weight.dtype))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize(
    ("layout", "island", "verdicts"),
    [
        (torch.sparse_coo, False, ("not equivalent", "not equivalent")),
        (torch.sparse_coo, True, ("equivalent", "equivalent")),
        (torch.sparse_csr, False, ("equivalent", "equivalent")),
    ],
)
def test_a_sparse_matrix_needs_float32_unless_its_rows_are_compressed(layout, island, verdicts):
    torch.manual_seed(0)
    model, x = Propagated(layout, island).eval(), torch.randn(60, 20)
    with torch.no_grad():
        out = model(x)
    first, second = out.topk(2).values.unbind(-1)
    labels = out.argmax(-1).masked_fill(first - second < 0.05, -100)  # random weights are unsure
    reports = examine(
        Evaluation(model=model, data=[(x, labels)]),
        Settings(precisions=("16-true", "bf16-mixed"), emulate="always"),
    )
    assert tuple(r.verdict for r in reports) == verdicts
    assert tuple(r.forecast.verdict for r in reports) == verdicts
    for report in (r for r in reports if r.error):
        assert "_sparse_addmm has no" in report.error
        assert report.culprit.mechanism == "unsupported-op"


class _Asks(nn.Module):
    """An encoder-decoder, which wants to know what was said so far."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, labels=None):
        if labels is None:
            raise ValueError("specify either decoder_input_ids or labels")
        return self.layer(x)


def test_a_batch_that_the_model_does_not_take_gets_advice():
    batch = {"x": torch.randn(4, 4), "labels": torch.zeros(4, dtype=torch.long)}
    with pytest.raises(ModelError, match="labels were taken out of the batch"):
        check(Evaluation(model=_Asks(), data=[batch]))
    with pytest.raises(ModelError, match=r"holds float64: make it float32"):
        check(Evaluation(model=nn.Linear(4, 3), data=[torch.randn(4, 4).double()]))
    with pytest.raises(ModelError, match="check the batch and forward="):
        check(Evaluation(model=nn.Linear(4, 3), data=[torch.randn(4, 5)]))


def test_a_batch_of_one_that_is_squeezed_away_is_said():
    class Squeezes(nn.Linear):
        def forward(self, x):
            return super().forward(x).squeeze()

    with pytest.raises(ModelError, match=r"batch 1 has shape \(4,\), that of the first \(8, 4\)"):
        check(Evaluation(model=Squeezes(10, 4), data=[torch.randn(8, 10), torch.randn(1, 10)]))


class _Insists(nn.Linear):
    def forward(self, x):
        assert x.dtype == torch.float32, "float32 expected"
        return super().forward(x)


class _Checks(nn.Linear):
    def forward(self, x):
        assert bool(((x * 300) ** 2).isfinite().all()), "values went astray"
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "mechanism", "why"),
    [
        (_Insists, "unsupported-op", "the program itself refuses float16"),
        (_Checks, "overflow", "a value leaves the range of float16"),
    ],
)
def test_an_assertion_of_a_dtype_is_told_from_one_of_values(model, mechanism, why):
    torch.manual_seed(0)
    report = check(Evaluation(model=model(10, 3).eval(), data=[torch.randn(32, 10)]))
    assert report.verdict == "not equivalent"
    assert report.culprit.mechanism == mechanism, str(report)
    assert f"why:   {mechanism}: {why}" in str(report)
    advised = "let the program take 16-bit tensors" in str(report)
    assert advised is (model is _Insists)


class _ByNumber(nn.Module):
    """Looks ids up that came as floating numbers."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5000, 4)

    def forward(self, ids):
        return self.table(ids[:, 0].long())


def test_whole_numbers_that_become_one_are_told_as_that():
    torch.manual_seed(0)
    data = [torch.randint(0, 5000, (64, 1)).float()]
    report = check(Evaluation(model=_ByNumber().eval(), data=data, labelled=False))
    assert report.culprit.mechanism == "absorption"
    assert "why:   absorption: large whole numbers become one in float16" in str(report)
    assert "keep the whole numbers as integers at " in str(report)
    assert "hand input 0 on in float32 (keep_inputs=[0]) (or, not tried: keep the" in str(report)


def _right(outputs, labels):
    return torch.tensor(
        [float(int(o.argmax()) == int(y[-1])) for o, y in zip(outputs, labels, strict=True)]
    )


@pytest.mark.parametrize(
    "form",
    [
        lambda y: [[0] * int(v) + [int(v)] for v in y],  # of other lengths than the outputs
        lambda y: [str(int(v)) for v in y],
        lambda y: torch.stack([torch.full_like(y, -1), y], 1),  # padded as no class is
        lambda y: torch.stack([torch.arange(len(y)), y], 1),
    ],
)
def test_labels_may_be_what_only_the_users_metric_reads(form):
    x, y = batch()
    report = check(Evaluation(model=First(), data=[(x, form(y))], metric=_right))
    assert report.equivalent
    assert (report.metric.reference, report.metric.labelled) == (1, True)
    assert report.forecast.verdict == "equivalent"


def test_labels_for_a_metric_may_come_in_any_number():
    x, y = batch()
    table = torch.stack([torch.arange(len(y)), y], 1).repeat(3, 1)  # row, class: as boxes come

    def found(outputs, rows):
        first = rows[: len(outputs)]
        return (outputs.argmax(-1)[first[:, 0]] == first[:, 1]).float()

    report = check(Evaluation(model=First(), data=[(x, table)], metric=found))
    assert report.equivalent
    assert report.inputs == len(x)


def test_a_metric_says_what_labels_it_needs():
    x, _ = batch()
    with pytest.raises(DataError, match="metric= that needs labels"):
        check(Evaluation(model=First(), data=[x], metric=_right))


def test_a_pair_whose_second_is_none_holds_no_labels():
    x, _ = batch()
    report = check(Evaluation(model=First(), data=[(x, None)]))
    assert report.equivalent
    assert not report.metric.labelled


class Filled(nn.Module):
    """Values that count where an area is there: a ratio as steep as it is bounded."""

    def forward(self, x):
        low = 300 + 200 * x[:, :4].sigmoid()
        area = (low + 300 * x[:, 4:].relu()) - low
        return torch.tanh(x[:, :4]) * area / (area + 1e-3)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_no_loss_is_forecast_from_a_slope_that_ends_at_once(precision):
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    x[:, 4:] = x[:, 4:].abs() + 0.5
    x[0, 4] = 0  # one area that is none
    subject = Evaluation(Filled().eval(), [x], labelled=False, task="regression")
    report = check(subject, precision=precision, budget=0.01)
    assert report.equivalent, str(report)
    assert report.forecast.verdict == "equivalent", str(report)


class OnTheCpu(nn.Module):
    """A function of 16-bit values that a CPU's kernels compute otherwise than CUDA's, or not."""

    def __init__(self, run):
        super().__init__()
        self.run, self.scale = run, nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.run(x * self.scale)


@pytest.mark.parametrize("emulate", ["never", "always"])
@pytest.mark.parametrize(
    ("run", "precision"),
    [
        (lambda x: (1 + x / 100).prod(-1, keepdim=True), "16-true"),
        (lambda x: torch.erfinv(torch.tanh(x)), "bf16-true"),
        (lambda x: torch.logit(torch.sigmoid(4 * x), eps=1e-5), "16-true"),
        (lambda x: torch.linalg.solve(x.view(-1, 10, 20)[:, :, :10], x.view(-1, 10, 20)[:, :, 10:])
         .flatten(1), "16-true"),
        (lambda x: torch.polar(x.abs(), x).real, "bf16-true"),
    ],
)  # fmt: skip
def test_a_cpu_is_forecast_and_emulated_as_it_runs(run, precision, emulate):
    x = torch.randn(100, 200, generator=torch.Generator().manual_seed(0))
    subject = Evaluation(OnTheCpu(run).eval(), [x], labelled=False, task="regression")
    report = check(subject, precision=precision, target="cpu", emulate=emulate)
    assert report.verdict == report.forecast.verdict == "not equivalent", str(report)


def test_a_cpus_folds_are_as_predicted():
    fold = lambda x: F.fold(F.unfold(x.view(-1, 1, 10, 20), 3), (10, 20), 3).flatten(1)  # noqa: E731
    x = torch.randn(50, 200, generator=torch.Generator().manual_seed(0))
    subject = Evaluation(OnTheCpu(fold).eval(), [x], labelled=False, task="regression")
    report = check(subject, precision="16-true", target="cpu", emulate="never")
    assert report.equivalent, str(report)


@pytest.mark.parametrize(("size", "verdict"), [(30, "equivalent"), (20, "not equivalent")])
def test_a_kernel_that_only_small_batches_lack(size, verdict):
    """cdist: a few inputs taken out of a batch are refused, the batch itself is not."""

    class Nearest(nn.Module):
        def __init__(self):
            super().__init__()
            self.points = nn.Parameter(torch.randn(5, 6))

        def forward(self, x):
            return -torch.cdist(x, self.points)

    torch.manual_seed(0)
    model, x = Nearest(), torch.randn(size, 6)
    report = check(Evaluation(model=model, data=[(x, model(x).argmax(-1))]), precision="16-true")
    assert (report.verdict, report.forecast.verdict) == (verdict, verdict)


@pytest.mark.parametrize(("reach", "said"), [(30.0, 2), (3.0, 0)])
def test_a_reference_that_is_infinite_itself_is_remarked(reach, said):
    """exp(90) is no float32; minus infinity, as of masked logits, is nothing to speak of."""

    class Exponents(nn.Module):
        def forward(self, x):
            return torch.cat([torch.exp(x * reach), torch.full_like(x[:, :1], -torch.inf)], -1)

    x = torch.tensor([[3.0, 1.0], [1.0, 3.0], [2.0, 1.0]])
    data = [(x, torch.tensor([0, 1, 0]))]
    report = check(Evaluation(model=Exponents(), data=data), precision="bf16-mixed")
    warned = [w for w in report.warnings if "of the reference itself are NaN or infinite" in w]
    assert len(warned) == bool(said)
    assert not said or warned[0].startswith(f"{said} outputs")


class Forces(nn.Module):
    """Forces as the gradient of an energy, with respect to positions that may ask for it."""

    def __init__(self, detaches):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(9, 32), nn.SiLU(), nn.Linear(32, 1))
        self.detaches = detaches

    def forward(self, positions):
        if self.detaches:
            positions = positions.detach().requires_grad_()
        return -torch.autograd.grad(self.energy(positions).sum(), positions)[0]


@pytest.mark.parametrize("detaches", [True, False])
def test_a_model_that_differentiates_is_run_with_gradients(detaches):
    torch.manual_seed(0)
    x = torch.randn(61, 9).requires_grad_(not detaches)
    subject = Evaluation(Forces(detaches).eval(), [x], task="regression")
    for report in examine(subject, Settings(precisions=("16-true", "bf16-mixed"))):
        assert report.verdict == report.forecast.verdict == "equivalent"
        assert report.metric.candidate < 1
        assert report.warnings == []


def test_a_gradient_that_is_missing_all_the_same_is_the_models_own_error():
    class Cut(Forces):
        def forward(self, positions):
            return torch.autograd.grad(self.energy(positions).sum(), positions.detach())[0]

    with pytest.raises(ModelError, match=r"raises in float32 already: RuntimeError: .*grad"):
        check(Evaluation(Cut(True).eval(), [torch.randn(61, 9)], task="regression"))


def test_a_model_that_differentiates_in_a_later_batch_alone():
    class Sometimes(Forces):
        def forward(self, positions):
            return positions / 4 if positions.amax() < 1 else super().forward(positions)

    torch.manual_seed(0)
    model, x = Sometimes(True).eval(), torch.randn(61, 9)
    for report in examine(
        Evaluation(model, [x / 9, x], task="regression"),
        Settings(precisions=("16-true", "bf16-mixed")),
    ):
        assert report.verdict == report.forecast.verdict == "equivalent"


def test_a_batch_that_is_left_out_for_its_first_tensor_is_told_of():
    class Extra(nn.Module):
        def forward(self, extra, x):
            return x + extra.sum()

    x = torch.randn(8, 6)
    first, second, empty = (
        {"extra": torch.ones(k, 3), "x": y} for k, y in ((8, x), (0, x), (0, x[:0]))
    )
    for data, wanted in (([first, second, empty], 1), ([first, empty], 0)):
        warned = check(Evaluation(Extra().eval(), data, labelled=False)).warnings
        assert len([w for w in warned if w.startswith("1 batches were left out")]) == wanted


def test_the_run_that_misses_a_gradient_carries_nothing_along():
    class Counting(Forces):
        def __init__(self):
            super().__init__(True)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, positions):
            self.calls += 1
            return super().forward(positions) * (1 + self.calls)

    torch.manual_seed(0)
    model, x = Counting().eval(), torch.randn(61, 9)
    report = check(Evaluation(model, [x, x * 2], task="regression"))
    assert report.verdict == "equivalent"
    assert not [w for w in report.warnings if "not deterministic" in w]


class CountsInHalf(nn.Module):
    """Casts to float16 by itself, and is another model after more than one call of it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.half().to(x.dtype) * self.calls


def test_16_bits_in_the_reference_are_told_by_a_run_that_leaves_no_trace():
    data = 2 * [(4 * torch.eye(3).repeat(20, 1), torch.arange(3).repeat(20))]
    model = CountsInHalf()
    report = check(Evaluation(model=model, data=data), precision="bf16-true")
    told = [w for w in report.warnings if "32-true itself computes in float16" in w]
    assert len(told) == 1
    assert "test_run.py:" in told[0]
    assert report.verdict == "equivalent"
    assert float(model.calls) == 0
    assert report.delta_max == 0  # the candidate's count is the reference's


class Clocked(nn.Module):
    """Reads time steps of hundreds to the last digit, in float64, as diffusion models do."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(8, 4)

    def forward(self, x, t):
        angle = torch.outer(t.double(), 10000.0 ** -torch.linspace(0, 1, 4, dtype=torch.float64))
        return self.body(x) * angle.sin().to(x.dtype)


@pytest.mark.parametrize("as_dict", [False, True])
def test_inputs_that_are_kept_are_handed_on_as_the_program_does_that_is_deployed(as_dict):
    torch.manual_seed(0)
    x, t = torch.randn(300, 8), 1000 * torch.rand(300)
    batch = {"x": x, "t": t} if as_dict else (x, t)
    model, keep = Clocked().eval(), ["t"] if as_dict else [1]
    made = Evaluation(model=model, data=[batch], labelled=False)
    cast = check(made, precision="bf16-true")
    assert (cast.verdict, cast.culprit.variant) == ("not equivalent", "stored inputs")
    kept = check(replace(made, keep_inputs=keep), precision="bf16-true")
    assert (kept.verdict, kept.forecast.verdict) == ("equivalent", "equivalent")
    with pytest.raises(SettingError, match="keep_inputs names 'time'"):
        check(replace(made, keep_inputs=["time"]), precision="bf16-true")


class Clicks(nn.Module):
    """Counts in steps of one where `offset` is 2000, in float16; ends in a sigmoid, or not."""

    def __init__(self, weight, offset=0.0, sigmoid=True):
        super().__init__()
        self.weight, self.offset, self.sigmoid = nn.Parameter(weight), offset, sigmoid

    def forward(self, x):
        z = (x @ self.weight + self.offset) - self.offset
        return torch.sigmoid(z) if self.sigmoid else z


def clicks(shape, offset=0.0, task="auto", size=200, **kind):
    """Inputs of that shape, (…, 16), each with a label for all but the last dimension."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(16, generator=generator) / 4, torch.randn(shape, generator=generator)
    model = Clicks(weight, offset, **kind).eval()
    y = (x @ weight > 0).float()
    return Evaluation(model, list(zip(x.split(size), y.split(size), strict=True)), task=task)


@pytest.mark.parametrize("shape", [(200, 16), (400, 1, 16), (60, 3, 16), (8, 1, 5, 5, 16)])
@pytest.mark.parametrize("task", ["auto", "multilabel"])
def test_probabilities_are_decided_at_a_half(shape, task):
    subject = clicks(shape, 2000.0, task)
    (x, y), half = subject.data[0], subject.model.weight.detach().half()
    wrong = (torch.sigmoid((x.half() @ half + 2000) - 2000) > 0.5) != y.bool()

    report = check(subject, precision="16-true")
    assert (report.verdict, report.task) == ("not equivalent", "multilabel"), str(report)
    assert (report.metric.name, report.metric.reference) == ("accuracy at 0.5", 1.0)
    if len(subject.data) == 1:
        assert report.metric.loss == pytest.approx(float(wrong.float().mean()), abs=0.03)
    assert report.forecast.verdict == "not equivalent"
    assert report.culprit.mechanism == "absorption"


def test_a_sigmoid_that_saturates_is_no_flip():
    """Where it rounds to one in bfloat16 it is as sure as it was."""
    subject = clicks((600, 16))
    subject.model.weight.data *= 20
    assert any((subject.model(x).bfloat16() == 1).any() for x, _ in subject.data)
    for report in examine(subject, Settings(precisions=("16-true", "bf16-true", "bf16-mixed"))):
        assert report.verdict == "equivalent", str(report)
        assert report.flips == 0
        assert report.standardised.spread < report.standardised.spread_allowed
        assert report.forecast.certified.probable > 0.98


def test_without_labels_they_are_decided_there_too():
    subject = clicks((600, 16), 2000.0, "multilabel")
    report = check(
        Evaluation(subject.model, [x for x, _ in subject.data], labelled=False, task="multilabel"),
        precision="16-true",
    )
    assert report.metric.name == "agreement by margin at 0.5"
    assert report.verdict == "not equivalent"


def test_logits_of_a_first_batch_that_lie_between_0_and_1_are_logits():
    subject = clicks((60, 16), size=1, sigmoid=False)
    subject.data.sort(key=lambda batch: not 0 < subject.model(batch[0]).detach() < 1)
    report = check(subject, precision="16-true")
    assert (report.verdict, report.metric.name) == ("equivalent", "accuracy")
    assert (report.metric.reference, report.inputs) == (1.0, 60)


class Steps(NamedTuple):
    """As `generate` returns the logits of each step, and what was chosen."""

    sequences: Tensor
    logits: tuple[Tensor, ...]


class Writer(nn.Module):
    """Writes three tokens, each by the one before; a product of its own may leave float16."""

    def __init__(self, large: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.known, self.head, self.large = nn.Embedding(8, 16), nn.Linear(16, 8), large

    def forward(self, x: Tensor) -> Steps:
        token, logits = x, []
        for _ in range(3):
            h = self.known(token) * self.large
            logits.append(self.head(h * h / self.large**2))
            token = logits[-1].argmax(-1)
        return Steps(token, tuple(logits))


@pytest.mark.parametrize("large", [1.0, 1e3])
def test_logits_of_several_steps_are_followed(large):
    model = Writer(large).eval()
    x = torch.arange(8).repeat(10)
    report = check(Evaluation(model, [x], labelled=False), precision="16-true")
    sound = large == 1.0
    assert (
        report.verdict == report.forecast.verdict == ("equivalent" if sound else "not equivalent")
    )
    assert report.forecast.method != "unavailable"
    assert report.decisions == 240
    if not sound:
        assert (report.culprit.operation, report.culprit.mechanism) == ("mul", "overflow")
        assert report.cure.verified
