"""Keep checkpoints.jsonl: what a run has committed, one line each, appended after the commit.

    {"name": "step-4", "step": 4, "data_consumed": 32, "state_path": "global_step_4/state",
     "sampler_path": "global_step_4/huggingface", "source_job_id": "gsm8k", "base_model": "Qwen/Qwen2.5-0.5B"}

Paths are relative to the ledger, so that a run directory can be moved. A kind without state (SAMPLER) or without a
model (STATE) has no such key. data_consumed counts samples over all epochs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from sft.checkpoint.manifest import (
    MODEL_DIR,
    STATE_DIR,
    CheckpointError,
    has_model,
    has_state,
    read_manifest,
)
from sft.files import RunDir, checkpoint_name
from sft.parallel.world import log

LEDGER = "checkpoints.jsonl"
KEYS = ("name", "step", "data_consumed", "state_path", "sampler_path", "source_job_id", "base_model")

REQUIRED = {"name": str, "step": int, "data_consumed": int, "source_job_id": str, "base_model": str}

Kind = Literal["STATE", "SAMPLER", "BOTH"]
"""STATE can be resumed, SAMPLER is a model to load, BOTH is both."""

KINDS: tuple[Kind, ...] = ("STATE", "SAMPLER", "BOTH")


def kind_of(manifest: dict[str, Any]) -> Kind:
    return "BOTH" if has_state(manifest) and has_model(manifest) else "STATE" if has_state(manifest) else "SAMPLER"


def entry_of(checkpoint: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the ledger line of a committed checkpoint; its keys in the documented order."""
    step = manifest["step"]
    entry = {
        "name": f"step-{step}",
        "step": step,
        "data_consumed": manifest["state"]["samples_seen"],
        "state_path": f"{checkpoint.name}/{STATE_DIR}" if has_state(manifest) else None,
        "sampler_path": f"{checkpoint.name}/{MODEL_DIR}" if has_model(manifest) else None,
        "source_job_id": manifest["job_id"],
        "base_model": manifest["base_model"],
    }
    return {key: entry[key] for key in KEYS if entry[key] is not None}


def append(run_dir: Path, entry: dict[str, Any]) -> None:
    """Add a line, on the disk when this returns. A torn last line stays alone on its line.

    Where a directory has the ledger's name, the checkpoint counts without its line.
    """
    if (run_dir / LEDGER).is_dir():
        log.warning("%s is a directory: no line is written for %s", run_dir / LEDGER, entry["name"])
        return
    with (run_dir / LEDGER).open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Read a ledger: (entries, newest last; what is wrong with the other lines).

    Of several lines with one name the last counts: that step was saved again, as another kind or after going back.
    """
    entries: dict[str, dict[str, Any]] = {}
    problems = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        return [], [f"{path.name} cannot be read ({error.strerror})"]
    for number, line in enumerate(lines, start=1):
        if (entry := _parsed(line)) is not None:
            entries.pop(entry["name"], None)
            entries[entry["name"]] = entry
        elif line.strip():
            problems.append(f"{path.name}:{number} is no entry: {line[:80].decode(errors='replace')!r}")
    return sorted(entries.values(), key=lambda entry: entry["step"]), problems


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return the entry of a line, or None for a line that `entry_of` cannot have written: others may write here too."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or any(not isinstance(entry.get(key), kind) for key, kind in REQUIRED.items()):
        return None
    if any(isinstance(entry[key], bool) or entry[key] < 0 for key in ("step", "data_consumed")):
        return None
    places = {"state_path": STATE_DIR, "sampler_path": MODEL_DIR}
    checkpoint = checkpoint_name(entry["step"])
    if entry["name"] != f"step-{entry['step']}" or not entry.keys() & places.keys():
        return None
    # Relative, inside, of this very step: nothing else is ever followed.
    ours = all(entry[key] == f"{checkpoint}/{inside}" for key, inside in places.items() if key in entry)
    return {key: entry[key] for key in KEYS if key in entry} if ours else None


def reconcile(run_dir: Path) -> None:
    """Add the line of every committed checkpoint that lacks one: a run may be killed between commit and line."""
    ledger = run_dir / LEDGER
    entries, problems = read(ledger) if ledger.exists() else ([], [])
    for problem in problems:
        log.warning("%s; passed over", problem)
    for checkpoint in RunDir(run_dir).checkpoints():
        try:
            entry = entry_of(checkpoint, read_manifest(checkpoint))
        except (CheckpointError, KeyError):
            continue  # damaged: resuming names it
        if entry not in entries:
            append(run_dir, entry)
