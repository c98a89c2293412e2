"""Held-out models of `transformers`, built from a config and called by keywords; some not sound.

Streams are made as large as those of the models that were reported by an exact rescaling: what
writes to the residual stream is multiplied, and every reader of it divides by its size.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import data
from benchmarks.cases.base import FP16, TRUE, Built, fitted, healthy, planted
from benchmarks.cases.planted_other import next_character, per_token

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
WORDS: dict[str, Any] = {
    "vocab_size": 1200,
    "hidden_size": 32,
    "intermediate_size": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "num_labels": 8,
    **SMALL,
}


def made(name: str, **config: Any) -> nn.Module:
    """A model of transformers with random weights, by the name of its class.

    The package is looked up by its name, because not everybody who runs the benchmarks has it.
    """
    library = importlib.import_module("transformers")
    kind = getattr(library, name)
    return kind(kind.config_class(**config))


class Texts(nn.Module):
    """What training calls: token ids alone, and logits back."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=(ids != 0).long()).logits


def texts(ids: Tensor, labels: Tensor, size: int = 128, **more: Tensor) -> list[Any]:
    """Batches of keywords, as a collator of transformers makes them."""
    parts = zip(ids.split(size), labels.split(size), strict=True)
    return [
        (
            {
                "input_ids": i,
                "attention_mask": (i != 0).long(),
                **{k: v[: len(i)] for k, v in more.items()},
            },
            y,
        )
        for i, y in parts
    ]


def reader(name: str, **config: Any) -> Built:
    """A classifier of texts, trained, and its batches."""
    train, test = data.text_split()
    trained = fitted(lambda: Texts(made(name, **{**WORDS, **config})), train, epochs=8)
    return trained.model.eval(), texts(*test)


@healthy()
def opt_padded_on_the_left() -> Built:
    """transformers#17433, #17437: whole rows of the mask are the smallest number, on the left."""
    flip = lambda ids: torch.stack([torch.cat([r[r == 0], r[r != 0]]) for r in ids])  # noqa: E731
    (ids, y), (test, v) = data.text_split()
    config = {**WORDS, "ffn_dim": 64, "word_embed_proj_dim": 32}
    make = lambda: Texts(made("OPTForSequenceClassification", **config))  # noqa: E731
    trained = fitted(make, (flip(ids), y), epochs=8)
    return trained.model.eval(), texts(flip(test), v)


@healthy()
def albert_of_one_shared_layer() -> Built:
    """ALBERT: the same module is called once per layer."""
    return reader("AlbertForSequenceClassification", embedding_size=16, num_hidden_layers=4)


@healthy(precisions=FP16)
def mixtral_of_four_experts() -> Built:
    """marin#4234, AstrAI#57: the router's probabilities in float32, as transformers has them."""
    routed = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
    return reader("MixtralForSequenceClassification", **routed, head_dim=8)


class Topics(nn.Module):
    """A backbone's last hidden state, averaged over the text, and a head of one's own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, nn.Linear(32, 8)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.model(input_ids=input_ids).last_hidden_state
        mask = (input_ids != 0).unsqueeze(-1)
        return self.head(self.handed((hidden * mask).sum(1) / mask.sum(1)))

    def handed(self, x: Tensor) -> Tensor:
        return x


class CastTopics(Topics):
    """The same with the cast that the library's own head has."""

    def handed(self, x: Tensor) -> Tensor:
        return x.to(self.head.weight.dtype)


def state_space(kind: type[Topics]) -> Built:
    """A small Mamba, whose residual stream is float32 whatever the model is in."""
    train, test = data.text_split()
    config = {**WORDS, "state_size": 8, "num_hidden_layers": 1}
    model = fitted(lambda: kind(made("MambaModel", **config)), train, epochs=4)
    parts = zip(test[0].split(128), test[1].split(128), strict=True)
    return model, [({"input_ids": i}, y) for i, y in parts]


@planted("unsupported-op", "head", "addmm linear", fails=TRUE, family="state space")
def mamba_hands_on_float32() -> Built:
    """mamba#923 is of its kin: residual_in_fp32, and a head that is in 16 bits.

    It was labelled sound by the look of it; the judge found it.
    """
    return state_space(Topics)


@healthy()
def mamba_cast_before_the_head() -> Built:
    """As MambaForCausalLM does it."""
    return state_space(CastTopics)


class Continued(nn.Module):
    """Three characters more, by the library's own loop and its cache of keys and values."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        said = self.model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=3,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return torch.stack(said.logits, 1)


class Characters(nn.Module):
    """Logits of a model that is given no mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids).logits


@healthy(precisions=FP16)
def gpt2_generates_with_its_cache() -> Built:
    """transformers#25420: with a cache the logits are not quite those without one."""
    train, (test, _) = next_character()
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 28}
    config = {**sizes, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    make = lambda: Characters(made("GPT2LMHeadModel", **config))  # noqa: E731
    trained = fitted(make, train, loss=per_token, epochs=6)
    batches = [
        ({"input_ids": t[:, :20], "attention_mask": torch.ones_like(t[:, :20])}, t[:, 20:23])
        for t in test.split(100)
    ]
    return Continued(trained.model).eval(), batches


class Answers(nn.Module):
    """An encoder–decoder that is asked for one token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        start = ids.new_zeros(len(ids), 1)
        mask = (ids != 0).long()
        keywords = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": start}
        return self.model(**keywords).logits[:, 0]


def rescaled(model: nn.Module, names: tuple[str, ...], scale: float) -> None:
    """Multiply the weights whose names end like these, none of them twice."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(names):
                weight.mul_(scale)


def answering(scale: float) -> Built:
    """A small T5 whose residual streams are `scale` times as large as they were trained."""
    (ids, y), (test, v) = data.text_split()
    sizes = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4}
    config = {**sizes, "vocab_size": 1200, "tie_word_embeddings": False, "pad_token_id": 0}
    make = lambda: Answers(made("T5ForConditionalGeneration", **config, decoder_start_token_id=0))  # noqa: E731
    model = fitted(make, (ids, y + 2), epochs=16).model
    rescaled(model, ("shared.weight", ".o.weight", ".wo.weight"), scale)
    start = torch.zeros(128, 1, dtype=torch.long)
    return model.eval(), texts(test, v[:, None] + 2, decoder_input_ids=start)


@healthy()
def t5_in_its_range() -> Built:
    """transformers#9295: t5-small, whose streams stay below a few thousand."""
    return answering(300.0)


@planted(
    "overflow", "decoder.block.0.layer.0.SelfAttention.o", "mm linear", fails=("16-mixed",),
    moot=("16-true",), family="text to text",
)  # fmt: skip
def t5_clamps_only_what_is_float16() -> Built:
    """transformers#9295, #10956: the clamp asks for float16, and under autocast the sum is not.

    The first to go is the decoder's start, the same for every input: 69800 where it attends.
    """
    return answering(12000.0)


def normed_twice(scale: float) -> Built:
    """A small Gemma 3 whose stream, written to by norms, is `scale` times as large."""
    (ids, y), (test, v) = data.text_split()
    config = {**WORDS, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False}
    make = lambda: Texts(made("Gemma3TextForSequenceClassification", **config))  # noqa: E731
    model = fitted(make, (ids, y), epochs=8).model
    rescaled(model, ("embed_tokens.weight",), scale)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layernorm.weight" in name and name.rpartition(".layers.")[2][2:7] == "post_":
                weight.copy_((1 + weight) * scale - 1)
    return model.eval(), texts(test, v)


@planted("overflow", "model.layers.0", "add", fails=("16-true",), family="decoder")
def gemma_adds_beyond_the_range() -> Built:
    """keras-hub#2424, mlx-vlm#293: float16 holds what each norm writes, and not their sum."""
    return normed_twice(15000.0)


@healthy()
def gemma_in_its_range() -> Built:
    """The same stream below 40000."""
    return normed_twice(4000.0)
