"""Trading compute for memory: recompute a layer's activations in backward instead of keeping them."""

from __future__ import annotations

from transformers import PreTrainedModel


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep only the input of every decoder layer; the rest is computed again in backward. Same numbers, less memory."""
    # transformers 5.23 renamed the method and deprecates the old name.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
