"""More tokens than the model has rows for: its embeddings and LM head grow, before anything is sharded."""

from __future__ import annotations

import torch
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedModel

from sft.parallel.shards import StoredTensors, local_box, local_part
from sft.parallel.world import log

MULTIPLE = 64  # GEMMs are slow for sizes that are no multiple of 8 elements, and shards want to be even
ROWS_AT_ONCE = 8192


def grow_vocabulary(config: PretrainedConfig, tokens: int) -> bool:
    """Make `config` hold at least `tokens` tokens, rounded up to 64; False where it did already."""
    text_config = config.get_text_config()
    rows = text_config.vocab_size
    if tokens <= rows:
        return False
    text_config.vocab_size = -(-tokens // MULTIPLE) * MULTIPLE
    log.info(
        "the vocabulary grows from %s to %s rows; new ones start as the mean of the others.",
        f"{rows:,}",
        f"{text_config.vocab_size:,}",
    )
    return True


def vocabulary_weights(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of `weights` that have one row per token: embeddings, and what the LM head has of its own."""
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    rows = [getattr(module, name, None) for module in modules for name in ("weight", "bias")]
    return {name: weight for name, weight in weights.items() if any(weight is row for row in rows)}


@torch.no_grad()
def fill_with_mean_rows(tensors: dict[str, torch.Tensor], stored: StoredTensors) -> None:
    """Fill this rank's rows from the files, and those that the files do not have with the mean of all they have."""
    for name, tensor in tensors.items():
        mine, target = local_box(tensor), local_part(tensor)
        (part,) = stored.parts[name]
        with safe_open(part.file, "pt") as file:
            rows, known = file.get_slice(part.key), part.box.shape[0]
            if both := mine.overlap(part.box):
                target[both.slices_within(mine)].copy_(rows[both.slices()])
            new = target[max(0, known - mine.offset[0]) :]
            if new.numel():
                starts = range(0, known, ROWS_AT_ONCE)
                total = torch.stack([rows[start : start + ROWS_AT_ONCE].double().sum(0) for start in starts]).sum(0)
                new.copy_((total / known)[mine.slices()[1:]])
