"""This module names a run that the user has not named: its directory, and what trackers call it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.config.values import expand_home

ROOT = "runs"
GOES_ON_ANYWAY = re.compile(
    r"data\.(val_\w+|cache_dir|num_workers|micro_batch_size_per_gpu|max_tokens_per_gpu|balance_dp_token)"
    r"|model\.(fsdp_config\..+|strategy|attn_implementation|enable_gradient_checkpointing|gradient_checkpointing_kind"
    r"|compile|use_liger|loss_kernel|trust_remote_code|external_lib)"
    r"|trainer\.(?!(seed|init_from_checkpoint)$).+|ulysses_sequence_parallel_size|use_remove_padding"
)
"""Keys that may change and it is still the same run: how long it is, on how many ranks and how fast, what it writes.

All others make another one: what a checkpoint must share to be continued, and how the weights move."""
SAYS_NOTHING = re.compile(r"(train|training|data|dataset|sft|all|part|file)?[\d_.*-]*(\d+-of-\d+.*)?", re.IGNORECASE)
SUFFIXES = re.compile(r"(\.(parquet|jsonl?|csv|tsv|txt|arrow|gz|zst|bz2|xz))+$")
LONGEST = 48


def fill_names(values: dict[str, Any]) -> None:
    """Set the run directory, project and experiment in flat `values` where they are null."""
    directory = values.get("trainer.default_local_dir")
    if directory is None:
        directory = values["trainer.default_local_dir"] = f"{ROOT}/{name_of(values)}"
    if not isinstance(directory, str):
        return  # the type is reported elsewhere
    path = Path(expand_home(directory)).absolute()
    if values.get("trainer.project_name") is None:
        values["trainer.project_name"] = path.parent.name or "sft"
    if values.get("trainer.experiment_name") is None:
        values["trainer.experiment_name"] = path.name or "sft"


def name_of(values: Mapping[str, Any]) -> str:
    """Return `<model>-<data>-<hash>`: the same for the same model, data and settings, in any directory."""
    shared = {key: value for key, value in sorted(values.items()) if not GOES_ON_ANYWAY.fullmatch(key)}
    digest = hashlib.sha256(json.dumps(shared, sort_keys=True, default=str).encode()).hexdigest()[:8]
    told = (_leaf(values.get("model.partial_pretrain")), _data(values))
    return "-".join([*filter(None, told), digest])


def _data(values: Mapping[str, Any]) -> str:
    given = values.get("data.train_files") or values.get("data.mixture") or ()
    first, *others = given if isinstance(given, list) and given else [given]
    path = first.get("path", "") if isinstance(first, Mapping) else first
    return _leaf(path) + (f"+{len(others)}" if others else "")


def _leaf(path: Any) -> str:
    """Return the last part of a path or hub id that tells something, in letters that any file system takes."""
    if not isinstance(path, str):
        return ""
    parts = [SUFFIXES.sub("", part) for part in re.split(r"[/:]", path)]
    telling = [part for part in parts if part not in ("", "~") and not SAYS_NOTHING.fullmatch(part)]
    return re.sub(r"[^\w.-]+", "_", (telling or [""])[-1].lower()).strip("_.-")[:LONGEST]
