"""What a diagnosis looks at: a few inputs, unless it takes the batch to go wrong."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16 import Evaluation, check


class Numbered(nn.Module):
    """Numbers all pixels of a batch, and asks which of an image's is the largest that is lit."""

    def forward(self, x):
        numbers = torch.arange(1, x.numel() + 1, device=x.device, dtype=x.dtype).view_as(x)
        return numbers * (x > 0.5)


class Reads(nn.Module):
    """As many logits as there are pixels; the last one that is lit has the largest."""

    def __init__(self):
        super().__init__()
        self.numbered, self.head = Numbered(), nn.Linear(256, 256)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(256))
            self.head.bias.zero_()

    def forward(self, x):
        numbers = self.numbered(x)
        return self.head((numbers == numbers.amax(1, keepdim=True)).to(x.dtype))


@pytest.fixture(scope="module")
def lit():
    """512 images of 256 pixels, two neighbours of which are lit: 131072 numbers."""
    place = torch.randint(1, 256, (512,), generator=torch.Generator().manual_seed(0))
    return F.one_hot(place, 256).float() + F.one_hot(place - 1, 256), place


@pytest.mark.parametrize(
    ("precision", "mechanism"), [("16-true", "overflow"), ("bf16-true", "absorption")]
)
def test_what_goes_wrong_in_a_large_batch_only_is_found_there(lit, precision, mechanism):
    report = check(Evaluation(Reads(), [lit]), precision=precision, emulate="always")
    assert report.verdict == "not equivalent"
    assert (report.culprit.module, report.culprit.operation) == ("numbered", "arange")
    assert report.culprit.mechanism == mechanism
    assert "finfo" not in str(report)
    assert report.cure.verified
