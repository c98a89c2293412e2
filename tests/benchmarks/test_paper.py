"""Every row of the paper's table is known to work, and no figure of it is lost or mixed up."""

import pickle
import sys

import numpy as np
import pytest
import torch

from benchmarks import common
from benchmarks.paper.data import Batches, Images, cifar10
from benchmarks.paper.mnist import compare
from benchmarks.paper.models import ROWS, size
from benchmarks.paper.published import PUBLISHED
from benchmarks.paper.store import Run, Store
from benchmarks.paper.table import lines, planned, train_all
from benchmarks.paper.train import PRECISIONS, Recipe, train_once, training


def images(train=8, test=8):
    """Stripes whose direction is the label: 0 or 1 of the ten classes."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(train + test) % 2
    wave = torch.sin(torch.arange(32) * 1.0)
    stripes = torch.stack([wave.expand(32, 32), wave.expand(32, 32).T])[labels]
    x = stripes[:, None] + torch.randn(train + test, 3, 32, 32, generator=random)
    return Images("stripes", (x[:train], labels[:train]), (x[train:], labels[train:]))


def recipe(**changes):
    return Recipe(**{"epochs": 1, "batch": 8, **changes})


def steps_needed(row, precision):
    """A gradient scaler starts at 2^16 and skips steps until it has come down to what fits.

    Networks that normalise 1x1 images have large gradients at a batch of 8: it takes longer.
    """
    if precision != "16-mixed":
        return 1
    return 10 if row in ("DenseNet-121", "DenseNet-169", "MobileNetV2") else 3


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("row", ROWS)
def test_every_row_takes_a_step_in_every_precision(row, precision):
    steps = steps_needed(row, precision)
    run = train_once(ROWS[row], images(), recipe(epochs=steps), precision, seed=1)
    assert run.failure is None
    assert (run.row, run.precision, run.seed) == (row, precision, 1)
    assert 0 <= run.accuracy <= 1
    assert (run.seconds is None) == (precision != "32-true")  # emulated steps have no speed


@pytest.mark.parametrize("row", ROWS)
def test_sizes_are_the_published_ones(row):
    with torch.device("meta"):
        millions = size(ROWS[row].make()) / 1e6
    # Published with two decimals, cut off or rounded; AlexNet's is a tenth of their program's.
    published = 20.97 if row == "AlexNet" else PUBLISHED[row].millions
    assert millions == pytest.approx(published, rel=0.03)


def test_rows_are_the_tables():
    assert list(ROWS) == list(PUBLISHED)
    assert len(ROWS) == 12


@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_learns_what_can_be_learned(precision):
    run = train_once(ROWS["ResNet-32"], images(64, 32), recipe(epochs=4), precision, seed=0)
    assert run.failure is None
    assert run.accuracy > 0.9


def test_a_broken_training_is_a_result_and_says_how():
    broken = train_once(ROWS["ViT-8"], images(), recipe(epochs=3, rate=1e6), "16-true", seed=0)
    assert broken.accuracy is None
    assert "nan" in broken.failure


def test_weight_decay_is_for_matrices_alone():
    row = ROWS["ResNet-32"]
    subject = training(row, images(), recipe())
    matrices, others = subject.optimizer(row.make().parameters()).param_groups
    assert matrices["weight_decay"] == row.weight_decay > 0
    assert others["weight_decay"] == 0
    assert {p.ndim for p in others["params"]} == {1}


def test_finished_trainings_are_not_done_again(tmp_path, monkeypatch):
    import benchmarks.paper.table as table

    done = []
    monkeypatch.setattr(
        table, "train_once", lambda row, i, r, p, s: _run(r.fingerprint(i), row.name, p, s, done)
    )
    path, rows, data = tmp_path / "runs.jsonl", ["ResNet-32", "ViT-8"], images()
    assert train_all(data, recipe(), rows[:1], 2, Store(path), minutes=1)
    assert train_all(data, recipe(), rows, 2, Store(path), minutes=1)
    assert len(done) == len(set(done)) == len(list(planned(rows, 2)))


def test_other_recipes_are_not_mixed_in(tmp_path, monkeypatch):
    import benchmarks.paper.table as table

    done = []
    monkeypatch.setattr(
        table, "train_once", lambda row, i, r, p, s: _run(r.fingerprint(i), row.name, p, s, done)
    )
    path = tmp_path / "runs.jsonl"
    for changed in (recipe(), recipe(rate=0.02)):
        train_all(images(), changed, ["ViT-8"], 1, Store(path), minutes=1)
    assert len(done) == 2 * len(PRECISIONS)


def test_time_runs_out_between_trainings(tmp_path):
    store = Store(tmp_path / "runs.jsonl")
    assert not train_all(images(), recipe(), ["ViT-8"], 1, store, minutes=-1)
    assert not store.runs


def test_the_command_says_when_it_is_unfinished_and_goes_on(tmp_path, monkeypatch, capsys):
    import benchmarks.paper.table as table

    monkeypatch.setattr(table, "CACHE", tmp_path)
    monkeypatch.setattr(table, "load", lambda folder: images(40, 40))
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    command = ["table", "--quick", "--device", "cpu", "--rows", "ViT-8"]
    monkeypatch.setattr(sys, "argv", [*command, "--minutes", "-1"])
    with pytest.raises(SystemExit) as unfinished:
        table.main()
    assert unfinished.value.code == table.UNFINISHED
    assert "0 of 3 trainings done" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", command)
    table.main()
    first = capsys.readouterr().out
    assert "3/3 ViT-8 16-mixed seed 0" in first
    assert "3 of 3 trainings done" in first
    table.main()
    assert "3/3" not in capsys.readouterr().out
    assert not (tmp_path / "results").exists()  # a smoke run leaves no result


def test_unknown_rows_are_named(monkeypatch):
    import benchmarks.paper.table as table

    monkeypatch.setattr(sys, "argv", ["table", "--rows", "ViT-8,LeNet"])
    with pytest.raises(SystemExit, match="unknown rows LeNet; known are AlexNet"):
        table.main()


def _run(recipe="r", row="ViT-8", precision="16-true", seed=0, done=None, **changes):
    if done is not None:
        done.append((recipe, row, precision, seed))
    usual = {"accuracy": 0.5, "seconds": 10.0, "failure": None, "device": "cpu"}
    return Run(recipe=recipe, row=row, precision=precision, seed=seed, **{**usual, **changes})


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-30],  # a crash while the line was written
        lambda text: text.replace("0.5", "0.6"),
        lambda text: text[:40] + "\x00" + text[40:],
    ],
)
def test_a_damaged_line_is_noticed_and_the_others_kept(tmp_path, damage):
    path = tmp_path / "runs.jsonl"
    store = Store(path)
    for seed in range(3):
        store.add(_run(seed=seed))
    written = path.read_text().splitlines()
    written[2] = damage(written[2])
    path.write_text("\n".join(written))
    with pytest.warns(UserWarning, match="line 3 is damaged"):
        again = Store(path)
    assert again.damaged == [3]
    assert sorted(run.seed for run in again.runs.values()) == [0, 1]
    again.add(_run(seed=2))  # must not be glued to a line cut short
    with pytest.warns(UserWarning, match="line 3"):
        assert len(Store(path).runs) == 3


def test_table_shows_spread_differences_speedups_and_what_broke():
    seconds = {"16-true": 10.0, "32-true": 20.0, "16-mixed": 15.0}
    levels = {"16-true": 0.80, "32-true": 0.81, "16-mixed": 0.82}
    runs = [
        _run(precision=p, seed=s, accuracy=levels[p] + 0.01 * s, seconds=seconds[p])
        for p in PRECISIONS
        for s in range(3)
    ]
    runs.append(_run(seed=3, accuracy=None, failure="loss nan"))
    ours, paper, mean, _ = lines(runs, ["ViT-8"])
    assert ours[1:5] == ["ours", "81.0 ± 1.0 (1 broke)", "82.0 ± 1.0", "83.0 ± 1.0"]
    assert ours[5:] == ["10", "20", "15", "-1.0", "-2.0", "2.0x", "1.5x"]
    assert paper[1:5] == ["paper", "71.0 ± 0.3", "71.3 ± 0.3", "71.2 ± 0.3"]
    assert mean[-4:] == ours[-4:]


def test_published_means_are_the_published_ones():
    *_, paper = lines([], ROWS)
    assert paper[-4:] == ["-0.2", "-0.2", "1.6x", "1.3x"]


def _cifar_files(folder, binary):
    random = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = random.integers(0, 256, (4, 3072), dtype=np.uint8)
        labels = random.integers(0, 10, 4, dtype=np.uint8)
        if binary:
            (folder / f"{name}.bin").write_bytes(np.column_stack([labels, pixels]).tobytes())
        else:
            raw = pickle.dumps({b"data": pixels, b"labels": labels.tolist()}, protocol=2)
            # The real files are older than the module's present name.
            (folder / name).write_bytes(raw.replace(b"numpy._core", b"numpy.core"))


def test_both_versions_of_cifar10_give_the_same_images(tmp_path):
    for folder, binary in (("cifar-10-batches-py", False), ("cifar-10-batches-bin", True)):
        (tmp_path / folder).mkdir()
        _cifar_files(tmp_path / folder, binary)
    python = cifar10(tmp_path / "cifar-10-batches-py")
    binary = cifar10(tmp_path / "cifar-10-batches-bin")
    assert python.train[0].shape == (20, 3, 32, 32)
    assert abs(float(python.train[0].mean())) < 1e-4
    for a, b in zip((*python.train, *python.test), (*binary.train, *binary.test), strict=True):
        assert torch.equal(a, b)


def test_cifar10_missing_or_cut_short_or_with_code_in_it_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no CIFAR-10"):
        cifar10(tmp_path)
    _cifar_files(tmp_path, binary=True)
    (tmp_path / "data_batch_2.bin").write_bytes(b"123")
    with pytest.raises(ValueError, match="no multiple"):
        cifar10(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(sys.exit))
    with pytest.raises(ValueError, match=r"sys\.exit"):
        cifar10(tmp_path)


def test_batches_come_in_a_new_order_each_pass_and_lose_none():
    x, y = torch.arange(10.0).view(10, 1), torch.arange(10)
    torch.manual_seed(0)
    data = Batches(x, y, 4, shuffle=True)
    first, second = ([int(i) for _, labels in data for i in labels] for _ in range(2))
    assert first != second
    assert sorted(first) == sorted(second) == list(range(10))


def test_delta_and_gamma_are_the_papers():
    reference = torch.tensor([[2.0, 1.0, 0.0], [0.1, 0.0, -9.0]])
    pair = compare(torch.tensor([[2.0, 1.0, 0.5], [0.0, 0.1, -9.0]]), reference)
    q = np.exp(reference.double().numpy())
    q /= q.sum(1, keepdims=True)
    assert pair.gamma.numpy() == pytest.approx(q[:, 0] - q[:, 1])
    assert float(pair.delta[1]) == pytest.approx(q[1, 0] - q[1, 1])  # the two traded places
    assert pair.flips.tolist() == [False, True]
    assert pair.certified.tolist() == [True, False]


def test_what_the_lemma_certifies_never_flips():
    random = torch.Generator().manual_seed(0)
    reference = 3 * torch.randn(20_000, 10, generator=random)
    candidate = reference + 0.5 * torch.randn(20_000, 10, generator=random)
    pair = compare(candidate, reference)
    assert 0 < int(pair.certified.sum()) < 20_000
    assert int(pair.flips.sum()) > 100
    assert not (pair.certified & pair.flips).any()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("row", ROWS)
def test_every_row_takes_a_step_on_a_gpu(row, precision):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    native = recipe(device="cuda", emulate=False, epochs=steps_needed(row, precision))
    run = train_once(ROWS[row], images().to("cuda"), native, precision, seed=0)
    assert run.failure is None
    assert run.seconds > 0
