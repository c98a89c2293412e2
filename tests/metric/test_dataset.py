"""A metric that gives one number for all data at once."""

import math
from functools import partial

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from pytest_fp16 import DatasetMetric, Evaluation, Training, check
from pytest_fp16.errors import DataError, SettingError
from pytest_fp16.metric.dataset import Pooled


def f1(outputs, labels):
    return f1_score(labels, outputs.argmax(1), average="macro")


def auc(outputs, labels):
    return roc_auc_score(labels, outputs[:, 0])


def precision(outputs, labels):
    return average_precision_score(labels, outputs[:, 0])


def pooled(function, outputs, labels, size=7, reference=True):
    tally = Pooled(DatasetMetric(function))
    for part, known in zip(outputs.split(size), labels.split(size), strict=True):
        tally.take(part, known, len(part), reference)
    return tally


def drawn(n=400, shift=1.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(n) % 4 == 0).long()
    return torch.randn(n, 1, generator=generator) + shift * labels[:, None], labels


@pytest.mark.parametrize("function", [auc, precision])
def test_batches_are_pooled(function):
    outputs, labels = drawn()
    assert pooled(function, outputs, labels).value == function(outputs, labels)


def test_a_mean_over_batches_is_something_else():
    outputs, labels = drawn()
    parts = zip(outputs.split(40), labels.split(40), strict=True)
    mean = sum(auc(*part) for part in parts) / 10
    assert pooled(auc, outputs, labels, 40).value != pytest.approx(mean, abs=1e-4)


def test_the_standard_error_is_that_of_repeated_draws():
    """AUC over 300 draws: their spread against the jackknife's mean."""
    tallies = [pooled(auc, *drawn(seed=seed), size=400) for seed in range(300)]
    spread = torch.tensor([tally.value for tally in tallies]).std()
    told = sum(tally.standard_error for tally in tallies[:60]) / 60
    assert told == pytest.approx(float(spread), rel=0.2)


def test_labels_in_their_order_leave_every_class_in_every_group():
    outputs, labels = drawn()
    order = labels.argsort()
    assert pooled(auc, outputs[order], labels[order], 400).standard_error < 0.1


def test_labels_that_belong_to_no_input_have_no_error():
    tally = Pooled(DatasetMetric(lambda outputs, boxes: float(outputs.sum())))
    tally.take(torch.ones(40, 1), torch.zeros(17, 4), 40)
    assert tally.standard_error == math.inf
    assert tally.usual() == pytest.approx(0.4)  # a hundredth of the metric


def test_a_metric_without_a_value_on_a_group_has_no_error():
    outputs, _ = drawn(40)
    alone = torch.zeros(40, dtype=torch.long)
    alone[3] = 1
    assert pooled(auc, outputs, alone, 40).standard_error == math.inf


def test_labels_that_are_lists_are_joined():
    def words(outputs, labels):
        assert labels == ["a", "b", "c"]
        return len(outputs)

    tally = Pooled(DatasetMetric(words))
    for part in (["a", "b"], ["c"]):
        tally.take(torch.ones(len(part), 1), part, len(part), reference=False)
    assert tally.value == 3


def test_other_labels_are_a_list_of_what_batches_held():
    seen = []

    def read(outputs, labels):
        seen.append(labels)
        return 0.0

    tally = Pooled(DatasetMetric(read))
    for _ in range(2):
        tally.take(torch.ones(3, 1), {"boxes": 1}, 3)
    assert tally.value == 0.0
    assert seen[-1] == [{"boxes": 1}, {"boxes": 1}]


def test_one_flip_of_few_may_be_lost_as_of_an_accuracy():
    outputs = torch.eye(2).repeat(50, 1)
    labels = torch.arange(100) % 2
    tally = pooled(f1, outputs, labels, 100)
    assert tally.value == 1.0
    flipped = outputs.clone()
    flipped[0] = outputs[1]
    one = tally.value - f1(flipped, labels)
    assert one < tally.usual() < 2 * one


def test_nothing_seen_is_no_number():
    assert math.isnan(Pooled(DatasetMetric(f1)).value)


def test_few_inputs_of_one_class_are_borne_and_a_slip_is_not():
    outputs = torch.zeros(4, 1)
    assert DatasetMetric(lambda o, y: 1 / 0).first_look(outputs, torch.zeros(4)) == []
    with pytest.raises(DataError, match=r"metric= raised AttributeError: .*shape \(4, 1\)"):
        DatasetMetric(lambda o, y: o.nope).first_look(outputs, torch.zeros(4))


@pytest.mark.parametrize(
    ("returned", "said"),
    [(torch.ones(3), r"Tensor of shape \(3,\)"), (None, "NoneType"), ("good", "str")],
)
def test_what_is_no_number_is_refused(returned, said):
    with pytest.raises(DataError, match=f"function returned {said}; it must return one number"):
        DatasetMetric(lambda o, y: returned)(torch.ones(3), None)


def test_what_is_no_function_is_refused():
    with pytest.raises(SettingError, match=r"DatasetMetric takes a function .* \(got float\)"):
        DatasetMetric(0.5)


def test_outputs_of_several_shapes_are_refused():
    tally = Pooled(DatasetMetric(lambda o, y: 0.0))
    tally.take(torch.ones(2, 3), torch.zeros(2), 2)
    with pytest.raises(DataError, match=r"shape \(2, 4\), the first \(2, 3\)"):
        tally.take(torch.ones(2, 4), torch.zeros(2), 2)


def test_a_metric_that_raises_on_lost_outputs_has_no_value():
    outputs, labels = drawn(40)
    assert math.isnan(pooled(auc, outputs * math.inf, labels, 40, reference=False).value)
    with pytest.raises(DataError, match="metric= raised RuntimeWarning"):
        _ = pooled(auc, outputs * math.inf, labels, 40).value


class Detector(torch.nn.Module):
    """Scores anomalies; `large` puts a square on the way that float16 does not hold."""

    def __init__(self, large=1.0):
        super().__init__()
        self.large = large

    def forward(self, x):
        return ((x * self.large).square().sum(1, keepdim=True) + 1).log()


def anomalies(large=1.0, n=256):
    generator = torch.Generator().manual_seed(1)
    labels = (torch.arange(n) % 8 == 0).long()
    x = torch.randn(n, 8, generator=generator) * (1 + labels[:, None])
    data = [(x[i : i + 32], labels[i : i + 32]) for i in range(0, n, 32)]
    return Evaluation(Detector(large).eval(), data, task="regression", metric=DatasetMetric(auc))


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "16-mixed", "bf16-mixed"])
def test_a_sound_detector_keeps_its_auc(precision):
    report = check(anomalies(), precision=precision)
    assert report.verdict == report.forecast.verdict == "equivalent", str(report)
    assert report.metric.name == "auc"
    assert report.metric.labelled


def test_a_detector_that_overflows_loses_it():
    report = check(anomalies(200.0), precision="16-true")
    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert (report.culprit.mechanism, report.culprit.operation) == ("overflow", "pow")


def test_a_first_batch_of_one_class_is_borne():
    subject = anomalies()
    first = (torch.randn(8, 8), torch.zeros(8, dtype=torch.long))
    subject.data.insert(0, first)
    report = check(subject, precision="bf16-true")
    assert report.verdict == "equivalent", str(report)


def test_a_reference_without_a_value_is_refused():
    subject = anomalies()
    for _, labels in subject.data:
        labels.zero_()
    with (
        pytest.warns(UserWarning, match="one class"),
        pytest.raises(DataError, match="metric= is nan on the float32"),
    ):
        check(subject, precision="bf16-true")


def test_a_training_is_judged_by_it():
    outputs, labels = drawn(128, shift=2.0)
    x = torch.cat([outputs, outputs.square()], 1)
    data = [(x, labels)]
    report = check(
        Training(
            model=lambda: torch.nn.Linear(2, 2),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
            loss=torch.nn.functional.cross_entropy,
            train_data=data,
            eval_data=data,
            epochs=10,
            metric=DatasetMetric(f1),
        ),
        precision="bf16-mixed",
        seeds=2,
        budget=0.2,
    )
    assert report.metric.name == "f1"
    assert report.verdict == "equivalent", str(report)


def of_probabilities(outputs, labels):
    """Scikit-learn's, which wants rows that add up to one as float32's do."""
    return roc_auc_score(labels, outputs.double(), multi_class="ovr")


def by_row(outputs, labels):
    if bool(((outputs.sum(1) - 1).abs() > 1e-5).any()):
        raise ValueError("they should sum up to 1.0")
    return (outputs.argmax(1) == labels).float()


@pytest.mark.parametrize("metric", [DatasetMetric(of_probabilities), by_row])
@pytest.mark.parametrize("precision", ["16-true", "bf16-mixed"])
def test_a_metric_that_refuses_16_bit_outputs_fails_that_precision_alone(metric, precision):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(1)).eval()
    x = torch.randn(120, 4)
    with torch.no_grad():
        labels = model(x).argmax(1)
    report = check(Evaluation(model, [(x, labels)], metric=metric), precision=precision)
    assert report.forecast.verdict == "inconclusive"  # what is expected adds up to one in no row
    assert "with the errors that theory expects metric= raised" in report.forecast.reason
    if precision == "bf16-mixed":  # whose softmax is float32's on CUDA
        assert report.verdict == "equivalent"
        return
    assert report.verdict == "not equivalent"
    assert report.checks[-1].name == "good enough"
    assert "metric= raised ValueError:" in report.checks[-1].detail
    assert "; of float32's outputs it gives" in report.checks[-1].detail
    assert report.cure.verified


def test_a_trained_model_whose_outputs_a_metric_refuses_ends_its_run():
    model = lambda: torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(1))  # noqa: E731
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    data = [(x, x[:, :3].argmax(1))]
    subject = Training(
        model=model,
        train_data=data,
        eval_data=data,
        loss=lambda p, y: -p.gather(1, y[:, None]).clamp(min=1e-2).log().mean(),
        optimizer=partial(torch.optim.SGD, lr=0.5),
        metric=by_row,
        epochs=30,
    )
    report = check(subject, precision="16-true", seeds=3)
    assert report.verdict == "not equivalent"
    assert "they should sum up to 1.0" in str(report)
