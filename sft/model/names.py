"""What a model directory calls the tensors of a model, whatever LoRA put around them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

import torch

from sft.errors import InputError

ADAPTER = re.compile(r"\.lora_(A|B|magnitude_vector)\.")  # parts of the modules that peft puts around `.base_layer`
AROUND = re.compile(r"(\.base_layer)+\.")  # several, where several parameters of a module have adapters


def named_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Everything a model directory stores: parameters (a tied one once) and persistent buffers, by its name there."""
    return {stored: tensor for name, tensor in _state(model).items() if (stored := stored_name(name))}


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return what training can change: parameters that are not frozen, and persistent buffers, by their name in the
    model.
    """
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    return {name: tensor for name, tensor in _state(model).items() if name not in frozen}


def changed_weights(model: torch.nn.Module) -> set[str]:
    """Return the names, in a model directory, of what training changes; buffers where nothing is frozen."""
    frozen = any(not weight.requires_grad for weight in model.parameters())
    return {
        stored
        for name, tensor in trained_weights(model).items()
        if (stored := stored_name(name)) and (tensor.requires_grad or not frozen)
    }


def has_adapters(model: torch.nn.Module) -> bool:
    """Whether this is a LoRA run; asks without importing peft."""
    return any(ADAPTER.search(name) for name, _ in model.named_parameters())


def aliases(model: torch.nn.Module) -> dict[str, str]:
    """Return the second names of tied weights, each with the name under which `named_weights` has the weight."""
    model.state_dict()  # see _state
    first: dict[int, str] = {}
    second = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if stored := stored_name(name):
            earlier = first.setdefault(id(weight), stored)
            if earlier != stored:
                second[stored] = earlier
    return second


def stored_name(name: str) -> str | None:
    """Return what a model directory calls a tensor of the model; None for an adapter's, which it does not hold."""
    return None if ADAPTER.search(name) else AROUND.sub(".", name)


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    # After a forward without backward, as in validation, FSDP2 leaves the root group gathered: named_parameters()
    # would give its plain, low-precision copies. state_dict() shards it again first.
    persistent = model.state_dict().keys()
    return dict(model.named_parameters()) | {n: b for n, b in model.named_buffers() if n in persistent}


def shown_name(name: str) -> str:
    """Return the name of a parameter without what peft and compilation put around its module; no two have the same.

    Of an adapter, `.base_layer` tells which of several parameters of a module it belongs to.
    """
    return (name if ADAPTER.search(name) else AROUND.sub(".", name)).replace("_orig_mod.", "")


def matching(knob: str, pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names in which a regular expression is found.

    Raises InputError, naming `knob` and parts of names that are near, where it is found in none.
    """
    names = list(names)
    if matched := [name for name in names if re.search(pattern, name)]:
        return matched
    pieces = sorted({piece for name in names for piece in name.split(".") if not piece.isdecimal()})
    asked = [part for part in re.split(r"\W+", pattern) if part]
    near = [piece for part in asked for piece in get_close_matches(part, pieces, n=2, cutoff=0.5)]
    raise InputError(
        f"{knob}={pattern} matches no parameter that trains; their names have parts such as "
        f"{', '.join(dict.fromkeys(near or pieces[:6]))}."
    )
