"""Image models of timm and torchvision: classification, segmentation, video."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from benchmarks.zoo.base import Architecture, drawn, image

CLASSES = 10

#: Of timm, by the side of the images they are given.
TIMM: dict[str, int] = {
    **dict.fromkeys(
        "resnet18 mobilenetv3_small_050 mnasnet_small efficientnet_lite0 ghostnet_100 lcnet_050 "
        "tinynet_e regnetx_002 regnety_002 repvgg_a0 resnest14d skresnet18 dla34 vovnet39a "
        "convnext_atto convnextv2_atto edgenext_xx_small starnet_s1 mambaout_femto nf_resnet26 "
        "poolformer_s12 mobilevit_xxs mobilevitv2_050 fastvit_t8 hgnetv2_b0 repvit_m0_9 "
        "shvit_s1 fasternet_t0 inception_next_atto rexnet_100 test_vit test_efficientnet".split(),
        64,
    ),
    **dict.fromkeys(
        "vit_tiny_patch16_224 xcit_nano_12_p16_224 levit_128s "
        "efficientvit_m0 swin_tiny_patch4_window7_224 mixer_s32_224 coat_lite_tiny "
        "gmlp_ti16_224 pit_ti_224 pvt_v2_b0".split(),
        224,
    ),
}
#: Of torchvision: classification.
TORCHVISION = (
    "resnet18 mobilenet_v2 mobilenet_v3_small squeezenet1_1 shufflenet_v2_x0_5 mnasnet0_5 "
    "regnet_x_400mf efficientnet_b0 googlenet".split()
)


def _timm(name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=CLASSES)
    return model


def _torchvision(name: str, **more: object) -> nn.Module:
    import torchvision

    model: nn.Module = torchvision.models.get_model(name, weights=None, **more)
    return model


def _of_torchvision(
    kind: str, name: str, inputs: Callable[[], object], **more: object
) -> Architecture:
    return Architecture(name, kind, "torchvision", partial(_torchvision, name, **more), inputs)


def _detected(model: Any, inputs: Any) -> Any:
    """The classes of all anchors, before boxes are chosen: how many are left differs by image."""
    return model.head(list(model.backbone(inputs).values()))["cls_logits"]


ALL = (
    *(
        Architecture(n, "vision", "timm", partial(_timm, n), partial(image, s, 6 if s < 224 else 3))
        for n, s in TIMM.items()
    ),
    *(
        _of_torchvision("vision", name, partial(image, 64, 6), num_classes=CLASSES)
        for name in TORCHVISION
    ),
    _of_torchvision("vision", "swin_t", partial(image, 64, 4), num_classes=CLASSES),
    _of_torchvision(
        "segmentation",
        "lraspp_mobilenet_v3_large",
        partial(image, 64, 4),
        num_classes=5,
        weights_backbone=None,
    ),
    Architecture(
        "ssdlite320_mobilenet_v3_large",
        "detection",
        "torchvision",
        partial(_torchvision, "ssdlite320_mobilenet_v3_large", weights_backbone=None),
        partial(image, 128, 4),
        forward=_detected,
    ),
    _of_torchvision("video", "r3d_18", partial(drawn, 4, 3, 4, 32, 32), num_classes=CLASSES),
)
