"""A Hugging Face directory in, a trainable model out.

source = find_model("Qwen/Qwen2.5-0.5B")                     # local directory or hub snapshot
model = build_skeleton(load_config(source, ...), ...)        # on the meta device: no memory yet
...                                                          # the caller shards it
load_weights(model, source, device, ...)                     # every rank reads its own slices
"""

from sft.model.load import (
    build_skeleton,
    decoder_layers,
    find_model,
    load_config,
    load_tokenizer,
    load_weights,
    named_weights,
)

__all__ = [
    "build_skeleton",
    "decoder_layers",
    "find_model",
    "load_config",
    "load_tokenizer",
    "load_weights",
    "named_weights",
]
