"""May these classifiers of digits be evaluated in 16 bits?

Run me with ``pytest --fp16-conformance examples/digits``.
"""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from pytest_fp16 import Evaluation, fp16_equivalent

Models = dict[str, nn.Module]
Batches = list[tuple[Tensor, Tensor]]


@fp16_equivalent
def test_cnn(trained: Models, eval_batches: Batches) -> Evaluation:
    """A convolutional network: one item, and one verdict, per precision."""
    return Evaluation(model=trained["CNN"], data=eval_batches, name="cnn")


@fp16_equivalent(precisions=["16-true", "bf16-true"], budget=0.005)
def test_mlp(trained: Models, eval_batches: Batches) -> Evaluation:
    """Only the "true" precisions, and at most half a point of accuracy may be lost."""
    return Evaluation(model=trained["MLP"], data=eval_batches, name="mlp")


# The condition: without the flag the test is a plain run in float32, which passes.
@pytest.mark.xfail(
    "config.getoption('--fp16-conformance')",
    reason="RMSNet.norm squares in float16: the squares exceed 65504 and overflow",
)
@fp16_equivalent(precisions=["16-true"])
def test_rms_net_in_float16(trained: Models, eval_batches: Batches) -> Evaluation:
    """A planted failure, kept so that you see one: try --runxfail."""
    return Evaluation(model=trained["RMSNet"], data=eval_batches, name="rms-net")


@fp16_equivalent(precisions=["bf16-true"])
def test_rms_net_in_bfloat16(trained: Models, eval_batches: Batches) -> Evaluation:
    """The same model: bfloat16 has float32's range, so nothing overflows."""
    return Evaluation(model=trained["RMSNet"], data=eval_batches, name="rms-net")
