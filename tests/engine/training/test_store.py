"""Finished runs on disk: found again, told apart, and never trusted when damaged."""

from __future__ import annotations

import functools
import itertools
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from pytest_fp16 import Settings, check
from pytest_fp16.engine.randomness import preserved_state
from pytest_fp16.engine.training.order import preserved_generators
from pytest_fp16.engine.training.score import Score
from pytest_fp16.engine.training.store import Store, fingerprint, open_store
from pytest_fp16.engine.training.train import RunResult
from pytest_fp16.errors import SettingError
from pytest_fp16.precision import PRECISIONS
from pytest_fp16.report.model import Report

CPU = torch.device("cpu")
HALF = PRECISIONS["16-true"]
STATE = {"weight": torch.arange(3.0)}


def result(**changes):
    predictions = torch.tensor([[[0.1, math.inf, -1e-7]]])
    score = Score("accuracy", 0.1 + 0.2, 0.01, 600, False, predictions, 1 / 600, 0.1)
    plain = {
        "precision": "16-true",
        "seed": 2,
        "ended": "nan",
        "score": score,
        "losses": [1 / 3, math.nan],
        "failed_at": (1, 4),
        "dtypes": {"float16": 51},
        "state_dtypes": {"parameters": ["float16"]},
    }
    return RunResult(**{**plain, **changes})


def test_a_run_comes_back_bit_for_bit(tmp_path):
    store = Store(tmp_path / "deep" / "runs", "base")
    assert store.load(HALF, 2, STATE) is None
    store.save(HALF, 2, STATE, result())
    back, sent = store.load(HALF, 2, STATE), result()
    assert torch.equal(back.score.predictions, sent.score.predictions)
    assert back.losses[0] == sent.losses[0]
    assert math.isnan(back.losses[1])
    assert back.failed_at == (1, 4)
    assert (back.score.value, back.score.majority) == (sent.score.value, sent.score.majority)
    assert replace(back, score=None, losses=[]) == replace(sent, score=None, losses=[])
    assert not store.damaged


def test_a_run_without_a_score(tmp_path):
    store = Store(tmp_path, "base")
    sent = result(score=None, ended="raised", error="RuntimeError: no", losses=[], failed_at=None)
    store.save(HALF, 2, STATE, sent)
    assert store.load(HALF, 2, STATE) == sent


@pytest.mark.parametrize(
    ("precision", "seed", "state", "base"),
    [
        (PRECISIONS["bf16-true"], 2, STATE, "base"),
        (HALF, 3, STATE, "base"),
        (HALF, 2, {"weight": torch.arange(3.0) + 1e-6}, "base"),
        (HALF, 2, STATE, "another"),
    ],
    ids=["precision", "seed", "weights", "everything else"],
)
def test_another_run_is_another_file(tmp_path, precision, seed, state, base):
    Store(tmp_path, "base").save(HALF, 2, STATE, result())
    assert Store(tmp_path, base).load(precision, seed, state) is None


def _cut(raw):
    return raw[: len(raw) // 2]


def _flipped(raw):
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]


def _empty(raw):
    return b""


def _foreign(raw):
    return b'{"hello": 1}'


def _binary(raw):
    return b"\xff\xfe\x00" * 50


@pytest.mark.parametrize("damage", [_cut, _flipped, _empty, _foreign, _binary])
def test_a_damaged_file_is_noticed(tmp_path, damage):
    store = Store(tmp_path, "base")
    store.save(HALF, 2, STATE, result())
    path = store.path(HALF, 2, STATE)
    path.write_bytes(damage(path.read_bytes()))
    assert store.load(HALF, 2, STATE) is None
    assert len(store.damaged) == 1
    assert path.name in store.damaged[0]
    store.save(HALF, 2, STATE, result())
    assert store.load(HALF, 2, STATE) is not None


def test_a_file_under_the_wrong_name_is_noticed(tmp_path):
    store = Store(tmp_path, "base")
    store.save(HALF, 2, STATE, result())
    os.rename(store.path(HALF, 2, STATE), store.path(HALF, 3, STATE))
    assert store.load(HALF, 3, STATE) is None
    assert "it holds 16-true, seed 2" in store.damaged[0]


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    store = Store(tmp_path, "base")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.save(HALF, 2, STATE, result())
    assert list(tmp_path.iterdir()) == []


def test_resume_needs_a_folder(digits_training):
    with pytest.raises(SettingError, match=r"resume needs a folder.*: store="):
        check(digits_training(), resume=True)


def test_an_unwritable_folder_is_refused_before_the_first_run(digits_training, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(SettingError, match="cannot be written"):
        open_store(digits_training(), Settings().with_(store=str(file)), CPU)


RATE = 0.1


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor, self.linear = factor, nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(x.flatten(1)) * self.factor


def sgd(params):
    return torch.optim.SGD(params, lr=RATE)


def key(subject, **settings):
    with preserved_state(), preserved_generators(subject.train_data):
        return fingerprint(subject, Settings().with_(**settings), CPU)


def _shifted(data):
    x, y = data[-1]
    return [*data[:-1], (x + 1e-3, y)]


CHANGES = {
    "learning rate": {"optimizer": lambda params: torch.optim.SGD(params, lr=0.2)},
    "optimizer": {"optimizer": lambda params: torch.optim.Adam(params, lr=0.1)},
    "loss": {"loss": nn.functional.multi_margin_loss},
    "loss argument": {"loss": functools.partial(nn.functional.cross_entropy, label_smoothing=0.1)},
    "epochs": {"epochs": 3},
    "clipping": {"clip_grad_norm": 1.0},
    "accumulation": {"accumulate": 2},
    "scheduler": {"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1)},
    "model": {"model": lambda: Scaled(2.0)},
    "forward": {"forward": lambda model, inputs: model(inputs * 2)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_training_is_another(digits_training, change):
    subject = digits_training(model=lambda: Scaled(1.0), optimizer=sgd)
    assert key(subject) == key(digits_training(model=lambda: Scaled(1.0), optimizer=sgd))
    assert key(subject) != key(replace(subject, **CHANGES[change]))


def test_a_changed_global_or_method_is_another(digits_training, monkeypatch):
    subject = digits_training(model=lambda: Scaled(1.0), optimizer=sgd)
    before = key(subject)
    monkeypatch.setitem(globals(), "RATE", 0.05)
    assert key(subject) != before
    monkeypatch.undo()
    assert key(subject) == before
    monkeypatch.setattr(Scaled, "forward", lambda self, x: self.linear(x.flatten(1)) + self.factor)
    assert key(subject) != before


def test_changed_data_is_other_data(digits_training):
    subject = digits_training()
    assert key(subject) != key(replace(subject, train_data=_shifted(subject.train_data)))
    assert key(subject) != key(replace(subject, eval_data=_shifted(subject.eval_data)))


def test_a_loader_is_told_by_its_data_and_settings(digits_training, digits):
    (x, y), _ = digits
    other = x.clone()
    other[700, 0, 3, 3] += 0.5

    def loader(inputs, **keywords):
        dataset = torch.utils.data.TensorDataset(inputs, y)
        options = {"batch_size": 64, "shuffle": True, **keywords}
        return torch.utils.data.DataLoader(dataset, **options)

    keys = [
        key(digits_training(train_data=data))
        for data in (
            loader(x, generator=torch.Generator().manual_seed(6)),
            loader(x, generator=torch.Generator().manual_seed(5)),
            loader(x),
            loader(other),
            loader(x, batch_size=32),
            loader(x, shuffle=False),
        )
    ]
    assert keys[0] == keys[1], "a generator is seeded anew for each run, so its state is no setting"
    assert len(set(keys)) == 5


def test_what_judges_runs_does_not_name_them(digits_training):
    subject = digits_training()
    assert key(subject) == key(subject, budget=0.5, seeds=3, resume=True, store="elsewhere")
    assert key(subject) != key(subject, target="cpu")
    assert key(subject) != key(subject, emulate="never")


def test_a_check_that_resumes_makes_no_run_twice(digits_training, tmp_path, monkeypatch):
    settings = {"store": str(tmp_path), "seeds": 3, "resume": True}
    first = check(digits_training(), **settings)
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert len(kept) == 2 * len(first.training["seeds"])
    monkeypatch.setattr("pytest_fp16.engine.training.runs.train", _refuse)
    again = check(digits_training(), **settings)
    count = len(kept)
    assert f"{count} of {count} runs were read from {tmp_path} (resume)" in again.warnings
    assert fresh(again).model_dump_json() == fresh(first).model_dump_json()


def fresh(report):
    """A report but for what it says of runs that were read."""
    said = [w for w in report.warnings if " runs were read from " not in w]
    return report.model_copy(update={"warnings": said})


def _refuse(*_, **__):
    raise AssertionError("a run was made again")


def test_without_resume_every_run_is_made_again(digits_training, tmp_path, monkeypatch):
    settings = {"store": str(tmp_path), "seeds": 3}
    check(digits_training(), **settings)
    monkeypatch.setattr("pytest_fp16.engine.training.runs.train", _refuse)
    with pytest.raises(AssertionError, match="made again"):
        check(digits_training(), **settings)


def test_a_damaged_run_is_made_again_and_named(digits_training, tmp_path):
    settings = {"store": str(tmp_path), "seeds": 3, "resume": True}
    first = check(digits_training(), **settings)
    victim = sorted(tmp_path.iterdir())[0]
    victim.write_bytes(_cut(victim.read_bytes()))
    again = check(digits_training(), **settings)
    assert again.training == first.training
    (warning,) = [w for w in again.warnings if "was damaged" in w]
    assert victim.name in warning
    assert not any("was damaged" in w for w in check(digits_training(), **settings).warnings)


KILLED = """
import os, sys, torch
from torch import nn
import pytest_fp16.engine.training.store as store
from pytest_fp16 import Training, check

torch.set_num_threads(1)
x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] + x[:, 1] > 0).long()
data = list(zip(x.split(32), y.split(32)))
left = int(sys.argv[2])
save = store.Store.save

def dying(self, *arguments):
    global left
    save(self, *arguments)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)

store.Store.save = dying
report = check(
    Training(
        model=lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(),
                                    nn.Linear(16, 2)),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        loss=nn.functional.cross_entropy, train_data=data, eval_data=data, epochs=1,
    ),
    precision="16-true", seeds=4, store=sys.argv[1], resume=True,
)
print(report.model_dump_json())
"""


def test_a_killed_process_goes_on_to_the_same_report(tmp_path):
    # The order of sets differs between processes, and sums must not; 2 and 4 once told them apart.
    hashes = itertools.count(2)

    def go(folder, saves):
        command = [sys.executable, "-W", "error", "-c", KILLED, str(tmp_path / folder), str(saves)]
        own = {**os.environ, "PYTHONHASHSEED": str(next(hashes))}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=own)

    whole = go("whole", 0)
    assert whole.returncode == 0, whole.stderr
    assert go("killed", 3).returncode == -9
    assert len(list((tmp_path / "killed").glob("*.json"))) == 3
    resumed = go("killed", 0)
    assert resumed.returncode == 0, resumed.stderr
    before, after = (Report.model_validate_json(run.stdout) for run in (whole, resumed))
    assert len(after.warnings) == len(before.warnings) + 1
    assert fresh(after).model_dump_json() == before.model_dump_json()
