"""Begin a run at step 0 with the weights of another run's checkpoint (trainer.init_from_checkpoint)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from sft.checkpoint.find import verify
from sft.checkpoint.manifest import MODEL_DIR, has_model, has_state, read_manifest
from sft.checkpoint.state import fill, named
from sft.errors import InputError
from sft.files import RunDir, is_checkpoint
from sft.model.names import trained_weights
from sft.parallel.world import World, on_main_rank

NAMED_STEP = re.compile(r"(.+):step-(\d+)")
KNOB = "trainer.init_from_checkpoint"


@dataclass(frozen=True)
class Origin:
    """Where weights come from: a verified checkpoint with state (exact), or a model directory."""

    path: Path
    is_state: bool


def find_origin(
    name: str, run_dir: Path, *, with_adapters: bool, world: World, frozen: dict[str, list[str]] | None = None
) -> Origin:
    """Find the checkpoint that `name` stands for. Every rank calls it; all get the same one, or all raise InputError.

    name: a run directory (its newest good checkpoint, else its model), `run:step-N` (run: a run directory, or the name
    of one beside this run's), a global_step_N directory, or a model directory
    with_adapters: whether this run trains LoRA adapters. frozen: as in the run's fingerprint
    """
    candidates = on_main_rank(f"{KNOB}={name}", lambda: _candidates(name, run_dir))
    rejected = []
    for path in candidates:
        if (path / "config.json").is_file():
            origin = Origin(path, is_state=False)
        elif problems := verify(path, world=world):
            rejected.append(f"{path}: {'; '.join(problems)}")
            continue
        else:
            origin = _part_to_use(path, with_adapters, frozen)
        if with_adapters and not origin.is_state:
            raise InputError(
                f"{KNOB}={name} is a whole model, and a LoRA run keeps the model it starts from as it is: set "
                f"model.partial_pretrain={origin.path} instead."
            )
        return origin
    raise InputError(f"{KNOB}={name}: no checkpoint there is usable: {'; '.join(rejected)}.")


def start_from(origin: Origin, model: torch.nn.Module) -> None:
    """Load the weights of a checkpoint with state into the model. Raises CheckpointError for another model's."""
    fill(named(trained_weights(model)), origin.path)


def _part_to_use(checkpoint: Path, with_adapters: bool, frozen: dict[str, list[str]] | None) -> Origin:
    manifest = read_manifest(checkpoint)
    holds_adapters = manifest["fingerprint"].get("lora") is not None
    same_part = manifest["fingerprint"].get("frozen") == frozen
    # The state has the weights as they were trained; the model has them rounded to the dtype it ships in.
    if has_state(manifest) and holds_adapters == with_adapters and same_part:
        return Origin(checkpoint, is_state=True)
    if has_model(manifest):
        return Origin(checkpoint / MODEL_DIR, is_state=False)
    if holds_adapters == with_adapters:
        raise InputError(
            f"{KNOB}: {checkpoint} is STATE of a run with other model.frozen and model.train_only, without the weights "
            "that it did not train; save it with its model first (BOTH: touch save_now in a run that continues it)."
        )
    holds, trains = ("adapters", "all weights") if holds_adapters else ("all weights", "adapters")
    raise InputError(
        f"{KNOB}: {checkpoint} is STATE of {holds} and this run trains {trains}; save it with its model first (BOTH: "
        "touch save_now in a run that continues it)."
    )


def _candidates(name: str, run_dir: Path) -> list[Path]:
    """Checkpoints and model directories that `name` may stand for, best first, unverified."""
    if named := NAMED_STEP.fullmatch(name):
        job, step = named.groups()
        for home in (Path(job), run_dir.parent / job):
            if home.is_dir():
                checkpoint = RunDir(home).checkpoint(int(step))
                if checkpoint.is_dir():
                    return [checkpoint]
                found = ", ".join(path.name for path in RunDir(home).checkpoints()) or "none"
                raise InputError(f"{KNOB}={name}: {home} has no {checkpoint.name}; it has {found}.")
        raise InputError(f"{KNOB}={name}: neither {Path(job)} nor {run_dir.parent / job} is a run directory.")
    path = Path(name)
    if is_checkpoint(path) and path.is_dir():
        return [path]
    if not path.is_dir():
        raise InputError(
            f"{KNOB}={name} is no directory; give a run directory, run:step-N, a global_step_N directory or a model "
            "directory."
        )
    checkpoints = list(reversed(RunDir(path).checkpoints()))
    models = [path] if (path / "config.json").is_file() else []
    if not checkpoints and not models:
        raise InputError(f"{KNOB}={name} holds neither checkpoints (global_step_N) nor a model (config.json).")
    return checkpoints + models
