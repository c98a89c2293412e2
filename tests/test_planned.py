"""A plan is written from verified cures, applied on later runs, and stale entries are named."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check, planned
from pytest_fp16.errors import SettingError
from pytest_fp16.plan import read_plan


class Rms(nn.Module):
    def forward(self, x):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()


def subject(digits, gain):
    (x, y), (test_x, test_y) = digits
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.norm, self.head = nn.Linear(64, 32), Rms(), nn.Linear(32, 10)

        def forward(self, x):
            return self.head(self.norm(self.encoder(x.flatten(1)) * gain))

    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return Evaluation(model=model.eval(), data=[(test_x, test_y)], name="tests/test_it.py::test")


def test_written_then_applied(digits, tmp_path):
    path = str(tmp_path / "plan.txt")
    first = check(subject(digits, 500.0), plan=path)
    assert first.verdict == "not equivalent"
    entry, *rest = read_plan(path).entries
    assert (entry.test, entry.precision, entry.module) == (first.name, "16-true", "norm")
    assert not rest
    assert "overflow" in entry.reason
    said = f"the cure is written to the plan {path}; run again to be held against it"
    assert said in first.warnings
    again = check(subject(digits, 500.0), plan=path)
    assert again.equivalent
    assert again.warnings == [f"kept in float32 by the plan {path}: norm"]


def test_a_plan_that_is_no_longer_enough_is_left_as_it_was(digits, tmp_path):
    path = tmp_path / "plan.txt"
    path.write_text("tests/test_it.py::test[16-true]: head\n", encoding="utf-8")
    report = check(subject(digits, 500.0), plan=str(path))
    assert report.verdict == "not equivalent"
    assert path.read_text(encoding="utf-8") == "tests/test_it.py::test[16-true]: head\n"
    (said,) = [w for w in report.warnings if "no longer enough" in w]
    assert said.startswith(f"the plan {path} is no longer enough; add to it: ")
    assert "tests/test_it.py::test[16-true]: norm  # overflow in norm (pow)" in said
    path.write_text(path.read_text() + said.split("add to it: ")[1] + "\n", encoding="utf-8")
    assert check(subject(digits, 500.0), plan=str(path)).equivalent


def test_stale_entries_are_warnings(digits, tmp_path):
    path = tmp_path / "plan.txt"
    lines = ["tests/test_it.py::test[16-true]: norm", "tests/test_it.py::test[16-true]: gone"]
    path.write_text("\n".join(lines), encoding="utf-8")
    report = check(subject(digits, 1.0), plan=str(path))
    assert report.equivalent
    assert len(report.warnings) == 2
    assert all("stale" in w for w in report.warnings)
    assert path.read_text(encoding="utf-8") == "\n".join(lines)


def normalised(gain):
    """A batch norm whose running variance is infinite in float16, which few decisions show."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    model[0].running_var[0] = gain
    model[1].weight.data[:, 0] = 0.0  # none, so that it is no luck either
    data = torch.randn(64, 4)
    data[:, 0] *= gain**0.5
    return Evaluation(model=model, data=[data], labelled=False, name="tests/test_it.py::test")


@pytest.mark.parametrize(("gain", "stale"), [(9.0, True), (99_123.4, False)])
def test_what_would_be_stored_as_infinite_is_no_stale_entry(tmp_path, gain, stale):
    path = tmp_path / "plan.txt"
    path.write_text("tests/test_it.py::test[16-true]: 0\n", encoding="utf-8")
    without = check(normalised(gain))
    assert without.equivalent
    assert without.culprit is None, "it decides nothing"
    (said,) = check(normalised(gain), plan=str(path)).warnings
    assert ("stale entry" in said) is stale
    assert stale or said == f"kept in float32 by the plan {path}: 0"


def test_no_file_for_a_test_that_needs_none(digits, tmp_path):
    path = tmp_path / "plan.txt"
    assert check(subject(digits, 1.0), plan=str(path)).equivalent
    assert not path.exists()


class Square(nn.Module):
    def forward(self, x):
        return (x * 300) * (x * 300) / 90000


def squaring():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), Square(), nn.Linear(32, 10))


@pytest.mark.parametrize("given", [lambda: squaring, squaring], ids=["function", "module"])
def test_a_training_s_cure_is_written_then_applied(digits_training, tmp_path, given):
    torch.manual_seed(0)  # the module's weights are where every seed starts
    plan, store = tmp_path / "plan.txt", tmp_path / "runs"
    training = digits_training(model=given(), epochs=1)
    settings = {"precision": "16-true", "seeds": 3, "plan": str(plan), "store": str(store)}
    first = check(training, **settings)
    assert first.verdict == "not equivalent"
    (entry,) = read_plan(plan).entries
    assert (entry.test, entry.precision, entry.module) == ("digits", "16-true", "2")
    assert any("written to the plan" in warning for warning in first.warnings)
    again = check(training, **settings, resume=True)  # runs without the plan are not taken for it
    assert again.equivalent, str(again)
    assert f"kept in float32 by the plan {plan}: 2" in again.warnings
    assert again.forecast.verdict == "equivalent"
    assert again.training["reference_metrics"][:1] == first.training["reference_metrics"][:1]
    resumed = check(training, **settings, resume=True)
    assert resumed.training == again.training
    assert any("runs were read from" in w for w in resumed.warnings)


def test_a_cure_is_written_beside_an_entry_whose_module_is_gone(digits_training, tmp_path):
    torch.manual_seed(0)
    plan = tmp_path / "plan.txt"
    plan.write_text("digits[16-true]: gone  # renamed\n", encoding="utf-8")
    training = digits_training(model=squaring, epochs=1)
    settings = {"precision": "16-true", "seeds": 3, "plan": str(plan)}
    first = check(training, **settings)
    assert any("written to the plan" in warning for warning in first.warnings)
    entries = read_plan(plan).entries
    assert [(e.module, e.reason) for e in entries][:1] == [("gone", "renamed")]
    assert [e.module for e in entries] == ["gone", "2"]
    again = check(training, **settings)
    assert again.equivalent, str(again)
    assert any("stale entry" in warning and "'gone'" in warning for warning in again.warnings)


def test_a_training_s_plan_with_a_module_that_is_gone(digits_training, tmp_path):
    plan = tmp_path / "plan.txt"
    plan.write_text("digits[16-true]: gone\n", encoding="utf-8")
    report = check(digits_training(epochs=1), precision="16-true", seeds=3, plan=str(plan))
    assert [w for w in report.warnings if "stale entry" in w and "'gone'" in w]


def test_a_plan_that_cannot_be_written_takes_no_verdict_away(digits, tmp_path, monkeypatch):
    def refuse(*_):
        raise SettingError("cannot write the plan plan.txt: Read-only file system")

    monkeypatch.setattr(planned, "merge_plan", refuse)
    report = check(subject(digits, 500.0), plan=str(tmp_path / "plan.txt"))
    assert (report.verdict, report.culprit.module) == ("not equivalent", "norm")
    assert any("is not in the plan: cannot write the plan" in said for said in report.warnings)
