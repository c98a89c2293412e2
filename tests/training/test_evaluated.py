"""What is lost where a model is evaluated is named by the evaluation, and only that."""

import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Training, check
from pytest_fp16.report.model import Culprit
from pytest_fp16.training.evaluated import vague


class Compressed(nn.Module):
    """Learns values, and tells them from a small number that was added to one."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 1)

    def forward(self, x):
        z = self.body(x)
        return z if self.training else ((1 + 1e-3 * z) - 1) * 1e3


def training(model, **changes):
    x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([[0.5], [-0.3], [0.2], [0.1]])
    data = list(zip(x.split(16), y.split(16), strict=True))
    given = {"train_data": data, "eval_data": data, "loss": F.mse_loss, "task": "regression"}
    given |= {"optimizer": lambda params: torch.optim.SGD(params, lr=0.1), "epochs": 3}
    return Training(model=model, **{**given, **changes})


def test_a_metric_that_is_lost_by_evaluation_alone_names_its_operation():
    report = check(training(Compressed), precision="16-true", seeds=3)
    assert report.verdict == "not equivalent"
    assert report.culprit.operation == "add"
    assert "test_evaluated.py" in report.culprit.source
    assert "32-bit weights have R²" in report.culprit.evidence


def test_want_of_memory_for_it_leaves_what_is_known(monkeypatch):
    def broken(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr("pytest_fp16.training.evaluated.trained", broken)
    report = check(training(Compressed), precision="16-true", seeds=3)
    assert report.verdict == "not equivalent"
    assert report.culprit.mechanism == "precision-loss"
    assert not any("no diagnosis" in warning for warning in report.warnings)


def test_a_loss_of_training_stays_what_it_was():
    slow = lambda params: torch.optim.SGD(params, lr=2e-3)  # noqa: E731
    report = check(
        training(lambda: nn.Linear(4, 1), optimizer=slow, epochs=40), precision="bf16-true"
    )
    assert report.verdict == "not equivalent"
    assert "evaluated in 16 bits" not in report.culprit.evidence


class Growing(nn.Module):
    """Its square leaves float16 once a weight, which only grows, is large."""

    def __init__(self):
        super().__init__()
        self.body, self.size = nn.Linear(4, 1), nn.Parameter(torch.tensor(100.0))

    def forward(self, x):
        ones = x.new_ones(len(x), 4)
        large = (self.size * ones) @ (self.size * torch.ones_like(ones)).T  # autocast's product
        return self.body(x) + 0 * torch.log(large.mean(1, keepdim=True))


def grown(model, batch):
    x, y = batch
    with torch.no_grad():
        model.size *= 1.03
    return F.mse_loss(model(x), y)


def test_where_a_scaler_skips_to_the_end_what_leaves_the_range_is_named():
    """No step ends such a run: each is skipped, and the weights stay as they were."""
    subject = training(Growing, training_step=grown, loss=None, epochs=2)
    report = check(subject, precision="16-mixed", seeds=2)
    assert report.verdict == "not equivalent", str(report)
    assert report.culprit.mechanism == "overflow"
    assert "test_evaluated.py" in report.culprit.source
    assert report.culprit.evidence.startswith("in the end of the run of seed 0")
    assert "skipped" in report.culprit.evidence


def test_only_a_culprit_without_an_operation_is_looked_into():
    given = {"module": "", "evidence": "", "source": None, "variant": None}
    lost = Culprit(operation="", mechanism="precision-loss", **given)
    assert vague(None)
    assert vague(lost)
    assert vague(lost.model_copy(update={"operation": "backward"}))
    assert not vague(lost.model_copy(update={"operation": "backward", "mechanism": "underflow"}))
    assert not vague(lost.model_copy(update={"operation": "mul"}))
    assert not vague(lost.model_copy(update={"mechanism": "unsupported-op"}))


class Tail(nn.Module):
    def forward(self, z):
        return z if self.training else ((1 + 1e-3 * z) - 1) * 1e3


def test_what_a_plan_keeps_in_float32_is_no_culprit(tmp_path):
    plan = tmp_path / "plan.txt"
    plan.write_text("model[bf16-true]: 1\n", encoding="utf-8")
    slow = training(
        lambda: nn.Sequential(nn.Linear(4, 1), Tail()),
        optimizer=lambda params: torch.optim.SGD(params, lr=2e-3),
        epochs=40,
    )
    report = check(slow, precision="bf16-true", plan=str(plan), seeds=3)
    assert report.verdict == "not equivalent"
    assert "evaluated in 16 bits" not in report.culprit.evidence


class Pooled(nn.Module):
    """Features of the points of each cloud, added up one after another, as atomic additions do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(1, 8), nn.Linear(8, 1)

    def forward(self, x):
        count, size = x.shape[:2]
        index = torch.arange(count).repeat_interleave(size)[:, None].expand(-1, 8)
        h = self.body(x).relu().flatten(0, 1)
        total = h.new_zeros(count, 8).scatter_add_(0, index, h)
        return self.head(total / size)


def test_a_forward_that_is_wrong_is_named_in_place_of_the_gradients_it_spoils():
    random = torch.Generator().manual_seed(0)
    share = 0.2 + 0.6 * torch.rand(96, 1, 1, generator=random)
    x = (torch.arange(1500).view(1, -1, 1) < 1500 * share).float() * 2  # sorted, as graphs are
    y = 5 * share[:, :, 0]
    data = list(zip(x.split(8), y.split(8), strict=True))
    adam = lambda params: torch.optim.Adam(params, lr=2e-2, eps=1e-4)  # noqa: E731
    report = check(
        training(Pooled, train_data=data, eval_data=data, optimizer=adam, epochs=6),
        precision="bf16-mixed",
        seeds=3,
        budget=0.05,
    )
    assert report.verdict == "not equivalent", str(report)
    assert (report.culprit.operation, report.culprit.mechanism) == ("scatter_add", "absorption")
    assert "32-bit weights have R²" in report.culprit.evidence
    assert report.cure.kind == "upcast"
    assert report.cure.verified
