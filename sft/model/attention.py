"""Attention that never looks across samples, registered through transformers' public interface.

Shapes: T tokens of one packed row, S samples in it, H query heads, G key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, PretrainedConfig

from sft.errors import InputError

PACKED_SDPA = "packed_sdpa"
"""Name of the packed kernel for `attn_implementation`; runs on any device."""

PACKABLE_LAYERS = {"full_attention", "sliding_attention"}


def register_kernels() -> None:
    """Make the packed kernels known to transformers. They need no mask: they know where samples end.

    So there is none in AttentionMaskInterface: for a name that is there, transformers looks through the position_ids
    of every micro-batch for samples, and the host waits for the device.
    """
    AttentionInterface.register(PACKED_SDPA, _packed_attention)


def choose_attention(config: PretrainedConfig, *, packed: bool) -> str:
    """The attention implementation that is right for this model and layout.

    Raises InputError where packing would be wrong: attention logits soft-capped or with sinks, layers that mix tokens
    by other means than causal attention, or attention that cannot be exchanged.
    """
    # Code from a model directory (trust_remote_code) is in no mapping; it is taken to be an ordinary transformer.
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    soft_capped = getattr(config, "attn_logit_softcapping", None) is not None
    if not packed:
        return "sdpa" if getattr(model_class, "_supports_sdpa", True) and not soft_capped else "eager"
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if getattr(model_class, "_is_stateful", False) or kinds - PACKABLE_LAYERS:
        obstacle = "has layers that mix tokens in another way, which would leak from one sample into the next"
    elif not getattr(model_class, "_supports_attention_backend", True):
        obstacle = "does not let its attention be exchanged"
    elif soft_capped or config.model_type == "gpt_oss":
        obstacle = "soft-caps its attention or uses sinks, which the packed kernel cannot compute"
    else:
        return PACKED_SDPA
    raise InputError(f"use_remove_padding=true: {config.model_type} {obstacle}; set use_remove_padding=false.")


def _packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, T, D]
    key: torch.Tensor,  # [1, G, T, D]
    value: torch.Tensor,  # [1, G, T, D]
    attention_mask: None,
    *,
    sample_lengths: Sequence[int] | None = None,  # S of them, Σ = T
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention of every sample with itself; returns [1, T, H, D]."""
    if sample_lengths is None or attention_mask is not None or not getattr(module, "is_causal", True):
        raise InputError(
            f"use_remove_padding=true: {type(module).__name__} does not pass what packed attention needs; "
            "set use_remove_padding=false."
        )
    outputs = [
        _causal_sdpa(q, k, v, scale=scaling, dropout=dropout, window=sliding_window)
        for q, k, v in zip(*(x.split(list(sample_lengths), dim=2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _causal_sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float | None, dropout: float, window: int | None
) -> torch.Tensor:
    length = q.shape[2]
    if window is None or length <= window:
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, dropout_p=dropout, enable_gqa=q.shape[1] != k.shape[1]
        )
    # A token sees itself and the window - 1 tokens before it.
    ones = torch.ones(length, length, dtype=torch.bool, device=q.device)
    band = ones.tril().triu(1 - window)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=band, scale=scale, dropout_p=dropout, enable_gqa=q.shape[1] != k.shape[1]
    )
