"""The language model inside a checkpoint that also sees or hears: it trains on text, the rest stays as it is.

Such a directory is opened by the class that its config.json names, so that every weight keeps its name. What lies
outside the language model is frozen, runs in no forward and is exported bit for bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

AUTO_CLASSES: tuple[tuple[Any, Any], ...] = (
    (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
    (AutoModelForMultimodalLM, MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES),
)
TOKEN_KINDS = ("token_type_ids", "mm_token_type_ids")  # what tells some models which tokens are images: 0 is text


def model_class(config: PretrainedConfig) -> Any:
    """Return transformers' auto class that opens the architecture which `config` names."""
    named, kind = (config.architectures or [None])[0], config.model_type
    exactly = [auto for auto, classes in AUTO_CLASSES if named and classes.get(kind) == named]
    any_of_kind = [auto for auto, classes in AUTO_CLASSES if kind in classes]
    return (exactly + any_of_kind + [AutoModelForCausalLM])[0]  # the last is for code from a model directory


def attention_of_text(config: PretrainedConfig, implementation: str) -> str | dict[str, str]:
    """Return how to ask transformers for an attention of the language model, and its own for the rest."""
    text = config.get_text_config()
    if text is config:
        return implementation
    inner = [name for name in config.sub_configs if getattr(config, name, None) is text]
    return {"": implementation, **dict.fromkeys(inner, implementation)}


def language_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return the part of `model` that reads text: all of it, where it reads nothing else."""
    return model if model.config.get_text_config() is model.config else model.get_decoder()


def freeze_all_but_text(model: PreTrainedModel) -> None:
    """Freeze what lies outside the language model of a `model` that has such parts; no other model is changed."""
    if model.config.get_text_config() is model.config:
        return
    text = {id(weight) for part in _text_parts(model) for weight in part.parameters()}
    for weight in model.parameters():
        weight.requires_grad_(id(weight) in text)
    if asked := [name for name in TOKEN_KINDS if name in inspect.signature(model.forward).parameters]:
        _say_that_all_is_text(model, asked)


def _say_that_all_is_text(model: PreTrainedModel, names: list[str]) -> None:
    def add(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {name: torch.zeros_like(kwargs["input_ids"]) for name in names}

    model.register_forward_pre_hook(add, with_kwargs=True)


def parts_beside_text(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """Return the largest modules outside the language model, by name: what no forward on text calls."""
    if model.config.get_text_config() is model.config:
        return {}
    text = set(map(id, _text_parts(model)))

    def beside(module: torch.nn.Module, name: str) -> Iterator[tuple[str, torch.nn.Module]]:
        if id(module) in text:
            return
        if text.isdisjoint(map(id, module.modules())):
            if any(True for _ in module.parameters()):
                yield name, module
            return
        for child_name, child in module.named_children():
            yield from beside(child, f"{name}.{child_name}".lstrip("."))

    return dict(beside(model, ""))


def _text_parts(model: PreTrainedModel) -> list[torch.nn.Module]:
    parts = [model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()]
    return [part for part in parts if part is not None]
