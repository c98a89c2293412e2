"""The twelve networks of the table, for images of 3x32x32 and 10 classes, by the table's names.

They follow the forms the paper's authors trained (see `benchmarks.paper.published`), which are not
always the ones the names suggest: DenseNet, Xception and MobileNetV2 keep their ImageNet stems, so
a 32x32 image is 1x1 at the end; "VGG-19" has three convolutions in its third block, not four (its
published 38.36 million parameters have no room for the fourth); ResNets are of the pre-activated
kind with padded shortcuts. Weights start as in Keras, which they used: Glorot uniform, biases zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from benchmarks.paper.models.deep import DenseNet, MobileNetV2, Xception
from benchmarks.paper.models.plain import ResNet, alexnet, vgg
from benchmarks.paper.models.vit import ViT

CLASSES = 10


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: the table's.
        make: makes the network; draws its weights from torch's global generator.
        momentum, weight_decay: of SGD, as the authors trained it; decay of weight matrices alone.
    """

    name: str
    make: Callable[[], nn.Module]
    momentum: float = 0.9
    weight_decay: float = 0.0


def glorot(model: nn.Module) -> nn.Module:
    """Keras's first weights: Glorot uniform for matrices and kernels, zero for biases."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def _row(name: str, make: Callable[[], nn.Module], **training: float) -> Row:
    return Row(name, lambda: glorot(make()), **training)


_VGG16, _VGG19 = (2, 2, 3, 3, 3), (2, 2, 3, 4, 4)

ROWS = {
    row.name: row
    for row in (
        _row("AlexNet", partial(alexnet, CLASSES)),
        _row("VGG-16", partial(vgg, _VGG16, CLASSES)),
        _row("VGG-19", partial(vgg, _VGG19, CLASSES)),
        # Keras's l2(1e-4) adds 1e-4 |w|² to the loss, whose gradient is that of a decay of 2e-4.
        _row("ResNet-32", partial(ResNet, 32, CLASSES), weight_decay=2e-4),
        _row("ResNet-56", partial(ResNet, 56, CLASSES), weight_decay=2e-4),
        _row("ResNet-110", partial(ResNet, 110, CLASSES), weight_decay=2e-4),
        _row("DenseNet-121", partial(DenseNet, (6, 12, 24, 16), CLASSES)),
        _row("DenseNet-169", partial(DenseNet, (6, 12, 32, 32), CLASSES)),
        _row("Xception", partial(Xception, CLASSES)),
        _row("MobileNetV2", partial(MobileNetV2, CLASSES)),
        _row("ViT-8", partial(ViT, 8, CLASSES), momentum=0.0),
        _row("ViT-12", partial(ViT, 12, CLASSES), momentum=0.0),
    )
}


def size(model: nn.Module) -> int:
    """Numbers in a network as Keras counts them: parameters and running statistics."""
    buffers = (b for b in model.buffers() if b.is_floating_point())
    return sum(p.numel() for p in model.parameters()) + sum(b.numel() for b in buffers)
