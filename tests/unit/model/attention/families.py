"""Tiny models of many families: all that their attention may be asked for."""

from __future__ import annotations

from typing import Any

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # attention that is far from uniform, so that a wrong score would show
}
TWO_KINDS = {"layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts_per_tok": 2, "num_hidden_layers": 2}

# Windows of 4 are shorter than the samples of the tests.
FAMILIES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": (Qwen3Config, {}),
    "gemma2": (
        Gemma2Config,
        {"sliding_window": 4, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 3} | TWO_KINDS,
    ),
    "gemma3": (Gemma3TextConfig, {"sliding_window": 4, "query_pre_attn_scalar": 3} | TWO_KINDS),
    "mistral": (MistralConfig, {"sliding_window": 4}),
    "gpt_oss": (GptOssConfig, {"sliding_window": 4, "num_local_experts": 4} | EXPERTS | TWO_KINDS),
    "qwen3_moe": (Qwen3MoeConfig, {"num_experts": 4, "moe_intermediate_size": 16} | EXPERTS),
}


def config_of(family: str, **overrides: Any) -> PretrainedConfig:
    """The configuration of a tiny model."""
    kind, more = FAMILIES[family]
    return kind(**SIZES | more | overrides)
