"""Prove that no token sees a later one, where a model brings an attention or masks of its own.

Everything relies on it: padding stands behind a sample, and a token that saw the next one would learn to copy.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from sft.errors import InputError
from sft.model.attention.mixers import Replay
from sft.model.text_part import language_model
from sft.parallel.fsdp import class_name, on_trial

TOKENS, KEPT = 12, 8
TOLERANCE = 1e-2
"""Of the spread of the logits: far above rounding in bf16, far below what another token changes."""


@torch.no_grad()
def prove_causality(model: PreTrainedModel, device: torch.device) -> None:
    """Raise InputError if later tokens change what `model` says of earlier ones. Every rank calls it.

    Models whose attention is one of ours pass untried, for it refuses what is not causal; so do packed hybrids, which
    prove_separation tries. transformers' own looks ahead where a model's masks say so (PaliGemma's, or Gemma 3 with
    use_bidirectional_attention).
    """
    ours = str(model.config.get_text_config()._attn_implementation).startswith(("packed_", "padded_"))
    if (ours and language_model(model)._supports_attention_backend) or "row_of_mixers" in vars(model):
        return
    ids = torch.arange(TOKENS, device=device)[None] % model.config.get_text_config().vocab_size
    changed = ids.clone()
    changed[:, KEPT:] = ids[:, : TOKENS - KEPT]
    positions = torch.arange(TOKENS, device=device)[None]

    def logits(ids: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, :KEPT].float()

    with on_trial(model), Replay(model) as replay:  # or rounding, in 16 bits, might send a token to another expert
        before = logits(ids)
        replay.others = positions[0] < KEPT
        after = logits(changed)
    if (before - after).abs().max() > TOLERANCE * before.std():
        name = class_name(model)
        raise InputError(
            f"{name} looks at tokens that come later, so it would see the answers that it is to learn, and the padding "
            "behind them; it is not trained here."
        )
