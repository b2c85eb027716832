"""Copy a checkpoint's model out of a run, verified, to <run>/promoted/<id>, which no retention reaches.

sft-promote --checkpoints-jsonl run/checkpoints.jsonl [--step 400]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from sft.checkpoint import ledger
from sft.checkpoint.find import problems_of
from sft.checkpoint.manifest import SAFE_NAME, CheckpointError, read_manifest
from sft.checkpoint.tidy import PROMOTED
from sft.config.secrets import presentable
from sft.config.streams import steady_streams
from sft.errors import InputError
from sft.files import link_weights, sync_directory, sync_tree


def promote(
    ledger_file: Path, *, step: int | None = None, base_model: str | None = None, model_id: str | None = None
) -> Path:
    """Copy the newest model of a run (or that of `step`) to `<run>/promoted/<model_id>`; returns that directory.

    Weights are linked where the file system can. promotion.json says where they came from. Raises CheckpointError.

    base_model: overrides what the ledger says. model_id: defaults to <job>-step-N.
    """
    entry = choose(ledger_file, step)
    run_dir = ledger_file.parent
    model_id = model_id or f"{entry['source_job_id']}-{entry['name']}"
    if not SAFE_NAME.fullmatch(model_id) or model_id.startswith("."):
        raise CheckpointError(f"--output-model-id {model_id!r} may hold letters, digits, '.', '_' and '-' only.")
    target = run_dir / PROMOTED / model_id
    if target.exists():
        raise CheckpointError(f"{target} exists; choose another --output-model-id, or remove it first.")
    source = run_dir / entry["sampler_path"]
    checkpoint = source.parent
    if checkpoint.is_symlink() or checkpoint.resolve().parent != run_dir.resolve():
        raise CheckpointError(f"{checkpoint} leads out of the run, to {checkpoint.resolve()}. Choose another --step.")
    if problems := problems_of(checkpoint):
        raise CheckpointError(f"{checkpoint} is not what was written: {'; '.join(problems)}. Choose another --step.")
    promotion = {
        "model_id": model_id,
        "checkpoint": checkpoint.name,
        **{key: entry[key] for key in ("step", "data_consumed", "source_job_id")},
        "base_model": base_model or entry["base_model"],
        "promoted_at": datetime.now().astimezone().isoformat(timespec="seconds"),
        "files": _files_of_model(checkpoint, source.name),
    }
    aside = target.with_name(f".{model_id}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source, aside, copy_function=link_weights)
    (aside / "promotion.json").write_text(json.dumps(promotion, indent=2, ensure_ascii=False) + "\n")
    sync_tree(aside)
    aside.rename(target)
    sync_directory(target.parent)
    return target


def choose(ledger_file: Path, step: int | None) -> dict[str, Any]:
    """Return the ledger's newest entry with a model, or that of `step`. Raises CheckpointError if there is none."""
    if not ledger_file.is_file():
        raise CheckpointError(f"{ledger_file} does not exist; give a run's {ledger.LEDGER}.")
    entries, _ = ledger.read(ledger_file)
    run_dir = ledger_file.parent
    with_model = [entry for entry in entries if "sampler_path" in entry and (run_dir / entry["sampler_path"]).is_dir()]
    there = f"steps with a model: {', '.join(str(entry['step']) for entry in with_model) or 'none'}"
    way_out = "Only SAMPLER and BOTH have one: set trainer.save_hf_freq, or touch save_now while the run trains."
    if step is None:
        if not with_model:
            raise CheckpointError(f"{ledger_file} has {len(entries)} checkpoints and no model. {way_out}")
        return with_model[-1]
    for entry in with_model:
        if entry["step"] == step:
            return entry
    if any(entry["step"] == step and "sampler_path" not in entry for entry in entries):
        raise CheckpointError(f"step {step} is STATE, which holds no model ({there}). {way_out}")
    gone = "was deleted since" if any(entry["step"] == step for entry in entries) else "is not in the ledger"
    raise CheckpointError(f"step {step} {gone} ({there}).")


def _files_of_model(checkpoint: Path, model_dir: str) -> dict[str, Any]:
    files = read_manifest(checkpoint)["files"]
    return {name.removeprefix(f"{model_dir}/"): facts for name, facts in files.items() if name.startswith(model_dir)}


def main() -> None:
    """Read argv, promote, and print where."""
    steady_streams()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints-jsonl", type=Path, required=True, metavar="FILE", help="the run's ledger")
    parser.add_argument("--step", type=int, metavar="N", help="which checkpoint; default: the newest with a model")
    parser.add_argument("--model", metavar="NAME", help="base model to record; default: the one the ledger names")
    parser.add_argument("--output-model-id", metavar="ID", help="name of the copy; default: <job>-step-N")
    arguments = parser.parse_args()
    try:
        target = promote(
            arguments.checkpoints_jsonl,
            step=arguments.step,
            base_model=arguments.model,
            model_id=arguments.output_model_id,
        )
    except InputError as error:
        sys.exit(presentable(f"error: {error}"))
    print(presentable(target))


if __name__ == "__main__":
    main()
