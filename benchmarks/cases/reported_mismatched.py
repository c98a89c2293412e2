"""Held-out models that refuse 16 bits, or are made to compute in them where they said float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import ALL, TRUE, Built, built, fitted, healthy, planted


class AxialRotary(nn.Module):
    """Angles of two axes, float32 operands in a product of matrices; then cosines and sines."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.turned(position_ids)

    def turned(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.arange(0, self.dim, 2, device=position_ids.device)
        inv_freq = 1.0 / (100.0 ** (steps.float() / self.dim))
        inv_freq = inv_freq[None, None, :, None].expand(len(position_ids), 2, -1, 1)
        freqs = (inv_freq @ position_ids.transpose(1, 2)[:, :, None].float()).permute(0, 3, 1, 2)
        return freqs.flatten(2).cos(), freqs.flatten(2).sin()


class AxialRotaryIsland(AxialRotary):
    """The same with autocast off."""

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(position_ids.device.type, enabled=False):
            return self.turned(position_ids)


class Pixels(nn.Module):
    """Every pixel a token, turned by its place in a canvas; their sum is read."""

    def __init__(self, rope: type[AxialRotary]) -> None:
        super().__init__()
        self.embed, self.rope = nn.Linear(1, 64), rope(32)
        self.body = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, pixels: Tensor, position_ids: Tensor) -> Tensor:
        x = self.embed(pixels.flatten(1)[..., None])
        cos, sin = (t.to(x.dtype) for t in self.rope(position_ids))
        a, b = x.chunk(2, -1)
        return self.body(torch.cat([a * cos - b * sin, a * sin + b * cos], -1).sum(1) / 8)


def far_out(rope: type[AxialRotary]) -> Built:
    """Digits on a canvas that begins at place 65536, as batches of keywords."""
    place = torch.cartesian_prod(torch.arange(8), torch.arange(8)) + 65536
    (x, y), (u, v) = data.digits()
    model = fitted(lambda: Pixels(rope), (x, place.expand(len(x), -1, -1), y), epochs=20)
    parts = zip(u.split(128), v.split(128), strict=True)
    return model, [
        ({"pixels": p, "position_ids": place.expand(len(p), -1, -1)}, q) for p, q in parts
    ]


@planted(
    "precision-loss", "rope", "bmm matmul mm _to_copy", fails=("16-mixed", "bf16-mixed"),
    also=("absorption", "overflow"), family="rotary",
)  # fmt: skip
def rotary_product_under_autocast() -> Built:
    """diffusers#13920: operands are float32, but autocast takes every product of matrices."""
    return far_out(AxialRotary)


@healthy()
def rotary_product_outside_autocast() -> Built:
    """diffusers#13922: the mend of it."""
    return far_out(AxialRotaryIsland)


class Adapted(nn.Module):
    """A linear layer and a low-rank adapter that was loaded beside it, in its own type."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        random = torch.Generator().manual_seed(1)
        self.adapter = {
            "down": torch.randn(4, inputs, generator=random) / inputs**0.5,
            "up": torch.randn(outputs, 4, generator=random) / 4,
        }

    def forward(self, x: Tensor) -> Tensor:
        low = x @ self.adapter["down"].to(x.device).T
        return self.base(x) + low @ self.adapter["up"].to(x.device).T


class WeightDecomposed(nn.Module):
    """DoRA: a direction with its low-rank change, brought to a learned length per row."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.lora_A, self.lora_B = nn.Linear(inputs, 4, False), nn.Linear(4, outputs, False)
        self.magnitude = nn.Parameter(self.base.weight.detach().norm(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        eye = torch.eye(x.shape[-1], device=x.device, dtype=x.dtype)
        change = self.lora_B(self.lora_A(eye)).T
        length = torch.linalg.norm(
            self.base.weight + 2.0 * change.to(self.base.weight.dtype), dim=1
        )
        scale = (self.magnitude / length).view(1, -1)
        out = F.linear(x, self.base.weight) + 2.0 * self.lora_B(self.lora_A(x))
        return out * scale + self.base.bias


class Perceptron(nn.Module):
    """Two layers, the first of which is the part under test."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.head = first, nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.first(x.flatten(1))))


@planted("unsupported-op", "first", "mm matmul", fails=TRUE, family="adapter")
def adapter_left_in_float32() -> Built:
    """LlamaFactory#4432: what no module owns is not cast with it, and Half meets float."""
    train, test = data.digits()
    return built(fitted(lambda: Perceptron(Adapted(64, 48)), train), test)


@healthy()
def adapter_of_decomposed_weights() -> Built:
    """peft's DoRA: the length of a changed weight, taken at every call."""
    train, test = data.digits()
    return built(fitted(lambda: Perceptron(WeightDecomposed(64, 48)), train), test)


Features = dict[str, Any]


class Tokens(nn.Module):
    """Word vectors, put beside the ids in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1200, 32)

    def forward(self, features: Features) -> Features:
        return {**features, "token_embeddings": self.embed(features["input_ids"])}


class Pooling(nn.Module):
    """The mean of the words that are no padding."""

    def forward(self, features: Features) -> Features:
        words = features["token_embeddings"]
        mask = self.typed(features["attention_mask"].unsqueeze(-1).expand(words.size()), words)
        total = torch.clamp(mask.sum(1), min=1e-9)
        return {**features, "sentence_embedding": (words * mask).sum(1) / total}

    def typed(self, mask: Tensor, words: Tensor) -> Tensor:
        return mask.float()


class TypedPooling(Pooling):
    """The same in the type of the words."""

    def typed(self, mask: Tensor, words: Tensor) -> Tensor:
        return mask.to(words.dtype)


class Dense(nn.Module):
    """A layer on the text's vector."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 8)

    def forward(self, features: Features) -> Features:
        return {**features, "logits": self.linear(features["sentence_embedding"])}


class Sentences(nn.Sequential):
    """Modules that hand a dictionary on; all of it is returned."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Features:  # type: ignore[override]
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        for module in self:
            features = module(features)
        return features


class Logits(nn.Module):
    """What training calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids, (ids != 0).long())["logits"]


def sentences(pooling: type[Pooling], empty: int = 0) -> Built:
    """A classifier of texts by dictionaries; the first few texts of a batch may be empty."""
    train, (test, v) = data.text_split()
    model = fitted(lambda: Logits(Sentences(Tokens(), pooling(), Dense())), train).model
    test = test.clone()
    test[:empty] = 0
    parts = zip(test.split(200), v.split(200), strict=True)
    return model, [({"input_ids": i, "attention_mask": (i != 0).long()}, y) for i, y in parts]


@planted("unsupported-op", "2.linear", "addmm linear", fails=TRUE, family="sentences")
def pooling_made_float() -> Built:
    """sentence-transformers#2492: mask.float() makes the mean float32, and Dense is not."""
    return sentences(Pooling)


@planted("eps-underflow", "1", "clamp div", fails=("16-true",), family="sentences")
def pooling_of_an_empty_text() -> Built:
    """sentence-transformers after #2492: 1e-9 is zero in float16, and so is an empty text."""
    return sentences(TypedPooling, empty=5)


class Threshold(nn.Module):
    """Imagen's dynamic threshold: what is beyond the 95th percentile is cut, the rest scaled."""

    def forward(self, x: Tensor) -> Tensor:
        s = torch.quantile(self.typed(x).abs(), 0.95, dim=-1, keepdim=True).clamp(min=1.0)
        return (x.clamp(-s, s) / s).to(x.dtype)

    def typed(self, x: Tensor) -> Tensor:
        return x


class FloatThreshold(Threshold):
    """The percentile of a float32 copy."""

    def typed(self, x: Tensor) -> Tensor:
        return x.float()


class Thresholded(nn.Module):
    """A denoiser, the threshold, and what is read from both."""

    def __init__(self, threshold: type[Threshold]) -> None:
        super().__init__()
        self.denoise, self.threshold = nn.Linear(64, 64), threshold()
        self.head = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.threshold(self.denoise(x.flatten(1)) * 2))


@planted("unsupported-op", "threshold", "quantile", fails=ALL, family="diffusion")
def quantile_of_16_bits() -> Built:
    """pytorch#91156, ledits_pp#3: quantile takes float and double, also under autocast."""
    train, test = data.digits()
    return built(fitted(lambda: Thresholded(Threshold), train), test)


@healthy()
def quantile_of_a_float_copy() -> Built:
    """trl#3666: the mend of it."""
    train, test = data.digits()
    return built(fitted(lambda: Thresholded(FloatThreshold), train), test)
