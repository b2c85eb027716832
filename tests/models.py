"""Tiny models of many families, how they are loaded, and a watch over what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
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

from sft.model.load import build_skeleton, decoder_layers, load_weights
from sft.model.logits import learn_logit_form
from sft.model.place import own_ends
from sft.model.pretrained import load_config
from sft.parallel.fsdp import Sharding, shard
from sft.parallel.mesh import build_mesh
from sft.types import Sample
from tests.assets import attention_on_cpu

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
IDS = torch.arange(24).view(2, 12)
ADAPTERS = {  # as lora.add_adapters takes them
    "base": "org/base",
    "rank": 4,
    "alpha": 16,
    "targets": "all-linear",
    "dropout": 0.0,
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": [],
    "dtype": torch.float32,
}
FAR_FROM_UNIFORM = {"initializer_range": 0.3}
"""Attention in which a wrong score would show."""
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
    """Return the configuration of a tiny model of a family."""
    kind, more = FAMILIES[family]
    return kind(**SIZES | FAR_FROM_UNIFORM | more | overrides)


OTHER_FAMILIES = {
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=4),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, sliding_window=4),  # scaled embeddings, two kinds of layers
    "qwen3_moe": lambda: Qwen3MoeConfig(  # stored expert by expert, kept fused: transformers renames while loading
        **SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, decoder_sparse_step=1
    ),
}


def model_of_family(path: Path, family: str) -> Path:
    """Write a model of one of OTHER_FAMILIES with random weights into `path`, and return it."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(OTHER_FAMILIES[family](), dtype=torch.float32).save_pretrained(path)
    return path


def causal_model(seed: int) -> Any:
    """A tiny untied Qwen3 with random weights, the same for the same seed."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config_of("qwen3", tie_word_embeddings=False))


def load_sharded(directory: Path, *, packed: bool = True) -> torch.nn.Module:
    """Build a model on the meta device, shard it over this one process and fill it from its files."""
    config = load_config(directory, trust_remote_code=False)
    attention = attention_on_cpu(config, packed=packed)
    model = build_skeleton(config, attention=attention, dtype=torch.float32, trust_remote_code=False)
    assert all(parameter.is_meta for parameter in model.parameters())
    learn_logit_form(model)
    shard(model, decoder_layers(model), build_mesh(1, "cpu").fsdp, Sharding(torch.float32), ends=own_ends(model))
    load_weights(model, directory, torch.device("cpu"))
    return model.eval()


class Watch(TorchDispatchMode):
    """The number of matrix products, and of elements in the largest tensor that was made."""

    products = largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return made


LENGTHS = (9, 1, 17)
"""Of `samples`: two that attention may mix up, and one of a single token."""


def samples() -> list[Sample]:
    """Draw three samples, all of whose tokens train."""
    random = np.random.default_rng(0)
    return [Sample(random.integers(3, 128, n).astype(np.int32), np.ones(n, np.float32)) for n in LENGTHS]


def alone(model):
    """Return (logits of every sample, Σ CE over them), each computed by itself."""
    total, logits = torch.zeros(()), []
    for sample in samples():
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))
        logits.append(model(ids[None], use_cache=False).logits[0])
        if len(ids) > 1:
            total = total + F.cross_entropy(logits[-1][:-1], ids[1:], reduction="sum")
    return torch.cat(logits), total
