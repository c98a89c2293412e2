"""Models of transformers that see, hear, or forecast, and those of several senses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.zoo.base import Architecture, configured, drawn, pixels, tokens
from benchmarks.zoo.text import SMALL

VISION: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.15,
}
WINDOWS = {**VISION, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]}
WINDOWS |= {"window_size": 4}
SHIFTED = {k: v for k, v in WINDOWS.items() if k not in VISION}
CONVOLUTIONS = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "embedding_size": 8}
CONVOLUTIONS |= {"image_size": 32}
SPEECH: dict[str, Any] = {
    **SMALL,
    **{"conv_dim": [16, 16], "conv_stride": [4, 4], "conv_kernel": [8, 4]},
    **{"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8, "classifier_proj_size": 16},
    **{"num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0, "num_labels": 5},
}
SERIES: dict[str, Any] = {
    **{"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8},
    **{"d_model": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "ffn_dim": 48},
    **{"num_layers": 2, "prediction_length": 8, "num_targets": 5},
}
DETECTOR: dict[str, Any] = {
    **{"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 6},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_labels": 5},
    **{"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "init_std": 0.1},
}
TOWERS: dict[str, Any] = {
    "text_config": {**SMALL, "projection_dim": 16},
    "vision_config": {**VISION, "projection_dim": 16},
    "projection_dim": 16,
}

#: Classifiers of images.
IMAGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys("vit beit dinov2 dinov2_with_registers vit_msn ijepa".split(), VISION),
    "focalnet": WINDOWS,
    **dict.fromkeys("swin swinv2".split(), SHIFTED),
    **dict.fromkeys("convnext convnextv2 resnet regnet".split(), CONVOLUTIONS),
    "bit": {**CONVOLUTIONS, "num_groups": 4},
    "hiera": {
        **{"image_size": [32, 32], "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2]},
        **{"query_stride": [2, 2], "masked_unit_size": [4, 4], "num_query_pool": 1},
    },
    "mobilenet_v2": {"image_size": 32, "depth_multiplier": 0.25, "depth_divisible_by": 4},
    "segformer": {
        **{"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "mlp_ratios": [2, 2]},
        **{"hidden_sizes": [8, 16], "num_attention_heads": [1, 2], "patch_sizes": [7, 3]},
        **{"strides": [4, 2], "decoder_hidden_size": 16},
    },
    "poolformer": {
        **{"depths": [1, 1], "hidden_sizes": [8, 16], "patch_sizes": [7, 3], "strides": [4, 2]},
        **{"padding": [2, 1], "num_encoder_blocks": 2},
    },
    "pvt_v2": {
        **{"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "sr_ratios": [4, 2, 1, 1]},
        **{"num_attention_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2], "image_size": 32},
    },
}
#: Speech, from the wave.
WAVES: dict[str, dict[str, Any]] = dict.fromkeys(
    "wav2vec2 hubert wavlm unispeech unispeech-sat data2vec-audio sew wav2vec2-conformer".split(),
    SPEECH,
)
#: Series of numbers.
FORECASTS = {"patchtst": "PatchTSTForPrediction", "patchtsmixer": "PatchTSMixerForPrediction"}


def _entry(
    kind: str, name: str, auto: str, config: dict[str, Any], inputs: Callable[[], Any], **more: Any
) -> Architecture:
    return Architecture(
        name, kind, "transformers", configured(name, auto, **config), inputs, **more
    )


def _wave() -> dict[str, Any]:
    return {"input_values": drawn(8, 400)}


def _series() -> dict[str, Any]:
    return {"past_values": drawn(12, 32, 3)}


def _forecast(model: Any, inputs: Any) -> Any:
    return model(**inputs).prediction_outputs


def _heard() -> dict[str, Any]:
    decoded = torch.arange(3, 9).repeat(6, 1) + torch.arange(6).unsqueeze(1)
    return {"input_features": drawn(6, 16, 64), "decoder_input_ids": decoded}


def _spectrogram() -> dict[str, Any]:
    return {"input_values": drawn(8, 64, 16)}


def _seen_and_read(count: int = 8, size: int = 32) -> dict[str, Any]:
    return {**pixels(size, count), **tokens(count=count)}


def _matched(model: Any, inputs: Any) -> Any:
    return model(**inputs).image_embeds


_CLASSIFIER = "AutoModelForImageClassification"
ALL = (
    *(_entry("vision", n, _CLASSIFIER, c, pixels) for n, c in IMAGES.items()),
    _entry(
        "segmentation",
        "segformer",
        "AutoModelForSemanticSegmentation",
        IMAGES["segformer"],
        partial(pixels, count=4),
    ),
    _entry(
        "detection",
        "yolos",
        "AutoModelForObjectDetection",
        {**VISION, "image_size": [32, 32], "num_detection_tokens": 6},
        pixels,
    ),
    *(
        _entry(
            "detection",
            name,
            "AutoModelForObjectDetection",
            {
                **{**DETECTOR, "use_timm_backbone": False, "use_pretrained_backbone": False},
                "backbone_config": {
                    **{"model_type": "resnet", **CONVOLUTIONS, "hidden_sizes": [8, 16, 16, 16]},
                    **{"depths": [1, 1, 1, 1], "out_features": ["stage2", "stage3", "stage4"]},
                },
                **{"backbone": None, "num_feature_levels": 3},
            },
            partial(pixels, 64, 4),
        )
        for name in ("detr", "conditional_detr", "deformable_detr")
    ),
    *(
        _entry("audio", name, "AutoModelForAudioClassification", config, _wave)
        for name, config in WAVES.items()
    ),
    _entry(
        "audio",
        "audio-spectrogram-transformer",
        "AutoModelForAudioClassification",
        {**VISION, "max_length": 64, "num_mel_bins": 16, "time_stride": 8, "frequency_stride": 8},
        _spectrogram,
    ),
    _entry(
        "audio",
        "whisper",
        "AutoModelForSpeechSeq2Seq",
        {
            **{**SMALL, **DETECTOR, "num_mel_bins": 16, "max_source_positions": 32},
            "max_target_positions": 16,
        },
        _heard,
    ),
    *(
        _entry("time series", name, kind, SERIES, _series, forward=_forecast)
        for name, kind in FORECASTS.items()
    ),
    *(
        _entry("multimodal", name, "AutoModel", TOWERS, _seen_and_read, forward=_matched)
        for name in ("clip", "siglip", "chinese_clip", "altclip")
    ),
    _entry(
        "multimodal",
        "vilt",
        "AutoModel",
        {**SMALL, **VISION},
        _seen_and_read,
    ),
)
