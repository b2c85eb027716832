"""A Hugging Face directory -> a model, built without memory and filled shard by shard.

    skeleton on the meta device  ->  (the caller shards it)  ->  every rank reads its own slices

A missing, unexpected or mis-shaped weight is an error that names it; transformers would fill it with random numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from sft.errors import InputError
from sft.model.attention import Choice, expect_calls, hide_lengths, refuse_other_mixers, register
from sft.model.names import named_weights, optional_names
from sft.model.pretrained import weight_files
from sft.model.vocabulary import fill_with_mean_rows, vocabulary_weights
from sft.parallel.shards import StoredTensors, local_box, local_part
from sft.parallel.world import log

MAX_NAMES_SHOWN = 8


def build_skeleton(
    config: PretrainedConfig, *, attention: Choice, dtype: torch.dtype, trust_remote_code: bool
) -> PreTrainedModel:
    """The model on the meta device: names, shapes and dtypes, no memory.

    Raises InputError where this architecture cannot train on rows of several samples, and `attention` is for those;
    of code that came with the model, its first forward may be what shows it.
    """
    register(attention)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention.implementation, dtype=dtype, trust_remote_code=trust_remote_code
        )
    if attention.packed:
        refuse_other_mixers(model)
        if attention.kernel != "sdpa":
            hide_lengths(model)
        if not type(model).__module__.startswith("transformers."):  # their own say what they do
            expect_calls(model, len(decoder_layers(model)))
    model.train()
    return model


def decoder_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The repeated blocks of the model, in order: what is sharded and checkpointed one at a time."""
    blocks = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in blocks]
    if not layers:
        raise InputError(f"{type(model).__name__} does not say which of its modules are decoder layers.")
    return layers


def positions_of(model: PreTrainedModel) -> int:
    """How many tokens the model can tell the places of; more than any text has where its config sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31


def load_weights(
    model: PreTrainedModel,
    directory: Path,
    device: torch.device,
    *,
    trust_remote_code: bool,
    offload: bool = False,
    grown_vocabulary: bool = False,
) -> None:
    """Give the (sharded) skeleton memory on `device` and fill it from `directory`, each rank with its own slices.

    offload: weights stay in CPU memory; only buffers, which are not sharded, are on the device
    grown_vocabulary: the skeleton has more rows per token than the files; new ones start as the mean of the others.
    """
    model.to_empty(device="cpu" if offload else device)
    model.tie_weights()
    _initialise_buffers(model)
    for module in model.modules() if offload else ():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    read_weights(model, directory, trust_remote_code=trust_remote_code, grown_vocabulary=grown_vocabulary)


def read_weights(
    model: PreTrainedModel, directory: Path, *, trust_remote_code: bool, grown_vocabulary: bool = False
) -> None:
    """Copy the weights of `directory` into a model that has memory. Raises InputError for those of another model."""
    stored = StoredTensors.of_whole_tensors(weight_files(directory))
    wanted = named_weights(model)
    grown = vocabulary_weights(model, wanted) if grown_vocabulary else {}
    problems = _disagreements(model, wanted, stored, grown)
    if not problems:
        stored.copy_into({name: tensor for name, tensor in wanted.items() if name not in grown})
        fill_with_mean_rows(grown, stored)
    elif grown:
        raise InputError(
            f"data.chat_template needs new tokens, and {type(model).__name__} cannot be given rows for them here "
            f"({'; '.join(problems)}); set data.chat_template=instruction_response, which needs none."
        )
    elif _renamed_by_transformers(model):
        log.info(
            "%s: transformers renames its weights while loading; every rank loads the whole model on the CPU first.",
            type(model).__name__,
        )
        _copy_from_whole_model(wanted, directory, trust_remote_code=trust_remote_code)
    else:
        raise InputError(f"the weights in {directory} do not fit {type(model).__name__}:\n  " + "\n  ".join(problems))


@torch.no_grad()
def _initialise_buffers(model: PreTrainedModel) -> None:
    """Compute the buffers that no file holds, such as rotary frequencies.

    They are poisoned first: a buffer that its architecture forgets to compute must not pass as garbage.
    """
    persistent = model.state_dict().keys()
    computed = {name: buffer for name, buffer in model.named_buffers() if name not in persistent}
    for buffer in computed.values():
        buffer.fill_(float("nan") if buffer.is_floating_point() else torch.iinfo(buffer.dtype).min)
    for module in model.modules():
        if any(True for _ in module.buffers(recurse=False)):
            for weight in module.parameters(recurse=False):  # it comes from the files, and is not to be drawn first
                weight._is_hf_initialized = True  # pyright: ignore[reportAttributeAccessIssue]
            model._init_weights(module)
    for name, buffer in computed.items():
        untouched = buffer.isnan() if buffer.is_floating_point() else buffer == torch.iinfo(buffer.dtype).min
        if untouched.any():
            raise InputError(
                f"{type(model).__name__} does not say how to compute its buffer {name!r}, so it cannot be built "
                "without loading a whole model; please report the architecture."
            )


def _disagreements(
    model: PreTrainedModel, wanted: dict[str, torch.Tensor], stored: StoredTensors, grown: dict[str, torch.Tensor]
) -> list[str]:
    """What is missing, unexpected or mis-shaped in the files, one line each; empty if they fit. Grown: in its rows."""
    optional = optional_names(model, stored.parts)
    missing = [name for name in wanted if name not in stored.parts]
    unexpected = [name for name in stored.parts if name not in wanted and name not in optional]
    misshaped = [
        f"{name}: the file has {list(stored.shape(name))}, the model {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in stored.parts and stored.shape(name)[name in grown :] != tuple(tensor.shape)[name in grown :]
    ]
    told = []
    for kind, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", misshaped)):
        if names:
            more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
            told.append(f"{kind}: {', '.join(names[:MAX_NAMES_SHOWN])}{more}")
    return told


def _renamed_by_transformers(model: PreTrainedModel) -> bool:
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    return bool(get_checkpoint_conversion_mapping(model.config.model_type))


@torch.no_grad()
def _copy_from_whole_model(wanted: dict[str, torch.Tensor], directory: Path, *, trust_remote_code: bool) -> None:
    whole, report = cast(
        tuple[PreTrainedModel, dict[str, Any]],
        AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=trust_remote_code, output_loading_info=True),
    )
    problems = [f"{kind}: {sorted(map(str, names))[:MAX_NAMES_SHOWN]}" for kind, names in report.items() if names]
    if problems:
        raise InputError(f"the weights in {directory} do not fit {type(whole).__name__}:\n  " + "\n  ".join(problems))
    source = named_weights(whole)
    for name, tensor in wanted.items():
        local_part(tensor).copy_(source[name][local_box(tensor).slices()])
