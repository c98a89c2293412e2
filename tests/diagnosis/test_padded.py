"""Padding that is read, and is zero in float32 alone."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, Settings, check
from pytest_fp16.conformance import examine

pytestmark = pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype")


class Pooled(nn.Module):
    """Reads every position, the padded ones too."""

    def __init__(self, counted=False):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 4)
        self.counted = counted

    def forward(self, x):
        mask = x[..., 0] == 9.0
        h = self.encoder(x, src_key_padding_mask=mask)
        return self.head((h.masked_fill(mask.unsqueeze(-1), 0.0) if self.counted else h).sum(1))


def rows():
    random = torch.Generator().manual_seed(2)
    x = torch.randn(120, 7, 16, generator=random)
    x[torch.arange(7)[None] >= torch.randint(1, 8, (120, 1), generator=random)] = 9.0
    return x


def labelled(model):
    x = rows()
    with torch.no_grad():
        return [(x, model(x).argmax(-1))]


@pytest.mark.parametrize("precision", ["16-true", "bf16-mixed"])
@pytest.mark.parametrize("made", [True, False], ids=["a function", "a module"])
def test_the_reference_is_the_model_as_it_runs(precision, made):
    model = Pooled().eval()
    source = (lambda: Pooled().eval()) if made else model
    report = check(Evaluation(source, labelled(model)), precision=precision)
    assert report.metric.reference == 1.0
    lost = precision == "bf16-mixed"  # under CUDA's autocast padding is not zero
    assert report.verdict == report.forecast.verdict == ("not equivalent" if lost else "equivalent")
    assert (report.culprit is not None) == lost
    if lost:
        assert (report.culprit.module, report.culprit.variant) == ("encoder", "padding")
        assert "test_padded.py" in report.culprit.source
        assert "set padded positions to zero behind it" in report.cure.description


def test_a_model_that_leaves_padding_out_is_the_same_under_autocast():
    model = Pooled(counted=True).eval()
    report = check(Evaluation(model, labelled(model)), precision="bf16-mixed")
    assert report.verdict == "equivalent"


@pytest.mark.parametrize("emulate", ["always", "never"])
@pytest.mark.parametrize("counted", [False, True], ids=["reads padding", "leaves it out"])
def test_a_cpu_refuses_its_fast_path_under_autocast(emulate, counted):
    """The cure makes it run; whether it may be run so is another question."""
    model = Pooled(counted).eval()
    batches = labelled(model)
    settings = Settings(precisions=("bf16-mixed",), target="cpu", emulate=emulate)
    (report,) = examine(Evaluation(model, batches), settings)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        try:
            model(batches[0][0])
        except RuntimeError:
            refused = True
        else:
            refused = False
    if not refused:
        pytest.skip("this torch takes its fast path under autocast on a CPU")
    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert (report.culprit.module, report.culprit.variant) == ("encoder", "fast path")
    assert report.metric is None or report.metric.reference == 1.0
    cure = report.cure
    if counted:
        assert (cure.kind, cure.verified) == ("no fast path", True)
    else:
        assert cure.kind != "no fast path" or not cure.verified
    assert "enable_nested_tensor=False" in cure.description or not counted
