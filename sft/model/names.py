"""What a model directory calls the tensors of a model, whatever LoRA put around them."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

ADAPTER = re.compile(r"\.lora_(A|B|magnitude_vector)\.")  # parts of the modules that peft puts around `.base_layer`


def named_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Everything a model directory stores: parameters (a tied one once) and persistent buffers, by its name there."""
    return {stored: tensor for name, tensor in _state(model).items() if (stored := stored_name(name))}


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What training can change: parameters that are not frozen, and persistent buffers, by their name in the model."""
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    return {name: tensor for name, tensor in _state(model).items() if name not in frozen}


def has_adapters(model: torch.nn.Module) -> bool:
    """Whether this is a LoRA run; asks without importing peft."""
    return any(ADAPTER.search(name) for name, _ in model.named_parameters())


def optional_names(model: PreTrainedModel, names: Iterable[str]) -> set[str]:
    """Those of `names` that files may hold and need not: second names of tied weights, and what the class ignores."""
    aliases = {stored_name(name) for name in model.state_dict()} - set(named_weights(model))
    ignored = re.compile("|".join(model._keys_to_ignore_on_load_unexpected or ["(?!)"]))
    return {name for name in names if name in aliases or ignored.search(name)}


def stored_name(name: str) -> str | None:
    """What a model directory calls a tensor of the model; None for an adapter's, which it does not hold."""
    return None if ADAPTER.search(name) else name.replace(".base_layer.", ".")


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    # After a forward without backward, as in validation, FSDP2 leaves the root group gathered: named_parameters()
    # would give its plain, low-precision copies. state_dict() shards it again first.
    persistent = model.state_dict().keys()
    return dict(model.named_parameters()) | {n: b for n, b in model.named_buffers() if n in persistent}
