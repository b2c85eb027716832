"""Find where a run begins: its newest checkpoint, the one it was told, the weights of another run, or fresh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sft import checkpoint
from sft.config import SftConfig
from sft.errors import InputError
from sft.model.load import read_weights
from sft.model.place import frozen_settings
from sft.parallel.world import World, log
from sft.train import course
from sft.types import TrainState


def resume(
    config: SftConfig,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    source: Path,
    world: World,
    fingerprint: dict[str, Any],
    settings: dict[str, Any],
) -> tuple[TrainState, str]:
    """Resume: (state, directory whose weights the run began with) of the newest good checkpoint or the one asked for.

    Its weights and moments are loaded. If there is none, the state is fresh, with the weights of
    trainer.init_from_checkpoint where that is set.
    """
    trainer = config.trainer
    run_dir = Path(trainer.default_local_dir)
    checkpoint.prepare(run_dir)
    # What torchrun restarts after a failure has begun already, and goes on from its own checkpoints.
    mode = "auto" if world.restarts else trainer.resume_mode
    if mode == "disable":
        checkpoint.start_over(run_dir)
        found = None
    elif mode == "resume_path":
        assert trainer.resume_from_path is not None, "the config door let resume_path pass without a path"
        found = Path(trainer.resume_from_path)
        if problems := checkpoint.verify(found, world=world):
            raise InputError(f"trainer.resume_from_path={found} is not usable: {'; '.join(problems)}.")
        if not checkpoint.has_state(checkpoint.read_manifest(found)):
            raise InputError(
                f"trainer.resume_from_path={found} is SAMPLER, a model without optimizer and counters; resume from "
                "STATE or BOTH, or begin another run with its weights: trainer.init_from_checkpoint."
            )
    else:
        found = checkpoint.newest(run_dir, world=world)
    state, began_with = TrainState(), str(source)
    if found is not None:
        state = checkpoint.load(
            found, model, optimizer, world=world, fingerprint=fingerprint, settings=settings, force=trainer.resume_force
        )
        began_with = checkpoint.read_manifest(found)["began_with"]
        log.info("continuing from %s", found)
    elif trainer.init_from_checkpoint is not None:
        began_with = str(start_elsewhere(config, model, world))
    if told := course.compare_by(state.course, trainer.early_stop_metric or course.DEFAULT_METRIC):
        log.warning("%s", told)
    checkpoint.forget_after(run_dir, state.step)
    checkpoint.mend_best(run_dir, state.course.best_step, wanted=trainer.save_best)
    return state, began_with


def start_elsewhere(config: SftConfig, model: PreTrainedModel, world: World) -> Path:
    """Bring the weights of trainer.init_from_checkpoint into the model; returns where they were found."""
    name = config.trainer.init_from_checkpoint
    assert name is not None
    origin = checkpoint.find_origin(
        name,
        Path(config.trainer.default_local_dir),
        with_adapters=config.model.lora_rank > 0,
        world=world,
        frozen=frozen_settings(config.model),
    )
    if origin.is_state:
        checkpoint.start_from(origin, model)
    else:
        read_weights(model, origin.path)
    log.info("starting with the weights of %s", origin.path)
    return origin.path.resolve()
