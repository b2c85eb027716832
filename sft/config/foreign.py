"""Read foreign.yaml, which says what the names of other trainers mean here. Add those whose value needs code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import yaml

from sft.config.schema import OptimConfig


class Reading(NamedTuple):
    """Say which of our keys are set by a key of another trainer with its value."""

    sets: Mapping[str, Any]  # our keys; empty: the value asks for nothing
    fills: Mapping[str, Any] = {}  # further keys of ours, where the user gave them no value


class Foreign(NamedTuple):
    """A foreign key: how its value is read, and the sentence that explains it."""

    reads: Callable[[Any], Reading | None]  # None: the value asks for something that is not offered
    reason: str = ""


NOTHING = Reading({})
OFF = {"", "no", "none", "null", "false", "off", "disabled"}
THINKING = "data.apply_chat_template_kwargs"
RESUMES = "the same command resumes by itself; trainer.resume_mode=disable begins anew"
TODAYS_DEFAULTS: dict[str, Any] = {
    "optim.lr": 1e-3,
    "optim.lr_scheduler": "constant",
    "optim.warmup_steps_ratio": 0.0,
    "optim.betas": [0.9, 0.999],
    "use_remove_padding": True,
    "data.max_tokens_per_gpu": 8192,
    "model.enable_gradient_checkpointing": True,
}
"""What today's verl takes where its command says nothing, as far as it differs from conf/."""


def is_count(value: Any) -> bool:
    """Return True for a whole number of at least 1."""
    return type(value) is int and value >= 1


def is_off(value: Any) -> bool:
    """Return True for the values by which trainers say that something is not wanted."""
    return value in (None, False, 0, -1, [], {}) or (isinstance(value, str) and value.lower() in OFF)


def only(accepts: Callable[[Any], bool], reason: str) -> Foreign:
    """Describe a key that has no effect here, and may hold only what `accepts` returns True for."""
    return Foreign(lambda value: NOTHING if accepts(value) else None, reason)


def choice(readings: Mapping[Any, Mapping[str, Any]], reason: str) -> Foreign:
    """Describe a key with few values, each of which is read as some keys of ours. Text is compared in lower case."""

    def reads(value: Any) -> Reading | None:
        name = value.lower() if isinstance(value, str) else value
        known = isinstance(name, str | int | float | None) and name in readings
        return Reading(readings[name]) if known else NOTHING if value is None else None

    return Foreign(reads, reason)


def switch(sets: Mapping[str, Any], reason: str) -> Foreign:
    """Describe a key whose `true` sets keys of ours."""
    return Foreign(lambda value: Reading(sets) if value is True else NOTHING if is_off(value) else None, reason)


def as_key(key: str, reason: str, convert: Callable[[Any], Any] = lambda value: value) -> Foreign:
    """Describe a key that is one of ours, with another notation for its value. `convert` returns None for no value."""

    def reads(value: Any) -> Reading | None:
        if value is None:
            return NOTHING
        converted = convert(value)
        return None if converted is None else Reading({key: converted})

    return Foreign(reads, reason)


def _of_file(entry: Mapping[str, Any]) -> Iterator[tuple[str, Foreign]]:
    """Yield the names of an entry of foreign.yaml; its head says what the parts mean."""
    reason = entry["reason"]
    described = {
        **{names: choice(readings, reason) for names, readings in entry.get("choices", {}).items()},
        **{names: switch(sets, reason) for names, sets in entry.get("switches", {}).items()},
        **{names: as_key(key, reason) for names, key in entry.get("same", {}).items()},
        **{names: only((None, *values).__contains__, reason) for names, values in entry.get("only", {}).items()},
        entry.get("refused", ""): only(is_off, reason),
        entry.get("ignored", ""): only(lambda value: True, reason),
    }
    for names, foreign in described.items():
        yield from dict.fromkeys(names.split(), foreign).items()


def _files(value: Any) -> list[str] | None:
    """Return the paths of axolotl's list of data sets, whose entries may say what is recognised here by itself."""
    entries = value if isinstance(value, list) else [value]
    paths = [entry.get("path") if isinstance(entry, Mapping) else entry for entry in entries]
    told = {key for entry in entries if isinstance(entry, Mapping) for key in entry} - {"path", "type", "ds_type"}
    texts = [path for path in paths if isinstance(path, str)]
    return None if told or len(texts) < len(paths) else texts


def _held_out(value: Any) -> Reading | None:
    if isinstance(value, int | float) and value > 0 and not isinstance(value, bool):
        return Reading({"data.val_fraction": value})
    return NOTHING if is_off(value) else None


def _warmup(value: Any) -> Reading | None:
    if type(value) is int:
        return Reading({"optim.warmup_steps": value})
    if isinstance(value, float):
        return Reading({"optim.warmup_steps_ratio": value})
    return NOTHING if value is None else None


def _adam(beta: int) -> Foreign:
    """Our betas are one key; what is wanted otherwise is said by it."""
    ours, theirs = (0.9, 0.95)[beta], (0.9, 0.999)[beta]
    way_out = f"set both at once, for example optim.betas=[0.9,0.999] ({theirs} is the other trainers' default)"
    return only((None, ours).__contains__, way_out)


def _positive(key: str, reason: str) -> Foreign:
    """Describe a number that counts only if it is above 0."""

    def reads(value: Any) -> Reading | None:
        if type(value) is not int:
            return NOTHING if value is None else None
        return Reading({key: value}) if value > 0 else NOTHING

    return Foreign(reads, reason)


def _sp(value: Any) -> Reading:
    splits_rows = type(value) is int and value > 1
    return Reading({"ulysses_sequence_parallel_size": value}, {"use_remove_padding": True} if splits_rows else {})


def _dynamic(value: Any) -> Reading | None:
    budget = "data.max_tokens_per_gpu"
    return (
        Reading({}, {budget: TODAYS_DEFAULTS[budget]}) if value is True else NOTHING if value in (None, False) else None
    )


def _resume(value: Any) -> Reading:
    return Reading({"trainer.resume_from_path": value}, {"trainer.resume_mode": "resume_path"})


def _thinks(value: Any) -> Reading | None:
    if isinstance(value, bool):
        return Reading({THINKING: {"enable_thinking": value}})
    return NOTHING if value in (None, "none") else None


TABLE = yaml.load(
    Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
)

ALIASES: dict[str, str] = TABLE["aliases"]
"""Another name -> the key that takes its value as it is."""

FOREIGN: dict[str, Foreign] = {
    # verl
    "data.messages_key": Foreign(
        lambda value: Reading({"data.multiturn.messages_key": value}, {"data.multiturn.enable": True})
    ),
    "data.use_dynamic_bsz": Foreign(_dynamic, "data.max_tokens_per_gpu=null packs by samples, a number by tokens"),
    "data.pad_mode": only(
        lambda value: value is None or isinstance(value, str), "use_remove_padding decides how samples are padded"
    ),
    "data.enable_thinking_default": Foreign(_thinks, f"{THINKING}={{enable_thinking: false}} sets it for all rows"),
    "engine.ulysses_sequence_parallel_size": Foreign(_sp),
    "optim.lr_warmup_steps": _positive("optim.warmup_steps", "optim.warmup_steps_ratio says how long the warm-up is"),
    "optim.total_training_steps": _positive("trainer.total_training_steps", "the trainer's length of the run counts"),
    "trainer.resume_path": Foreign(
        lambda value: NOTHING if value is None else _resume(value), "trainer.resume_mode says where a run begins"
    ),
    **{
        f"{prefix}checkpoint.{part}_contents": only(lambda value: isinstance(value, list | None), reason)
        for part, reason in {"save": "a checkpoint is always whole", "load": "resuming restores everything"}.items()
        for prefix in ("", "trainer.")
    },
    "trainer.n_gpus_per_node": only(is_count, "torchrun --nproc-per-node decides"),
    "trainer.nnodes": only(is_count, "torchrun --nnodes decides"),
    # TRL, axolotl, LLaMA-Factory
    **{
        name: as_key(key, "data.mixture takes entries with keys of their own (docs/data.md)", _files)
        for name, key in {"datasets": "data.train_files", "test_datasets": "data.val_files"}.items()
    },
    **dict.fromkeys(("val_set_size", "val_size"), Foreign(_held_out, "data.val_fraction=0.05 holds rows out")),
    "warmup_steps": Foreign(_warmup, "optim.warmup_steps is a number of steps, optim.warmup_steps_ratio a part"),
    "resume_from_checkpoint": Foreign(
        lambda value: NOTHING if isinstance(value, bool | None) else _resume(value), RESUMES
    ),
    "adam_beta1": _adam(0),
    "adam_beta2": _adam(1),
    "optimizer": choice(
        {name: {"optim.name": name} for name in get_args(get_type_hints(OptimConfig)["name"])}
        | {"adamw_bnb_8bit": {"optim.name": "adamw_8bit"}}
        | {name: {} for name in ("none", "adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf")},
        "optim.name chooses the optimizer, optim.groups a rate for some parameters",
    ),
    "enable_thinking": as_key(THINKING, f"{THINKING} says it", lambda value: {"enable_thinking": value}),
    "generate_samples": as_key(
        "trainer.generate_samples",
        "trainer.generate_freq says how often answers are shown",
        lambda value: value if type(value) is int else None,
    ),
    **{name: foreign for entry in TABLE["keys"] for name, foreign in _of_file(entry)},
}
"""Keys of other trainers whose value is translated, has no effect, or is refused with a reason."""

GROUPS_OF_VERL = {"engine=fsdp", "engine=fsdp2", "optim=fsdp", "model=hf_model"}
GROUPS = {*GROUPS_OF_VERL, "optim=adamw_torch", "optim=adamw_torch_fused", "optim=adamw_hf"}
"""Group files of today's verl, and values of transformers' `optim`, that mean what is chosen here anyway."""

PER_DEVICE = ("per_device_train_batch_size", "micro_batch_size")
"""Samples of one rank's micro-batch. With the accumulation and the number of ranks they make the samples of a step."""
LIMITS_OF_A_TURN = ("data.max_prompt_length", "data.max_response_length")
"""Of verl. Together they are data.max_length."""
SHARD_GROUP = "engine.fsdp_size"
"""Of verl: ranks that share the weights; here their number follows from model.fsdp_config.dp_replicate."""
