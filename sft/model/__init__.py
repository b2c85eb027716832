"""A Hugging Face directory in, a trainable model out.

source = pretrained.find_model("Qwen/Qwen2.5-0.5B")          # local directory or hub snapshot
config = pretrained.load_config(source, ...)
attention = choose_attention(config, ...)                    # which kernel, and why
model = build_skeleton(config, attention=attention, ...)     # on the meta device: no memory yet
lora.add_adapters(model, ...)                                # with LoRA only; imported then, peft is optional
...                                                          # the caller shards it
load_weights(model, source, device, ...)                     # every rank reads its own slices
lora.start_adapters(model, ...)
"""

from typing import Any

from sft.config import ModelConfig
from sft.model.attention import Available, Choice, choose_attention
from sft.model.liger import use_liger_kernels
from sft.model.load import build_skeleton, decoder_layers, load_weights, positions_of, read_weights
from sft.model.logits import learn_logit_form
from sft.model.names import has_adapters, named_weights, trained_weights
from sft.model.vocabulary import grow_vocabulary

__all__ = [
    "Available",
    "Choice",
    "adapter_settings",
    "build_skeleton",
    "choose_attention",
    "decoder_layers",
    "grow_vocabulary",
    "has_adapters",
    "learn_logit_form",
    "load_weights",
    "named_weights",
    "positions_of",
    "read_weights",
    "trained_weights",
    "use_liger_kernels",
]


def adapter_settings(model: ModelConfig) -> dict[str, Any]:
    """What the configuration says about adapters, in types that JSON keeps; empty without LoRA."""
    if not model.lora_rank:
        return {}
    return {
        "rank": model.lora_rank,
        "alpha": model.lora_alpha,
        "targets": model.target_modules if isinstance(model.target_modules, str) else list(model.target_modules),
        "dropout": model.lora_dropout,
        "use_rslora": model.use_rslora,
        "use_dora": model.use_dora,
        "modules_to_save": list(model.modules_to_save or ()),
    }
