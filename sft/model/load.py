"""A Hugging Face directory -> a model, built without memory and filled shard by shard.

    skeleton on the meta device  ->  (the caller shards it)  ->  every rank reads its own slices

A missing, unexpected or mis-shaped weight is an error that names it; transformers would fill it with random numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import PretrainedConfig, PreTrainedModel

from sft.errors import InputError
from sft.model.attention import Choice, expect_calls, hide_lengths, register, separate_samples
from sft.model.conversion import Conversion, conversion_of, remember_conversions
from sft.model.dequantise import stored_weights
from sft.model.names import named_weights
from sft.model.precision import keep_in_fp32
from sft.model.quantised import box_of_whole, fill, is_packed, load_operators
from sft.model.text_part import attention_of_text, freeze_all_but_text, language_model, model_class
from sft.model.vocabulary import fill_with_mean_rows, vocabulary_weights
from sft.parallel.fsdp import class_name
from sft.parallel.shards import local_box, local_part


def build_skeleton(
    config: PretrainedConfig, *, attention: Choice, dtype: torch.dtype, trust_remote_code: bool
) -> PreTrainedModel:
    """Build the model on the meta device: names, shapes and dtypes, no memory but for its buffers.

    Raises InputError where this architecture cannot train on rows of several samples, and `attention` is for those;
    of code that came with the model, its first forward may be what shows it.
    """
    register(attention)
    model = _build(config, attention, dtype, trust_remote_code)
    keep_in_fp32(model)
    model.tie_weights()  # parameters were exchanged for others without memory, each by itself
    remember_conversions(model)
    freeze_all_but_text(model)
    if attention.packed:
        separate_samples(model)
        if attention.kernel not in ("sdpa", "blocked"):
            hide_lengths(model)
        theirs = type(model).__module__.startswith("transformers.")  # they say what they do
        says_so = theirs and language_model(model)._supports_attention_backend
        if not says_so and "row_of_mixers" not in vars(model):  # of those, prove_separation finds out
            expect_calls(model, len(decoder_layers(model)))
    if attention.kernel == "flex":
        from sft.model.attention.flex import make_masks_first  # costs a second of imports

        make_masks_first(model)
    model.train()
    return model


def _build(config: PretrainedConfig, attention: Choice, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    named = (config.architectures or [config.model_type])[0]
    try:
        with init_empty_weights(include_buffers=False):  # buffers hold what no file does, such as rotary frequencies
            return model_class(config).from_config(
                config,
                attn_implementation=attention_of_text(config, attention.implementation),
                dtype=dtype,
                trust_remote_code=trust_remote_code,
            )
    except Exception as error:  # an architecture may raise whatever it likes
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if "Unrecognized configuration class" in reason:
            reason = "it is no language model that transformers can train on text"
        raise InputError(f"model.partial_pretrain: transformers cannot build {named} ({reason}).") from error


def decoder_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the repeated blocks of the model, in order: what is sharded and checkpointed one at a time."""
    blocks = set(model._no_split_modules or ())
    inside = language_model(model)
    layers = [module for module in inside.modules() if class_name(module) in blocks]
    nested = {id(part) for layer in layers for part in layer.modules() if part is not layer}  # Mamba names mixers, too
    layers = [layer for layer in layers if id(layer) not in nested]
    layers = layers or _longest_list(inside)
    if not layers:
        raise InputError(f"{class_name(model)} does not say which of its modules are decoder layers.")
    return layers


def _longest_list(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the layers of an architecture that does not name them: its longest list of modules of one class."""
    lists = [list(module) for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max((each for each in lists if len({type(layer) for layer in each}) == 1), key=len, default=[])


def positions_of(model: PreTrainedModel) -> int:
    """How many tokens the model can tell the places of; more than any text has where its config sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31


def load_weights(
    model: PreTrainedModel,
    directory: Path,
    device: torch.device,
    *,
    offload: bool = False,
    grown_vocabulary: bool = False,
) -> None:
    """Give the (sharded) skeleton memory on `device` and fill it from `directory`, each rank with its own slices.

    offload: weights stay in CPU memory; only buffers, which are not sharded, are on the device
    grown_vocabulary: the skeleton has more rows per token than the files; new ones start as the mean of the others.
    """
    buffers = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if not buffer.is_meta
    ]
    model.to_empty(device="cpu" if offload else device)
    for module, name, buffer in buffers:
        setattr(module, name, buffer.to(device))
    model.tie_weights()
    read_weights(model, directory, grown_vocabulary=grown_vocabulary)


@torch.no_grad()
def read_weights(model: PreTrainedModel, directory: Path, *, grown_vocabulary: bool = False) -> None:
    """Copy the weights of `directory` into a model that has memory, one group of tensors at a time.

    A rank holds its own part and, of weights that are stored in another form, one of them as a whole. Raises
    InputError for the weights of another model.
    """
    stored = stored_weights(directory)
    wanted = named_weights(model)
    grown = vocabulary_weights(model, wanted) if grown_vocabulary else {}
    conversion = conversion_of(model, stored, grown=grown, inverse=False)
    refuse_misfits(model, directory, conversion, grown=bool(grown))
    plain = {next(iter(group.weights)): group.stored[0] for group in conversion.groups if group.converter is None}
    if packed := {name for name, weight in wanted.items() if is_packed(weight)}:
        load_operators()  # on every rank, whether it holds a part or not
    stored.copy_into({source: wanted[name] for name, source in plain.items() if name not in grown.keys() | packed})
    for name in sorted(packed & plain.keys()):
        if 0 not in (box := box_of_whole(wanted[name])).shape:  # else another rank holds all of it
            fill(wanted[name], stored.read_part(plain[name], box))
    fill_with_mean_rows({plain[name]: tensor for name, tensor in grown.items()}, stored)
    for group in conversion.groups:
        if group.converter is not None:
            for name, tensor in conversion.convert(group, stored.read).items():
                if name in packed:
                    fill(wanted[name], tensor[box_of_whole(wanted[name]).slices()])
                else:
                    local_part(wanted[name]).copy_(tensor[local_box(wanted[name]).slices()])


def refuse_misfits(model: PreTrainedModel, directory: Path, conversion: Conversion, *, grown: bool = False) -> None:
    """Raise InputError where the tensors of `directory` are not those of `model`."""
    if not conversion.problems:
        return
    if grown:
        raise InputError(
            f"data.chat_template needs new tokens, and {class_name(model)} cannot be given rows for them here "
            f"({'; '.join(conversion.problems)}); set data.chat_template=instruction_response, which needs none."
        )
    raise InputError(
        f"the weights in {directory} do not fit {class_name(model)}:\n  "
        + "\n  ".join([*conversion.problems, *_wrapped(stored_weights(directory).parts)])
    )


WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_forward_module.": "Lightning",
    "base_model.model.": "peft",
    "module.": "DataParallel or DeepSpeed",
}
"""What programs put around a model leaves in the names of its weights."""


def _wrapped(names: Iterable[str]) -> Iterator[str]:
    """Yield the way out where the names of the weights say that something stood around the model as it was saved."""
    names = list(names)
    for wrapper, who in WRAPPERS.items():
        if any(f".{wrapper}" in f".{name}" for name in names):
            way_out = (
                "merge the adapter (merge_and_unload) and save the model with save_pretrained()"
                if any(".lora_" in name or ".base_layer." in name for name in names)
                else f"save the model inside of it with save_pretrained(), or take {wrapper!r} out of the names"
            )
            yield f"the names hold {wrapper!r}, which {who} puts around a model; {way_out}."
            return
