"""Whoever watches a long batch hears of each pass over it."""

import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.evaluation.passes import Passes


def test_batches_and_the_passes_within_them():
    heard = []
    passes = Passes(lambda *said: heard.append(said), "net")
    passes.total = 2
    passes.passed("16-true")
    passes.passed("bf16-true")
    passes.done(1)
    passes.passed("16-true")
    assert heard == [
        ("evaluating net: 16-true, pass 1 over the batch", 0, 2),
        ("evaluating net: bf16-true, pass 2 over the batch", 0, 2),
        ("evaluating net", 1, 2),
        ("evaluating net: 16-true, pass 1 over the batch", 1, 2),
    ]


def test_nobody_need_be_watching():
    passes = Passes(None, "net")
    passes.passed("16-true")
    passes.done(1)


class Loop(nn.Module):
    """Normalises rows and columns in turn: what an input gives depends on its batch."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 4)

    def forward(self, x):
        p = self.a(x).exp()
        for _ in range(3):
            p = p / p.sum(-1, keepdim=True)
            p = p / p.sum(0, keepdim=True)
        return p


def test_a_batch_by_itself_is_not_silent():
    heard = []
    torch.manual_seed(0)
    subject = Evaluation(Loop().eval(), [torch.randn(20, 8)], labelled=False, name="loop")
    check(subject, progress=lambda *said: heard.append(said))
    assert heard[-1] == ("evaluating loop", 1, 1)
    within = [what for what, done, total in heard[:-1] if (done, total) == (0, 1)]
    assert len(within) == len(heard) - 1 > 8
    assert within[0] == "evaluating loop: 16-true, pass 1 over the batch"
