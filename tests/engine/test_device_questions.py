"""Where a program asks for its device, told by its source."""

import contextlib
import importlib
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Evaluation, Training, check
from pytest_fp16.engine.device_questions import asked_at, device_remarks

HEAD = """
import contextlib
import torch
from torch import nn


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.kind = "cuda"

    def forward(self, x):
        z = torch.zeros(4, device=x.device)
"""
DECIDES = [
    "if x.is_cuda: z = z * 2",
    "if not (x.is_cuda and z.is_cuda): z = z * 2",
    "z = z * 2 if x.device.type == 'cuda' else z",
    "if x.device != torch.device('cpu'): z = z * 2",
    "if torch.device('cpu') == next(self.parameters()).device: z = z * 2",
    "if x.device.type in ('cuda', 'xpu'): z = z * 2",
    "if str(x.device).startswith('cuda'): z = z * 2",
    "if 'cuda' in str(x.device): z = z * 2",
    "if x.get_device() >= 0: z = z * 2",
    "if torch.cuda.is_available(): z = z * 2",
    "if torch.cuda.is_available() and x.sum() > 0: z = z * 2",
    "enabled = x.device.type != 'cpu'",
    "region = torch.autocast('cuda', enabled=torch.cuda.is_available())",
    "region = torch.autocast('cuda') if x.is_cuda else contextlib.nullcontext()",
    "d = x.device; z = z if d.type == 'cpu' else z * 2",
    "kind = x.device.type; z = z if kind == 'cpu' else z * 2",
    "z = [part for part in z if x.is_cuda]",
    "while x.is_cuda and z.sum() < 1: z = z + 1",
    "if x.is_cuda: z = z.cuda().half()",
    "if x.is_cuda: z = z.to(torch.float16)",
]
HARMLESS = [
    "z = torch.zeros(4, device=x.device)",
    "region = torch.autocast(device_type=x.device.type)",
    "region = torch.autocast(x.device.type, enabled=x.dtype == torch.float16)",
    "if z.device != x.device: z = z.to(x.device)",
    "assert z.device.type == x.device.type",
    "if x.is_cuda: z = z.cuda()",
    "if x.is_cuda: z = z.to('cuda')",
    "z = torch.zeros(4).cuda() if x.is_cuda else torch.zeros(4)",
    "device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
    "device = x.device.type if x.device.type != 'mps' else 'cpu'",
    "print(x.is_cuda, f'{x.is_cuda}')",
    "if x.dtype == torch.float16: z = z * 2",
    "if self.kind == 'cuda': z = z * 2",
]


@pytest.fixture
def layer(tmp_path, monkeypatch):
    """Makes a layer whose forward pass has a line of its own."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(*lines, name="layer_of_a_user", body="return self.linear(x + z.sum() * 0)"):
        code = textwrap.indent("\n".join((*lines, body)), " " * 8)
        (tmp_path / f"{name}.py").write_text(HEAD + code + "\n")
        importlib.invalidate_caches()
        return importlib.import_module(name).Layer()

    yield make
    sys.modules.pop("layer_of_a_user", None)


def numbers(model, *given):
    return [line.number for line in asked_at(model, *given)]


@pytest.mark.parametrize("line", DECIDES)
def test_an_answer_that_decides_something_is_seen(layer, line):
    assert numbers(layer(line)) == [len(HEAD.splitlines()) + 1]


@pytest.mark.parametrize("line", HARMLESS)
def test_a_device_that_is_handed_on_or_only_says_where_is_not(layer, line):
    assert numbers(layer(line)) == []


def test_what_a_match_goes_by_is_seen(layer):
    lines = ["match x.device.type:", "    case 'cuda': z = z * 2", "    case _: pass"]
    assert numbers(layer(*lines)) == [len(HEAD.splitlines()) + 1]


def helper(device):
    return 2 if device.type == "cuda" else 1


def _line(text):
    with open(__file__) as file:
        return next(i for i, line in enumerate(file, 1) if text in line)


class Blip2(nn.Module):
    """LAVIS's maybe_autocast: a float16 region wherever there is a GPU."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        if torch.cuda.is_available():
            self.never = None

    def maybe_autocast(self, dtype=torch.float16):
        enable_autocast = next(self.parameters()).device != torch.device("cpu")
        if enable_autocast:
            return torch.autocast("cuda", dtype=dtype)
        return contextlib.nullcontext()

    def forward(self, x):
        with self.maybe_autocast():
            embedded = self.first(x * helper(x.device))
        return self.head(embedded)


BLIP2 = ("enable_autocast = next(", 'return 2 if device.type == "cuda" else 1')


def test_functions_that_a_pass_calls_are_read_and_no_others():
    assert numbers(Blip2()) == sorted(map(_line, BLIP2))
    assert numbers(nn.Linear(2, 2), lambda m, x: m(x)) == []


def test_nothing_is_said_on_the_target_itself():
    cpu = torch.device("cpu")
    (said,) = device_remarks(Blip2(), "cuda", cpu)
    assert f"test_device_questions.py:{_line(BLIP2[0])}" in said
    assert said.endswith(
        ") and was answered cpu: what it does on cuda alone did not run, and the verdict does not "
        "speak for it"
    )
    assert device_remarks(Blip2(), "cpu", cpu) == []
    assert device_remarks(Blip2(), "cuda", torch.device("cuda")) == []
    assert device_remarks(nn.Linear(2, 2), "cuda", cpu) == []


def test_many_places_are_counted(layer):
    (said,) = device_remarks(layer(*DECIDES[:7]), "cuda", torch.device("cpu"))
    assert said.count("layer_of_a_user.py:") == 4
    assert " and 3 more) " in said


def _warned(report):
    return [w for w in report.warnings if "the program asks for its device" in w]


def test_an_evaluation_that_is_emulated_says_so():
    torch.manual_seed(0)
    subject = Evaluation(model=Blip2().eval(), data=[torch.randn(50, 8)], labelled=False)
    (said,) = _warned(check(subject, precision="bf16-mixed"))
    assert f"test_device_questions.py:{_line(BLIP2[0])}" in said
    for settings in ({"target": "cpu"}, {"emulate": "never"}):
        assert not _warned(check(subject, precision="bf16-mixed", **settings))


def test_so_does_a_training_and_it_reads_the_step():
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    batches = [(x, (x[:, :4]).argmax(1))]

    def step(model, batch):
        loss = F.cross_entropy(model(batch[0]), batch[1])
        return loss * 2 if loss.is_cuda else loss  # the step asks, too

    subject = Training(
        model=Blip2,
        train_data=batches * 4,
        eval_data=batches,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
        loss=None,
        training_step=step,
        epochs=2,
    )
    report = check(subject, precision="bf16-mixed", seeds=1)
    (said,) = _warned(report)
    for text in (BLIP2[0], "# the step asks, too"):
        assert f"test_device_questions.py:{_line(text)}" in said
