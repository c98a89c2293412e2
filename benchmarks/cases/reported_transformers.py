"""Held-out transformers in which a product of activations, or a mask, leaves float16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks import data
from benchmarks.cases.base import FP16, Built, built, fitted, healthy, planted
from benchmarks.cases.parts import Encoder, HandAttention, Vision, Words
from benchmarks.cases.reported_configured import reader


def llama(attention: str = "sdpa") -> Built:
    """A small Llama that sorts texts."""
    heads = {"num_key_value_heads": 4, "attn_implementation": attention}
    return reader("LlamaForSequenceClassification", **heads)


@planted("overflow", "model.layers.0.mlp.up_proj", "mm addmm", fails=FP16, family="gates")
def value_beyond_its_gate() -> Built:
    """Qwen2.5 and Gemma in float16: what a gate lets pass is too large, and taken back behind it.

    The product was meant to be the first to overflow; the values are before it.
    """
    model, batches = llama()
    layer, seen = model.model.layers[0].mlp, []
    hook = layer.down_proj.register_forward_pre_hook(lambda _, x: seen.append(x[0].abs().max()))
    with torch.no_grad():
        model(**batches[0][0])
        hook.remove()
        layer.up_proj.weight.mul_(2e5 / max(seen))
        layer.down_proj.weight.div_(2e5 / max(seen))
    return model, batches


def sharp(attention: str) -> Built:
    """Queries and keys of a layer 256 times as large, and a scale that takes it back."""
    model, batches = llama(attention)
    layer = model.model.layers[0]
    with torch.no_grad():
        layer.self_attn.q_proj.weight.mul_(256)
        layer.self_attn.k_proj.weight.mul_(256)
    layer.self_attn.scaling /= 256**2
    return model, batches


@planted(
    "overflow", "model.layers.0.self_attn", "bmm matmul", fails=FP16, also=("precision-loss",),
    family="scores",
)  # fmt: skip
def scores_scaled_afterwards() -> Built:
    """CogView, Qwen: eager attention multiplies queries and keys, and scales what is infinite."""
    return sharp("eager")


@healthy()
def scores_scaled_by_the_kernel() -> Built:
    """The same weights with the fused kernel, which has its scores in float32."""
    return sharp("sdpa")


class TimesMask(HandAttention):
    """Scores plus (1 - mask) times a tensor that holds the constant."""

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is not None
        absent = 1 - mask[:, None, None, :].to(scores.dtype)
        return scores + absent * torch.tensor(-1e9, device=scores.device).to(scores.dtype)


class AddedMask(HandAttention):
    """Scores plus (1 - mask) times a number, as BERT had it."""

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is not None
        return scores + (1 - mask[:, None, None, :].to(scores.dtype)) * self.constant

    constant = -1e4


def masked(attention: type[HandAttention]) -> Built:
    """Texts of different length; what differs is how padding is kept out."""
    train, test = data.text_split()
    model = fitted(lambda: Words(encoder=Encoder(AddedMask(32))), train, epochs=6)
    kept = model.encoder.attention
    model.encoder.attention = attention(32)
    model.encoder.attention.load_state_dict(kept.state_dict())
    return built(model, test)


@planted("mask-inf", "encoder.attention", "mul _to_copy", fails=FP16, family="masks")
def infinite_mask_of_nothing() -> Built:
    """transformers#17306 is of its kin: -1e9 in float16 is infinite, and nothing of it NaN."""
    return masked(TimesMask)


@healthy()
def mask_of_ten_thousand() -> Built:
    """BERT's own: -10000 is enough, and a number of float16."""
    return masked(AddedMask)


class CubicGelu(nn.Module):
    """GELU by its tanh, written out, on activations of a hundred."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 40
        inner = 0.7978845608 * (x + 0.044715 * x * x * x)
        return 0.5 * x * (1 + torch.tanh(inner)) / 40


@healthy()
def cube_beyond_the_range() -> Built:
    """GPT-2's gelu_new: the cube of 50 is infinite in float16, and its tanh one as it should be."""
    train, test = data.digits()

    def perceptron(dim: int) -> nn.Module:
        return nn.Sequential(nn.Linear(dim, 2 * dim), CubicGelu(), nn.Linear(2 * dim, dim))

    def make() -> nn.Module:
        model = Vision(depth=1)
        model.blocks[0].mlp = perceptron(32)
        return model

    return built(fitted(make, train, epochs=15), test)
