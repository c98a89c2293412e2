"""What torch's fast path gives beside the plain path that a check runs."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.fast_path_outputs import _apart

pytestmark = pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype")


class Layer(nn.Module):
    """A layer by itself, some of whose rows may be padding alone: torch's fast path makes NaN."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.layer(x, src_key_padding_mask=x[..., 0] == 9.0).mean(1))


def warned(x):
    model = Layer().eval()
    with torch.no_grad():
        labels = model(x).nan_to_num().argmax(-1)
    report = check(Evaluation(model, [(x, labels)]), precision="bf16-true")
    return [w for w in report.warnings if "fast path" in w]


def test_a_fast_path_that_parts_is_told():
    x = torch.randn(40, 7, 16, generator=torch.Generator().manual_seed(0))
    assert warned(x) == []
    x[0, 3:] = 9.0
    assert warned(x) == []
    x[1] = 9.0
    with torch.no_grad():
        lost = int((~Layer().eval()(x[:4]).isfinite()).sum())
    said = f"makes {lost} of 16 outputs looked at NaN or infinite in float32"
    assert warned(x) == [
        f"torch's fast path of attention layers, which is left off here, {said}"
    ] * bool(lost)


def test_how_far_they_part():
    one = torch.tensor([1.0, -4.0])
    assert _apart(one, one + 1e-4) == ""
    assert _apart(one + 1.0, one) == "gives others: by 0.25 of the largest"
    assert _apart(one[:1], one).startswith("gives outputs of shape (1,)")
    assert _apart(torch.tensor([torch.nan, 1.0]), one).startswith("makes 1 of 2 outputs")
    masked = torch.tensor([-torch.inf, 1.0])
    assert _apart(masked, masked) == ""
