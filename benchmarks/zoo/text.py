"""Language models of transformers: encoders, decoders, both, mixtures of experts, state spaces."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.zoo.base import VOCABULARY, Architecture, configured, pairs, tokens

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
XL = {"vocab_size": VOCABULARY, "d_model": 32, "n_head": 4, "d_inner": 48}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
LATENT = {
    **SMALL,
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4},
    "v_head_dim": 8,
}
EXPERTS = {
    **GROUPED,
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "n_shared_experts": 1},
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 24, "moe_topk": 2},
}
GROUPS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GROUPS |= {"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
LINEAR |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
ALTERNATE = {"layer_types": ["linear_attention", "full_attention"]}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
MAMBA |= {"mamba_chunk_size": 8}
STATE = {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}
BOTH = {
    **SMALL,
    **{"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "num_experts": 4},
    **{"encoder_layers": 2, "decoder_layers": 2, "decoder_start_token_id": 1},
    **{"encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    **{"src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY},
}

#: Encoders that classify a sequence.
ENCODERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        "bert roberta electra albert distilbert deberta deberta-v2 convbert mpnet mobilebert "
        "nystromformer rembert roformer fnet modernbert esm flaubert xlm megatron-bert ibert yoso "
        "mra canine big_bird layoutlm luke tapas eurobert".split(),
        SMALL,
    ),
    "longformer": {**SMALL, "attention_window": [4, 4]},
    "squeezebert": {**SMALL, "embedding_size": 32},
    "funnel": {**XL, "d_head": 8, "block_sizes": [1, 1]},
    "xlnet": {**XL, "n_layer": 2},
}
#: Decoders: logits of the next token at every position.
DECODERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        "gpt2 gpt_neox opt bloom falcon llama gemma2 gemma3_text phi phi3 olmo olmo2 starcoder2 "
        "mpt persimmon cohere cohere2 granite glm4 diffllama doge biogpt ctrl openai-gpt xglm "
        "gpt_bigcode nanochat smollm3".split(),
        SMALL,
    ),
    **dict.fromkeys(
        "mistral qwen2 qwen3 gemma gemma4_text stablelm helium bitnet nemotron arcee apertus "
        "exaone4 lfm2".split(),
        GROUPED,
    ),
    "gpt_neo": {**SMALL, "attention_types": [[["global", "local"], 1]]},
    "gptj": {**SMALL, "rotary_dim": 4},
    "codegen": {**SMALL, "rotary_dim": 4},
    "minicpm3": LATENT,
}
#: Decoders that route each token to a few of several experts.
ROUTED: dict[str, dict[str, Any]] = {
    **dict.fromkeys("mixtral qwen2_moe phimoe llama4_text gpt_oss hunyuan_v1_moe".split(), EXPERTS),
    **dict.fromkeys("qwen3_moe olmoe granitemoe jetmoe ernie4_5_moe".split(), EXPERTS),
    "minimax": EXPERTS,
    "deepseek_v2": {**LATENT, **GROUPS},
    "deepseek_v3": {**LATENT, **GROUPS},
    "longcat_flash": {
        **LATENT,
        **{"n_routed_experts": 4, "zero_expert_num": 2, "moe_topk": 2, "num_layers": 1},
        **{"expert_ffn_hidden_size": 24, "ffn_hidden_size": 48, "head_dim": 4},
    },
}
#: Recurrences in place of attention, or beside it.
RECURRENT: dict[str, dict[str, Any]] = {
    "mamba": SMALL,
    "mamba2": {**SMALL, **STATE},
    "falcon_mamba": SMALL,
    "rwkv": SMALL,
    "olmo_hybrid": SMALL,
    "recurrent_gemma": {**GROUPED, "num_key_value_heads": 1, "num_hidden_layers": 3},
    "qwen3_next": {**EXPERTS, **LINEAR, **ALTERNATE, "shared_expert_intermediate_size": 24},
    "qwen3_5_text": {**GROUPED, **LINEAR, **ALTERNATE},
    "falcon_h1": {**GROUPED, **MAMBA, "mamba_d_ssm": 64},
    "jamba": {
        **{**GROUPED, "num_experts": 4, "use_mamba_kernels": False, "mamba_dt_rank": 4},
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
        **{"expert_layer_period": 2, "expert_layer_offset": 1},
    },
}
#: An encoder and a decoder.
TRANSLATORS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        "t5 mt5 umt5 bart mbart pegasus marian blenderbot m2m_100 nllb-moe bigbird_pegasus plbart "
        "mvp".split(),
        BOTH,
    ),
    "longt5": {**BOTH, "local_radius": 3},
    "led": {**BOTH, "attention_window": [4, 4]},
    "pegasus_x": {**BOTH, "block_size": 4, "num_global_tokens": 2},
    "switch_transformers": {
        **{**BOTH, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        "num_decoder_layers": 2,
    },
}


def _all(
    kind: str, auto: str, table: dict[str, dict[str, Any]], inputs: Callable[[], Any]
) -> list[Architecture]:
    makers = {name: configured(name, auto, **config) for name, config in table.items()}
    return [Architecture(name, kind, "transformers", m, inputs) for name, m in makers.items()]


_LM = "AutoModelForCausalLM"
ALL = (
    *_all("encoder", "AutoModelForSequenceClassification", ENCODERS, tokens),
    *_all("decoder", _LM, DECODERS, tokens),
    *_all("mixture of experts", _LM, ROUTED, partial(tokens, count=12)),
    *_all("state space", _LM, RECURRENT, partial(tokens, count=12)),
    *_all("encoder-decoder", "AutoModelForSeq2SeqLM", TRANSLATORS, pairs),
)
