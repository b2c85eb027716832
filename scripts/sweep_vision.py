"""Small configurations of checkpoints that see as well as read, of which the language model trains on text.

Each part has a configuration of its own, and is made as small as a text model of the sweep.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweep_models import SIZES, config_of, sizes_for, write_model_of
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig

FAMILIES = (
    *("aya_vision", "cohere2_vision", "deepseek_vl", "gemma3", "gemma3n", "gemma4", "glm4v", "glm4v_moe", "glm_ocr"),
    *("got_ocr2", "idefics3", "internvl", "lfm2_vl", "llama4", "llava", "llava_next", "llava_onevision", "mistral3"),
    *("mllama", "ovis2", "paligemma", "perception_lm", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl"),
    *("qwen3_vl_moe", "smolvlm", "vipllava"),
)
"""Of transformers' image-text models those whose language model is a decoder that reads text alone as well."""

EYES: dict[str, Any] = SIZES | {
    **dict.fromkeys(("depth", "encoder_layers", "num_global_layers", "num_hidden_layers"), 1),
    **dict.fromkeys(("out_hidden_size", "projection_dim", "projector_dim", "vision_output_dim", "embed_dim"), 64),
    **dict.fromkeys(("image_size", "spatial_size"), 28),
    "patch_size": 14,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
}
"""Whichever of these the configuration of a part that sees or hears knows."""


def vision_config_of(kind: str) -> PretrainedConfig:
    """Return a small configuration of the family."""
    default = AutoConfig.for_model(kind)
    parts: dict[str, Any] = {}
    for name in default.sub_configs:
        part = getattr(default, name, None)
        if isinstance(part, PretrainedConfig):
            is_text = part is default.get_text_config()
            small = text_config_of(part.model_type) if is_text else part.to_dict() | sizes_for(part, EYES)
            parts[name] = small | {"model_type": part.model_type}
    special = {name: 3 for name in vars(default) if name.endswith(("token_id", "token_index")) and "pad" not in name}
    return AutoConfig.for_model(kind, **parts | special | {"pad_token_id": 0})


def write_vision_model(kind: str, directory: Path) -> None:
    """Write a random model of the family, in fp32, and a tokenizer with a chat template."""
    write_model_of(vision_config_of(kind), directory, AutoModelForImageTextToText)


def text_config_of(kind: str) -> dict[str, Any]:
    """Return the settings of a small text model, as part of another configuration."""
    config = config_of(kind)
    settings = config.to_dict() | {"head_dim": getattr(config, "head_dim", None) or SIZES["head_dim"]}
    rope = settings.get("rope_parameters")
    if isinstance(rope, dict) and "mrope_section" in rope:  # how many pairs of dims tell time, height and width
        pairs = int(settings["head_dim"] * rope.get("partial_rotary_factor", 1)) // 2
        rope["mrope_section"] = [pairs - 2 * (3 * pairs // 8), 3 * pairs // 8, 3 * pairs // 8]
    return settings
