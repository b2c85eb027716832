"""Which modules of a model get adapters, and which train as a whole: what the user wrote -> full names, or an error."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Sequence
from difflib import get_close_matches
from functools import cache

import torch
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sft.errors import InputError
from sft.model.names import stored_name
from sft.model.source_code import is_read_raw
from sft.model.text_part import parts_beside_text
from sft.parallel.fsdp import class_name
from sft.parallel.world import log

LINEAR = (torch.nn.Linear, Conv1D)
GATE = re.compile(r"gate|router|.*_(gate|router)")
"""What models call the modules that decide which experts a token meets, and how much they count."""
MAX_NAMES_SHOWN = 8


def find_targets(model: PreTrainedModel, targets: str | Sequence[str]) -> list[str]:
    """Return the names of the modules that `targets` means. Raises InputError if one of them cannot have an adapter."""
    head = model.get_output_embeddings()
    beside = tuple(f"{name}." for name in parts_beside_text(model))
    modules = {name: module for name, module in model.named_modules() if name and not f"{name}.".startswith(beside)}
    linear = [name for name, module in modules.items() if _is_plain(module)]
    shared = _sharing_weights(model)
    if targets == "all-linear":
        skipped = {name: reason for name in modules if (reason := _why_not(model, name, shared))}
        for reason in sorted(set(skipped.values())):
            log.info("LoRA: %s %s; skipped", few([name for name in skipped if skipped[name] == reason]), reason)
        usual = [name for name in linear if name not in skipped and modules[name] is not head]
        found = [name for name in usual if not is_expert_to_peft(model, name)]
        if not found:
            raise InputError(f"model.target_modules=all-linear: {class_name(model)} has no module to adapt.")
        return sorted(found)
    one = isinstance(targets, str)
    patterns = {targets: targets} if one else {target: rf"(.*\.)?{re.escape(target)}" for target in targets}
    found = []
    for target, pattern in patterns.items():
        hits = [name for name in modules if re.fullmatch(pattern, name)]
        if not hits and isinstance(targets, str):
            raise InputError(
                f"model.target_modules={targets}: no module has a full name, such as {linear[0]}, that matches this "
                f"regular expression. Names are given as a list: model.target_modules=[{targets}]."
            )
        if not hits:
            raise InputError(f"model.target_modules: {target!r} is no module of the model; {_closest(target, linear)}")
        for name in hits:
            if name not in linear:
                raise InputError(
                    f"model.target_modules: {target!r} means {name} ({type(modules[name]).__name__}), but only linear "
                    f"modules get adapters: {few(_leaves(linear))}."
                )
            if (reason := _why_not(model, name, shared)) and "router" not in reason:
                raise InputError(
                    f"model.target_modules: {target!r} means {name}, which {reason}, so an adapter of it would not "
                    "count as one of this module; leave it out."
                )
            if is_expert_to_peft(model, name):
                raise InputError(
                    f"model.target_modules: peft takes every {target!r} of {class_name(model)} for a part of its "
                    "experts, which are no linear modules and get no adapters; leave it out."
                )
            if modules[name] is head and model.config.tie_word_embeddings:
                raise InputError(
                    f"model.target_modules: {name} shares its weight with the embeddings, which an adapter merged into "
                    "it would change as well; leave it out."
                )
        found += hits
    return sorted(set(found))


def parameters_of_experts(model: PreTrainedModel) -> list[str]:
    """Return the names, in a model directory, of the parameters that hold a matrix for each of several experts."""
    beside = tuple(f"{name}." for name in parts_beside_text(model))
    return [
        str(stored_name(name))
        for name, weight in model.named_parameters()
        if weight.ndim == 3 and min(weight.shape[:2]) > 1 and not name.startswith(beside)
        # torch's own modules have weights of three dims for other reasons
        if not type(model.get_submodule(name.rpartition(".")[0])).__module__.startswith("torch.")
    ]


def find_parameters(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """Return the full names of the parameters of experts that `targets` mean, each a full name or the end of one.

    Raises InputError for a target that means none, or another parameter as well.
    """
    experts, found = parameters_of_experts(model), set()
    for target in targets:
        hits = [name for name, _ in model.named_parameters() if name == target or name.endswith(f".{target}")]
        wrong = [name for name in hits if name not in experts]
        if wrong or not hits:
            means = f"means {few(wrong)}, which is no parameter of experts" if wrong else "is no parameter of the model"
            kinds = sorted({".".join(name.split(".")[-2:]) for name in experts})
            there = f"there are {few(kinds)}" if kinds else f"{class_name(model)} has none of experts, leave it out"
            raise InputError(f"model.target_parameters: {target!r} {means}; {there}.")
        found |= set(hits)
    return sorted(found)


def plain_linear(model: PreTrainedModel) -> list[str]:
    """Return the full names of all linear modules that are no routers and whose weights nobody else reads."""
    named = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    shared = _sharing_weights(model)
    return [name for name in named if not _why_not(model, name, shared) and not GATE.fullmatch(name.rpartition(".")[2])]


def _sharing_weights(model: PreTrainedModel) -> set[str]:
    """Return the linear modules whose weight is that of another linear module, too (layers of Zamba)."""
    linear = {name: module for name, module in model.named_modules() if isinstance(module, LINEAR)}
    owners = Counter(id(module.weight) for module in linear.values())
    return {name for name, module in linear.items() if owners[id(module.weight)] > 1}


def _why_not(model: PreTrainedModel, name: str, shared: Container[str]) -> str:
    """Return why a linear module should have no adapter; empty if nothing speaks against it."""
    module, (parent_name, _, leaf) = model.get_submodule(name), name.rpartition(".")
    if not isinstance(module, LINEAR):
        return ""
    if not _is_plain(module):
        return f"is no plain linear layer but a {class_name(module)}"
    parent = model.get_submodule(parent_name)
    if leaf in ("gate", "router") and any("experts" in sibling for sibling, _ in parent.named_children()):
        return "is a router"
    if name in shared:
        return "has its weight in common with another layer"
    return "has its weight read by what is around it" if is_read_raw(model, name) else ""


def _is_plain(module: torch.nn.Module) -> bool:
    """Return True for a linear layer and for a subclass that computes the same, which many routers do not."""
    return type(module) in LINEAR or (isinstance(module, torch.nn.Linear) and _computes_as_linear(type(module)))


@cache
def _computes_as_linear(kind: type[torch.nn.Linear]) -> bool:
    probe = torch.nn.Linear(3, 2)
    inputs = torch.arange(6.0).reshape(1, 2, 3)
    expected = probe(inputs)
    probe.__class__ = kind
    try:
        found = probe(inputs)
    except Exception:  # it needs what only its own __init__ makes
        return False
    return isinstance(found, torch.Tensor) and torch.allclose(found, expected)


def is_expert_to_peft(model: PreTrainedModel, name: str) -> bool:
    """Return True if peft takes this name for the experts of transformers 4, even where it is a dense layer."""
    leaf = name.rpartition(".")[2]
    probe = LoraConfig(target_modules=[leaf])
    try:
        convert_peft_config_for_transformers(probe, model=model, conversions=None)
    except ValueError:  # one of two names that are fused today
        return True
    return leaf not in (probe.target_modules or ())


def find_module_to_save(model: PreTrainedModel, target: str) -> list[str]:
    """Return the full names of the modules called `target`. Raises InputError for none, and for a tied weight."""
    hits = [name for name, _ in model.named_modules() if name == target or name.endswith(f".{target}")]
    if not hits:
        names = [name for name, module in model.named_modules() if any(True for _ in module.parameters())]
        raise InputError(f"model.modules_to_save: {target!r} is no module of the model; {_closest(target, names)}")
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if model.config.tie_word_embeddings and any(model.get_submodule(name) in ends for name in hits):
        raise InputError(
            f"model.modules_to_save: {target!r} shares its weight with the other end of the model (tied embeddings), "
            "which an adapter file cannot say; leave it out, or untie them in the model first."
        )
    return hits


def _closest(target: str, names: Sequence[str]) -> str:
    close = get_close_matches(target.rpartition(".")[2], _leaves(names), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {few(_leaves(names))}."


def _leaves(names: Sequence[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names} - {""})


def few(names: Sequence[str]) -> str:
    """Return the first of many names, for a message."""
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return ", ".join(names[:MAX_NAMES_SHOWN]) + more
