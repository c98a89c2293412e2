"""May a ResNet-20 and a vision transformer be evaluated in 16 bits on Fashion-MNIST?

Run me with ``pytest --fp16-conformance examples/fashion [--fashion-mnist=FOLDER]``. The first run
trains both models (minutes on a CPU), later ones read them from pytest's cache.
"""

from __future__ import annotations

from torch import Tensor, nn

from pytest_fp16 import Evaluation, fp16_equivalent

Batches = list[tuple[Tensor, Tensor]]


@fp16_equivalent
def test_resnet20(resnet20: nn.Module, eval_batches: Batches) -> Evaluation:
    """Convolutions and batch norm."""
    return Evaluation(model=resnet20, data=eval_batches, name="resnet20")


@fp16_equivalent
def test_vit(vit: nn.Module, eval_batches: Batches) -> Evaluation:
    """Attention, layer norm and GELU."""
    return Evaluation(model=vit, data=eval_batches, name="vit")


@fp16_equivalent(precisions=["16-true", "bf16-true"], budget=0.01)
def test_vit_without_labels(vit: nn.Module, eval_batches: Batches) -> Evaluation:
    """No labels: at most one prediction in a hundred may change."""
    images = [x for x, _ in eval_batches]
    return Evaluation(model=vit, data=images, labelled=False, name="vit, unlabelled")
