"""The models that bench_train.py trains, with random weights, and how much of them a step computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A model, and how much of it a step computes."""

    architecture: dict[str, Any]
    max_length: int
    micro_batch: int  # packed rows of max_length tokens
    lora_rank: int = 0


QWEN = {"vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8}
SHAPES = {
    "tiny": Shape(
        {
            "vocab_size": 6400,
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 32,
        },
        max_length=2048,
        micro_batch=2,
    ),
    "qwen3-width": Shape(  # four layers of Qwen3-0.6B
        QWEN
        | {
            "vocab_size": 6400,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 4,
            "num_attention_heads": 16,
        },
        max_length=2048,
        micro_batch=2,
    ),
    "qwen3-0.6b": Shape(
        QWEN | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
        max_length=8192,
        micro_batch=1,
    ),
    "qwen2.5-1.5b": Shape(
        QWEN
        | {
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
        },
        max_length=4096,
        micro_batch=2,
    ),
    "8b-lora": Shape(
        QWEN
        | {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "tie_word_embeddings": False,
        },
        max_length=4096,
        micro_batch=1,
        lora_rank=32,
    ),
}
