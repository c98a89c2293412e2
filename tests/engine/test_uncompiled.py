"""What a program compiles stays compiled for its user, and is seen by those who follow it."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check


class Counting:
    """A backend of torch.compile that counts how often what it compiled ran."""

    ran = 0

    def __call__(self, graph, inputs):
        def run(*args):
            self.ran += 1
            return graph.forward(*args)

        return run


@pytest.mark.parametrize("precision", ["16-true", "bf16-mixed"])
def test_what_a_forward_compiles_is_compiled_for_its_user_afterwards(precision):
    backend = Counting()

    @torch.compile(backend=backend)
    def gate(x):
        return x * torch.sigmoid(1.7 * x)

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.head(gate(self.first(x)))

    torch.manual_seed(0)
    model, x = Gated().eval(), torch.randn(60, 8)
    report = check(Evaluation(model=model, data=[x], labelled=False), precision=precision)
    assert (report.verdict, report.forecast.method) == ("equivalent", "adjoint")
    ran = backend.ran
    with torch.no_grad():
        model(x[:7])
    assert backend.ran == ran + 1


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_an_operator_that_takes_functions_is_followed_into_them():
    flex = pytest.importorskip("torch.nn.attention.flex_attention")

    class Attention(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.qkv, self.head, self.scale = nn.Linear(16, 48), nn.Linear(16, 4), scale

        def forward(self, x):
            def nearer(score, batch, head, i, j):
                return score / self.scale - (i - j).abs()

            q, k, v = (part.unsqueeze(1) for part in self.qkv(x).chunk(3, -1))
            mixed = flex.flex_attention(q * self.scale, k, v, score_mod=nearer)
            return self.head(mixed[:, 0].mean(1))

    torch.manual_seed(0)
    x = torch.randn(40, 8, 16)
    sound, broken = Attention(1.0).eval(), Attention(3e4).eval()
    for model, verdict in ((sound, "equivalent"), (broken, "not equivalent")):
        report = check(Evaluation(model=model, data=[x], labelled=False), precision="16-true")
        assert (report.verdict, report.forecast.verdict) == (verdict, verdict)
        assert report.run.mode == "emulated"
        with torch.no_grad():
            assert model(x).shape == (40, 4)  # and natively it still runs
