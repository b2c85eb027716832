"""Tiny random models of every family of causal language models that transformers has.

Norms are not one and biases not zero, and attention is far from uniform, so that what is forgotten or mixed up shows.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from quickstart import (  # the script, not the folder that it makes
    VOCAB_SIZE,  # pyright: ignore[reportAttributeAccessIssue]
    save_tokenizer,  # pyright: ignore[reportAttributeAccessIssue]
)

NO_DECODERS = {
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta"),
    *("xlm-roberta-xl", "xlnet", "xmod", "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian"),
    *("mbart", "mvp", "pegasus", "plbart", "prophetnet", "trocr", "whisper"),
}
"""Encoders, and decoders of encoder-decoders: in transformers' table of causal models, but not trained as such."""

WITH_OTHER_MEDIA = {
    *("emu3", "fuyu", "gemma3", "gemma3n", "gemma4", "gemma4_unified", "gemma4_assistant", "gemma4_unified_assistant"),
    *("git", "got_ocr2", "hyperclovax", "llama4", "mllama", "moshi", "moss_transcribe_diarize", "musicgen"),
    *("musicgen_melody", "phi4_multimodal", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "dots3_note"),
}
"""Their configurations hold a text model and others; the text model is a family of its own."""

BY_BYTES = {"blt"}
"""They read bytes, not tokens."""

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim", "embedding_size"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "n_inner", "block_ff_dim"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "decoder_layers", "num_layers", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "moe_topk", "num_experts_per_tok", "moe_k"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 256),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("expert_ffn_hidden_size", "q_lora_rank"), 32),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("head_dim", "v_head_dim", "kv_lora_rank", "query_pre_attn_scalar"), 16),
    **dict.fromkeys(("attention_heads",), 4),
    "sliding_window": 8,
    "initializer_range": 0.08,
    # Numbers are compared, so nothing may be drawn at random.
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout", "dropout"), 0.0),
    **dict.fromkeys(
        ("attention_probs_dropout_prob", "hidden_dropout_prob", "activation_dropout", "resid_dropout"), 0.0
    ),
    **dict.fromkeys(("residual_dropout", "embedding_dropout", "embd_dropout", "layerdrop", "router_jitter_noise"), 0.0),
    **dict.fromkeys(("input_jitter_noise",), 0.0),
}
"""Whichever of these a configuration knows."""

SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
DELTA = LINEAR | {
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
MAMBA2 = {
    **{"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1},
    **{"mamba_d_state": 16, "mamba_chunk_size": 16},
}
PER_LAYER = SLIDING | {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 16}
PER_LAYER |= {"vocab_size_per_layer_input": VOCAB_SIZE}

INDEXED = {"num_key_value_heads": 4, "index_head_dim": 16, "index_n_heads": 2}

SHARED = {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "mamba_d_state": 8}
"""Attention and MLP of two of its layers have the same weights."""

MROPE = {"rope_parameters": ROPE | {"mrope_section": []}}  # sweep_vision.py divides it

OF_FAMILY: dict[str, dict[str, Any]] = {
    "axk2": INDEXED,
    "bailing_hybrid": LINEAR,
    "bamba": {"attn_layer_indices": [1], **MAMBA2},
    "codegen": {"rotary_dim": 8},
    "cohere2": SLIDING,
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}, **SLIDING},
    "deepseek_v32": INDEXED,
    "dots3_note_text": {"num_key_value_heads": 4},
    "ernie4_5_moe": {"moe_num_shared_experts": 1, "moe_layer_start_index": 1},
    "exaone4": SLIDING,
    "falcon": {"new_decoder_architecture": True, "alibi": False},
    "falcon_h1": MAMBA2 | {"mamba_d_ssm": 64, "mamba_n_heads": 4},
    "gemma2": SLIDING,
    "gemma3_text": SLIDING,
    "gemma3n_text": PER_LAYER | {"laurel_rank": 8, "activation_sparsity_pattern": [0.0, 0.0]},
    "gemma4_text": PER_LAYER | {"global_head_dim": 16},
    "glm4_moe": {"partial_rotary_factor": 0.5},
    "glm4v_moe_text": {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5, "mrope_section": []}},
    "glm4v_text": MROPE,
    "glm_moe_dsa": INDEXED,
    "glm_ocr_text": MROPE,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gpt_oss": SLIDING,
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], **MAMBA2},
    "jamba": {
        **{"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 8, "use_mamba_kernels": False},
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "conv_dim": 64},
    "kimi_linear": LINEAR,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {
        **{"layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0]},
        **{
            "attention_chunk_size": 8,
            "interleave_moe_layer_step": 1,
            "moe_layers": [0, 1],
            "intermediate_size_mlp": 96,
        },
    },
    "longcat_flash": {"ffn_hidden_size": 96, "zero_expert_num": 1},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 16, "chunk_size": 16, "expand": 2},
    "minimax": LINEAR | {"block_size": 16},
    "nemotron_h": {
        **{"hybrid_override_pattern": "M*", "mamba_num_heads": 8, "mamba_head_dim": 16},
        **{"n_groups": 1, "ssm_state_size": 16, "chunk_size": 16},
    },
    "olmo3": SLIDING,
    "opt": {"do_layer_norm_before": True},
    "qwen2_5_vl_text": MROPE,
    "qwen2_vl_text": MROPE,
    "qwen3_5_moe_text": DELTA,
    "qwen3_5_text": DELTA,
    "qwen3_next": DELTA,
    "recurrent_gemma": {"lru_width": 64, "attention_window_size": 8, "block_types": ["recurrent", "attention"]},
    "smollm3": {"no_rope_layers": [1, 0]},
    "zamba": SHARED,
    "zamba2": SHARED | {"mamba_ngroups": 1, "n_mamba_heads": 8, "mamba_d_state": 16, "adapter_rank": 4},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a family needs beside SIZES to be small, or to have all its kinds of layers."""

WORDS = ("one apple", "two pears and a half", "some plums, many cherries and no grapes at all", "nuts")
ROWS = [{"prompt": f"Count {what}.", "response": f"There are {what}, and {7 * n}."} for n, what in enumerate(WORDS)]


def families() -> list[str]:
    """Return the model types of all causal language models that this transformers has."""
    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - NO_DECODERS - WITH_OTHER_MEDIA - BY_BYTES)


def config_of(kind: str) -> PretrainedConfig:
    """Return a small configuration of the family."""
    sizes = sizes_for(AutoConfig.for_model(kind), SIZES | OF_FAMILY.get(kind, {}), always=OF_FAMILY.get(kind, {}))
    return AutoConfig.for_model(kind, **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def sizes_for(
    default: PretrainedConfig, sizes: Mapping[str, Any], always: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Return those of `sizes` that a configuration knows, and `always`; one of two names of the same."""
    known = set(vars(default)) | {name for c in type(default).__mro__ for name in getattr(c, "__annotations__", {})}
    known |= set(inspect.signature(type(default).__init__).parameters) | set(default.attribute_map)
    found = {name: value for name, value in sizes.items() if name in known} | dict(always)
    if "qk_rope_head_dim" in found:
        found["head_dim"] = found["qk_rope_head_dim"]
    for alias, name in default.attribute_map.items():
        if alias in found and name in found and alias != name:
            del found[alias]
    return found


def write_model(kind: str, directory: Path) -> None:
    """Write a random model of the family, in fp32, and a tokenizer with a chat template."""
    write_model_of(config_of(kind), directory, AutoModelForCausalLM)


def write_model_of(config: PretrainedConfig, directory: Path, auto_class: Any) -> None:
    """Write a random model of a configuration, as one of transformers' auto classes builds it."""
    torch.manual_seed(0)
    model = auto_class.from_config(config, dtype=torch.float32)
    if sum(weight.numel() for weight in model.parameters()) > 20e6:
        raise ValueError("there is no small configuration of it in scripts/sweep_models.py")
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim < 2:
                weight.add_(0.05 * torch.randn_like(weight))
    model.save_pretrained(directory)
    save_tokenizer(directory, [text for row in ROWS for text in row.values()])
