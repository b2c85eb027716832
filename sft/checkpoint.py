"""A checkpoint exists or it does not.

    <run>/global_step_N/
        state/rank_00000.safetensors   this rank's part of trained weights and their moments; tensors only, no pickle
        state/rng_00000.safetensors    this rank's random state
        manifest.json                  step, counters, world, fingerprint, size and sha256 of every file

All ranks write into a hidden directory; rank 0 adds the manifest last, then renames. What is found under its
final name was complete when it was written, and the hashes tell whether it still is.

Why not torch.distributed.checkpoint: its metadata is a pickle, and it loads flipped bits without a word. Boxes in
safetensors files need neither, and reading a model uses the same code (sft/shards.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sft.distributed import World, log, on_every_rank, on_main_rank
from sft.errors import InputError
from sft.model.load import trained_weights
from sft.shards import StoredTensors, save_local_parts
from sft.types import TrainState

MOMENTS = ("exp_avg", "exp_avg_sq")
MANIFEST = "manifest.json"


class CheckpointError(InputError):
    """A checkpoint cannot be used; the message says which, why, and the way out."""


def save(
    run_dir: Path,
    state: TrainState,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    world: World,
    fingerprint: dict[str, Any],
) -> Path:
    """Commit `global_step_N`, N = state.step. Every rank calls it; all return, or all raise InputError.

    A checkpoint that is already there is the one this run continued from, and verified then: it is left alone.
    """
    final = run_dir / f"global_step_{state.step}"
    aside = run_dir / f".global_step_{state.step}.partial"
    if on_main_rank(f"looking at {final}", final.is_dir):
        return final

    def write_mine() -> dict[str, dict[str, Any]]:
        tensors, rng = _file_names(world.rank)
        save_local_parts(_state_tensors(model, optimizer), aside / tensors)
        save_file(_random_state(world), aside / rng)
        return {name: _describe(aside / name, durable=True) for name in (tensors, rng)}

    def commit(files: dict[str, dict[str, Any]]) -> None:
        manifest = {
            "step": state.step,
            "state": asdict(state),
            "world_size": world.size,
            "fingerprint": fingerprint,
            "files": files,
        }
        _write_durably(aside / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        _sync_directory(aside / "state")
        _sync_directory(aside)
        aside.rename(final)
        _sync_directory(run_dir)

    phase = f"saving {final}"
    on_main_rank(phase, lambda: _fresh_directory(aside / "state", within=aside))
    files = {name: facts for part in on_every_rank(phase, write_mine) for name, facts in part.items()}
    on_main_rank(phase, lambda: commit(files))
    return final


def checkpoints_of(run_dir: Path) -> list[Path]:
    """The committed checkpoints of a run, oldest first, unverified."""
    found = [path for path in run_dir.glob("global_step_*") if re.fullmatch(r"global_step_\d+", path.name)]
    return sorted(found, key=_step_of)


def start_over(run_dir: Path) -> None:
    """Move everything an earlier run left in `run_dir` into `superseded_<time>/`: nothing is mixed, nothing lost."""

    def move() -> None:
        if checkpoints_of(run_dir):
            _move_aside(run_dir, [path for path in run_dir.iterdir() if not path.name.startswith("superseded_")])

    on_main_rank(f"setting an earlier run in {run_dir} aside", move)


def forget_after(run_dir: Path, step: int) -> None:
    """Move the checkpoints beyond `step` into `superseded_<time>/`: from here on the run takes another way.

    Damaged, or of the way not taken: left in place they would pass for the newest ones, which the next resume takes
    and `retain` keeps.
    """

    def move() -> None:
        if later := [path for path in checkpoints_of(run_dir) if _step_of(path) > step]:
            _move_aside(run_dir, later)

    on_main_rank(f"setting checkpoints beyond step {step} of {run_dir} aside", move)


def newest(run_dir: Path, *, world: World) -> Path | None:
    """The newest checkpoint of a run whose files are all as they were written; None if there is none.

    Every rank calls it and checks its share of the files. Rejected checkpoints are named with the reason.
    """
    # Rank 0's list, for all: ranks that look for themselves may see a file system at different moments.
    for checkpoint in reversed(on_main_rank(f"looking for checkpoints in {run_dir}", lambda: checkpoints_of(run_dir))):
        problems = verify(checkpoint, world=world)
        if not problems:
            return checkpoint
        log.warning("checkpoint %s is not usable and passed over: %s", checkpoint, "; ".join(problems))
    return None


def verify(checkpoint: Path, *, world: World) -> list[str]:
    """What is wrong with a checkpoint, one line per file; empty if nothing is. Every rank calls it."""

    def check_my_share() -> list[str]:
        manifest = checkpoint / MANIFEST
        if not manifest.is_file():
            return ["manifest.json is missing"] if world.is_main else []
        try:
            files = sorted(_read_manifest(checkpoint)["files"].items())
        except CheckpointError as error:
            return [str(error)] if world.is_main else []
        problems = []
        for name, expected in files[world.rank :: world.size]:
            path = checkpoint / name
            found = _describe(path) if path.is_file() else None
            if found is None:
                problems.append(f"{name} is missing")
            elif found["size"] != expected["size"]:
                problems.append(f"{name} has {found['size']} bytes, {expected['size']} were written")
            elif found != expected:
                problems.append(f"{name} is not what was written (sha256 differs)")
        return problems

    return [problem for part in on_every_rank(f"verifying {checkpoint}", check_my_share) for problem in part]


def load(
    checkpoint: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    world: World,
    fingerprint: dict[str, Any],
) -> TrainState:
    """Bring model, optimizer and random state to where `checkpoint` stands, on any number of ranks.

    On the number of ranks that wrote it, the run goes on bit for bit. Raises CheckpointError where the run
    asked for is another one (data, model, seed, batch size).
    """
    manifest = _read_manifest(checkpoint)
    _refuse_another_run(checkpoint, manifest["fingerprint"], fingerprint)
    state = TrainState(**manifest["state"])
    _create_moments(optimizer, state.updates)
    StoredTensors.of_ranks(checkpoint / "state").copy_into(_state_tensors(model, optimizer))
    if manifest["world_size"] == world.size:
        _restore_random_state(load_file(checkpoint / _file_names(world.rank)[1]))
    return state


def retain(run_dir: Path, keep: int | None) -> None:
    """Delete all but the newest `keep` checkpoints (None: keep all), and what an interrupted save left behind."""

    def delete_old() -> None:
        for checkpoint in checkpoints_of(run_dir)[: -keep if keep else 0]:
            doomed = checkpoint.with_name(f".{checkpoint.name}.deleted")  # never half a checkpoint under its name
            checkpoint.rename(doomed)
        for leftover in [*run_dir.glob(".global_step_*.deleted"), *run_dir.glob(".global_step_*.partial")]:
            shutil.rmtree(leftover)

    on_main_rank(f"deleting old checkpoints in {run_dir}", delete_old)


def _state_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    weights = trained_weights(model)  # frozen ones are read from the model again
    tensors = {f"model/{name}": weight for name, weight in weights.items()}
    for name, weight in weights.items():
        for moment in MOMENTS:
            if (moments := optimizer.state.get(weight)) is not None:
                tensors[f"{moment}/{name}"] = moments[moment]
    return tensors


def _create_moments(optimizer: torch.optim.Optimizer, updates: int) -> None:
    """Give AdamW the state it creates in its first step, so that there is something to load into."""
    if updates == 0:
        return
    for group in optimizer.param_groups:
        for weight in group["params"]:
            optimizer.state[weight] = {
                "step": torch.full((), float(updates), device=weight.device),
                **{moment: torch.zeros_like(weight) for moment in MOMENTS},
            }


def _random_state(world: World) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _refuse_another_run(checkpoint: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    changed = [
        f"{key}: the checkpoint has {theirs.get(key)!r}, this run {ours.get(key)!r}"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
    ]
    if changed:
        raise CheckpointError(
            f"{checkpoint} belongs to another run:\n  " + "\n  ".join(changed) + "\nUse another "
            "trainer.default_local_dir, or trainer.resume_mode=disable to start over."
        )


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("_")[2])


def _move_aside(run_dir: Path, paths: list[Path]) -> None:
    aside = run_dir / f"superseded_{datetime.now():%Y%m%dT%H%M%S}"
    aside.mkdir(exist_ok=True)
    for path in paths:
        path.rename(aside / path.name)
    log.info("%s: %s moved to %s", run_dir, ", ".join(sorted(path.name for path in paths)), aside.name)


def _read_manifest(checkpoint: Path) -> dict[str, Any]:
    try:
        return json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint / MANIFEST} cannot be read ({error}).") from error


def _file_names(rank: int) -> tuple[str, str]:
    return f"state/rank_{rank:05d}.safetensors", f"state/rng_{rank:05d}.safetensors"


def _describe(path: Path, *, durable: bool = False) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if durable:
            os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": digest}


def _fresh_directory(directory: Path, *, within: Path) -> None:
    shutil.rmtree(within, ignore_errors=True)
    directory.mkdir(parents=True)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
