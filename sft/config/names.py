"""Names that are not in the schema and still mean something: aliases and retired keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sft.config.problems import Report, choices, multiples_around, shown

ALIASES = {
    # verl's own second names
    "data.micro_batch_size": "data.micro_batch_size_per_gpu",
    "data.max_token_len_per_gpu": "data.max_tokens_per_gpu",
    "model.path": "model.partial_pretrain",
    "optim.lr_warmup_steps_ratio": "optim.warmup_steps_ratio",
    "optim.lr_scheduler_type": "optim.lr_scheduler",
    "optim.warmup_style": "optim.lr_scheduler",
    "trainer.dcp_save_interval": "trainer.save_freq",
    # what other trainers call it
    "dataset": "data.train_files",
    "batch_size": "data.train_batch_size",
    "max_seq_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "base_model": "model.partial_pretrain",
    "lora_r": "model.lora_rank",
    "gradient_checkpointing": "model.enable_gradient_checkpointing",
    "learning_rate": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "warmup_ratio": "optim.warmup_steps_ratio",
    "log_path": "trainer.default_local_dir",
    "epochs": "trainer.total_epochs",
    "sft_max_steps": "trainer.total_training_steps",
    "max_steps": "trainer.total_training_steps",
    "seed": "trainer.seed",
    "save_steps": "trainer.save_freq",
    "eval_steps": "trainer.test_freq",
    "early_stopping_patience": "trainer.early_stop_patience",
}

MICRO_BATCH = "data.micro_batch_size_per_gpu"
ACCUMULATION = ("grad_accum", "gradient_accumulation_steps")
"""Micro-batches per step: here the micro-batch is stated, and their number follows."""


class Retired(NamedTuple):
    accepts: Callable[[Any], bool]
    reason: str


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


QUANTISED = "what LoRA freezes is kept in bf16 and sharded over the ranks, not quantised"

RETIRED = {
    "data.pad_mode": Retired(lambda value: isinstance(value, str), "use_remove_padding decides how samples are padded"),
    "load_in_4bit": Retired(lambda value: value is False, QUANTISED),
    "load_in_8bit": Retired(lambda value: value is False, QUANTISED),
    "model.load_in_4bit": Retired(lambda value: value is False, QUANTISED),
    "model.load_in_8bit": Retired(lambda value: value is False, QUANTISED),
    "data.use_shm": Retired(lambda value: value is False, "files are read where they are"),
    "model.use_shm": Retired(lambda value: value is False, "each rank reads only its own slices of the weights"),
    "trainer.checkpoint.load_contents": Retired(lambda value: isinstance(value, list), "resuming restores everything"),
    "trainer.checkpoint.save_contents": Retired(lambda value: isinstance(value, list), "a checkpoint is always whole"),
    "trainer.default_hdfs_dir": Retired(lambda value: value is None, "checkpoints are written to default_local_dir"),
    "trainer.device": Retired(
        lambda value: value == "cuda", "GPUs are used where there are any (for the CPU: CUDA_VISIBLE_DEVICES='')"
    ),
    "trainer.n_gpus_per_node": Retired(_is_count, "torchrun --nproc-per-node decides"),
    "trainer.nnodes": Retired(_is_count, "torchrun --nnodes decides"),
}
"""Keys of others' documented commands without a meaning here: harmless values warn, others are errors."""


def settle_aliases(
    values: dict[str, Any], given: set[str], defaults: Callable[[], Mapping[str, Any]], dp: int, report: Report
) -> None:
    """Replace every alias in `values` by its key: one warning each, an error where two names disagree.

    The command line (the keys in `given`) beats YAML, whatever the names; between equals a default gives way.
    """
    names: dict[str, dict[str, str]] = {}  # key -> its aliases, each with what the user wrote
    for alias, key in ALIASES.items():
        if alias in values:
            names.setdefault(key, {})[alias] = f"{alias}={shown(values[alias])}"
    micro_batch = names.pop(MICRO_BATCH, {})
    for key, aliases in names.items():
        _settle(key, aliases, values, given, defaults, report)
    # Last, because accumulation needs the batch size, which may itself come by an alias.
    for name in ACCUMULATION:
        if name in values:
            written = f"{name}={shown(values[name])}"
            if _accumulation_to_micro_batch(values, name, dp, report):
                micro_batch[name] = written
    _settle(MICRO_BATCH, micro_batch, values, given, defaults, report)


def _settle(
    key: str,
    aliases: dict[str, str],
    values: dict[str, Any],
    given: set[str],
    defaults: Callable[[], Mapping[str, Any]],
    report: Report,
) -> None:
    if not aliases:
        return
    for alias, written in aliases.items():
        samples = shown(values.get("data.train_batch_size"))
        stays = f"; a step stays data.train_batch_size={samples} samples" if alias in ACCUMULATION else ""
        report.warn(f"{written} is read as {key}={shown(values[alias])}{stays}.")
    written_as = aliases | {key: f"{key}={shown(values.get(key))}"}
    rivals = [name for name in written_as if name in given and name in values]
    if not rivals:
        key_is_set = key in values and values[key] != defaults()[key]
        rivals = [*aliases, key] if key_is_set else [*aliases]
    for rival in rivals[1:]:
        if values[rival] != values[rivals[0]]:
            report.problem(
                f"{written_as[rivals[0]]} and {written_as[rival]} disagree (both set {key}); keep one, best {key}."
            )
    values[key] = values[rivals[0]]
    for alias in aliases:
        del values[alias]


def _accumulation_to_micro_batch(values: dict[str, Any], name: str, dp: int, report: Report) -> bool:
    """Turn accumulation steps into the micro-batch they imply; False where that is no whole number."""
    steps, samples = values[name], values.get("data.train_batch_size", 0)
    if not _is_count(steps):
        report.problem(f"{name}={shown(steps)} must be a whole number of at least 1.")
    elif _is_count(samples) and samples % (dp * steps):
        report.problem(
            f"{name}={steps} does not divide data.train_batch_size={samples} over dp={dp} (train_batch_size = dp x "
            f"micro-batch x {name}); try data.train_batch_size={choices(multiples_around(dp * steps, samples))}."
        )
    elif _is_count(samples):
        values[name] = samples // (dp * steps)
        return True
    del values[name]
    return False


def drop_retired(values: dict[str, Any], report: Report) -> None:
    """Take the retired keys out of `values`; whatever asks for something we would not do is an error."""
    for key, retired in RETIRED.items():
        if key not in values:
            continue
        value = values.pop(key)
        if retired.accepts(value):
            report.warn(f"{key}={shown(value)} has no effect: {retired.reason}.")
        else:
            report.problem(f"{key}={shown(value)} is not possible here: {retired.reason}; remove it.")
