"""A Hugging Face directory in, a trainable model out.

source = pretrained.find_model("Qwen/Qwen2.5-0.5B")          # local directory or hub snapshot
config = pretrained.load_config(source, ...)
attention = choose_attention(config, ...)                    # which kernel, and why
model = build_skeleton(config, attention=attention, ...)     # on the meta device: only its buffers have memory
lora.add_adapters(model, ...)                                # with LoRA only; imported then, peft is optional
...                                                          # the caller shards it
load_weights(model, source, device, ...)                     # every rank reads its own slices
lora.start_adapters(model, ...)
"""

from sft.model.listing import list_models_once

list_models_once()
