"""Held-out models of public libraries, by their own classes: small, and trained in seconds."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import FP16, Built, built, fitted, healthy
from benchmarks.cases.reported_configured import WORDS, made, texts


class Called(nn.Module):
    """What training calls: one keyword, and logits back."""

    def __init__(self, model: nn.Module, keyword: str) -> None:
        super().__init__()
        self.model, self.keyword = model, keyword

    def forward(self, x: Tensor) -> Tensor:
        return self.model(**{self.keyword: x}).logits


def keyword(name: str, train: Any, test: Any, epochs: int, word: str, **config: Any) -> Built:
    """A model of transformers, trained, and its batches of one keyword."""
    model = fitted(lambda: Called(made(name, **config), word), train, epochs=epochs, rate=2e-3)
    parts = zip(test[0].split(128), test[1].split(128), strict=True)
    return model.model.eval(), [({word: x}, y) for x, y in parts]


@healthy()
def swin_v2_by_its_class() -> Built:
    """Swin-Transformer#207: cosines, a scale clamped at a hundred, biases from logarithms."""
    train, test = data.digits()
    shape = {"image_size": 8, "patch_size": 1, "num_channels": 1, "window_size": 4}
    sizes = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "num_labels": 10}
    return keyword(
        "Swinv2ForImageClassification", train, test, 40, "pixel_values", **shape, **sizes
    )


@healthy()
def hubert_by_its_class() -> Built:
    """HuBERT: a norm over time behind the first convolution, weight norm in its positions."""
    x, y = data.tones(900, 6, 512)
    speech = {
        "conv_dim": (16, 32), "conv_kernel": (10, 8), "conv_stride": (5, 4), "hidden_size": 32,
        "num_feat_extract_layers": 2, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4,
        "classifier_proj_size": 32, "num_labels": 6, "apply_spec_augment": False,
    }  # fmt: skip
    train, test = (x[:600], y[:600]), (x[600:], y[600:])
    return keyword("HubertForSequenceClassification", train, test, 12, "input_values", **speech)


class Ids(nn.Module):
    """Token ids alone, and logits back."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=(ids != 0).long()).logits


@healthy()
def deberta_by_its_class() -> Built:
    """transformers#24116, #35332: disentangled attention, once scaled by a float of its own."""
    train, test = data.text_split()
    more = {
        "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16,
        "max_relative_positions": 32, "type_vocab_size": 0, "position_biased_input": False,
        "norm_rel_ebd": "layer_norm", "share_att_key": True, "pooler_hidden_size": 32,
    }  # fmt: skip
    config = {k: v for k, v in WORDS.items() if k not in ("bos_token_id", "eos_token_id")}
    name = "DebertaV2ForSequenceClassification"
    trained = fitted(lambda: Ids(made(name, **{**config, **more})), train, epochs=6)
    return trained.model.eval(), texts(*test)


class Nodes(nn.Module):
    """Two layers of a graph network of torch_geometric, with norms between."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        library = importlib.import_module("torch_geometric.nn")
        self.first = library.GENConv(inputs, 32, aggr="softmax", learn_t=True, msg_norm=True)
        self.norm = library.GraphNorm(32)
        self.second = library.GATv2Conv(32, 16, heads=2)
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = F.elu(self.norm(self.first(x, edges)))
        return self.head(F.elu(self.second(x, edges)))


@healthy(precisions=FP16)
def graph_layers_by_their_classes() -> Built:
    """pytorch_geometric#2106 is of its kin: softmax by index, message norms, 1e-7 in a message.

    In bfloat16 GraphNorm counts 1797 nodes by ones: sound on a CPU, 256 by a GPU's atomic sums.
    """
    (x, y), (tx, ty) = data.digits()
    x, y = torch.cat([x, tx]).flatten(1), torch.cat([y, ty])
    near = torch.cdist(x, x).topk(6, largest=False).indices
    edges = torch.stack([near.flatten(), torch.arange(len(x)).repeat_interleave(6)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Nodes(64, 10)
    best = torch.optim.AdamW(model.parameters(), 4e-3)
    for _ in range(60):
        best.zero_grad()
        F.cross_entropy(model(x, edges)[:1197], y[:1197]).backward()
        best.step()
    return model.eval(), [((x, edges), y)]


class LowRank(nn.Module):
    """A weight with an adapter merged into it whenever it is asked for."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(outputs, 4))
        self.down = nn.Parameter(torch.randn(4, inputs) * 0.1)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 2 * self.up @ self.down


@healthy()
def adapter_merged_into_a_weight() -> Built:
    """peft#1388, torchtune#1101: merged weights differ in the last digit, and answers hardly."""
    (x, y), test = data.digits()

    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    model = fitted(make, (x[:, :, :, :4].repeat(1, 1, 1, 2), y), epochs=10)
    for layer in (model[1], model[3]):
        layer.weight.requires_grad_(False)
        adapter = LowRank(*layer.weight.shape)
        nn.utils.parametrize.register_parametrization(layer, "weight", adapter)
    return built(fitted(lambda: model, (x, y), epochs=15), test)
