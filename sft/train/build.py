"""Build everything a run holds from its configuration and inputs: mesh, sharded model, optimizer, state."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from sft import checkpoint
from sft.config import SftConfig, TrainerConfig
from sft.config.mappings import dotted
from sft.config.secrets import redacted, without_secrets
from sft.data.chat.encode import stop_token_ids
from sft.data.chat.tokenizer import template_fingerprint
from sft.data.dataset import Dataset
from sft.data.order.plan import Plan
from sft.model.place import adapter_settings, frozen_settings, place, sharding_of
from sft.model.pretrained import fingerprint as model_fingerprint
from sft.model.routers import Routers
from sft.parallel.fsdp import Sharding
from sft.parallel.mesh import Mesh, build_mesh
from sft.parallel.world import World, log, seed_rank
from sft.track.hub import Hub, open_hub
from sft.train import course
from sft.train.forecast import plan_of
from sft.train.forecast_memory import Footprint, explaining_memory, footprint_of_run
from sft.train.groups import describe
from sft.train.inputs import Inputs, refuse_other_inputs
from sft.train.optim import OPTIMIZERS, lr_at
from sft.train.reading import supervision_of
from sft.train.resume import resume
from sft.train.score import my_batches
from sft.types import Batch, TrainState


@dataclass
class Job:
    """Everything a run holds while it trains."""

    config: SftConfig
    world: World
    mesh: Mesh
    memory: Footprint
    sharding: Sharding
    model: PreTrainedModel  # a causal LM, sharded by FSDP2
    optimizer: torch.optim.Optimizer
    inputs: Inputs
    state: TrainState
    saver: checkpoint.Saver
    plan: Plan  # what each step trains
    fingerprint: dict[str, Any]  # what a checkpoint must share with this run to continue it
    began_with: str  # the directory whose weights the run had at step 0
    stop_token_ids: list[int]
    hub: Hub | None  # on rank 0, where trainer.hub_model_id is set

    @property
    def is_over(self) -> bool:
        """Return True if nothing is left to train: the last step is done, or early stopping is out of patience."""
        trainer = self.config.trainer
        return self.state.step >= self.total_steps or course.out_of_patience(
            self.state.course, trainer.early_stop_metric, trainer.early_stop_patience
        )

    @property
    def routers(self) -> Routers:
        """Return what watches the routers of the model; it has nothing to watch in most."""
        return vars(self.model)["routers"]

    @property
    def total_steps(self) -> int:
        return self.plan.total_steps

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    @property
    def train(self) -> Dataset:
        return self.inputs.train

    @property
    def val(self) -> Dataset | None:
        return self.inputs.val

    @property
    def run_dir(self) -> Path:
        return Path(self.config.trainer.default_local_dir)

    def steps_of(self, interval: int | float | str) -> int:
        """Turn a configured interval into steps: a number of steps, a part of the run (below 1), or `epoch`."""
        if interval == "epoch":
            return self.steps_per_epoch
        assert not isinstance(interval, str)
        return math.ceil(self.total_steps * interval) if 0 < interval < 1 else int(interval)

    def samples_of(self, step: int) -> np.ndarray:
        """Return the sample ids of a step, the same on every rank and for the same data, seed and batch size."""
        return self.plan.samples(step)

    def batches_of(self, step: int) -> Iterator[Batch]:
        """Cut this rank's part of the samples of a step into micro-batches."""
        noise = (self.config.trainer.seed, step) if self.config.model.neftune_alpha else None
        for batch in my_batches(self.train, self.samples_of(step), self.mesh, noise):
            yield batch.pinned() if self.world.device.type == "cuda" else batch


def build(config: SftConfig, world: World, inputs: Inputs) -> Job:
    """Build everything a run needs: the device mesh, the sharded model, the optimizer, and the state to resume from."""
    trainer = config.trainer
    course.check_metric(trainer.early_stop_metric, inputs.val.mixture.ids if inputs.val else {})
    mesh = build_mesh(
        world.size,
        world.device.type,
        sp_size=config.ulysses_sequence_parallel_size,
        dp_replicate=config.model.fsdp_config.dp_replicate,
        timeout=timedelta(seconds=config.trainer.timeout_s),
    )
    fingerprint = fingerprint_of(config, inputs)
    refuse_other_inputs(
        {
            "model.partial_pretrain": fingerprint["model"],
            "data.train_files": fingerprint["data"],
            "data.val_files": inputs.val.fingerprint if inputs.val else None,
            "the chat template": fingerprint["template"],
        }
    )
    model = inputs.model
    memory = footprint_of_run(config, model, inputs.train, world)
    log.info("%s", memory.line())
    sharding = sharding_of(config.model.fsdp_config, reduce_once=memory.reduce_once)
    with explaining_memory(memory, "loading the model"):
        place(model, config, inputs.source, mesh, sharding, world, grown=inputs.grown)
    optimizer = OPTIMIZERS[config.optim.name].build(model, config.optim)
    for line in describe(optimizer.param_groups):
        log.info("%s", line)
    plan = plan_of(config, inputs.train)
    seed_rank(trainer.seed, world)
    settings = settings_of_run(config)
    state, began_with = resume(config, model, optimizer, inputs.source, world, fingerprint, settings)
    if 0 < state.step < plan.total_steps:
        log.info("%s", describe_schedule(config, state, plan.total_steps))
    return Job(
        config=config,
        world=world,
        mesh=mesh,
        memory=memory,
        sharding=sharding,
        model=model,
        optimizer=optimizer,
        inputs=inputs,
        state=state,
        began_with=began_with,
        saver=checkpoint.Saver(
            Path(config.trainer.default_local_dir),
            world=world,
            about={
                "job_id": Path(config.trainer.default_local_dir).resolve().name,
                "base_model": redacted(config.model.partial_pretrain),
                "began_with": began_with,
                "steps_per_epoch": plan.steps_per_epoch,
                "fingerprint": fingerprint,
                "settings": settings,
            },
            keep=checkpoints_to_keep(trainer),
            in_background=config.trainer.async_save,
        ),
        plan=plan,
        fingerprint=fingerprint,
        stop_token_ids=stop_token_ids(
            inputs.tokenizer, supervision_of(config), **config.data.apply_chat_template_kwargs
        ),
        hub=open_hub(
            trainer.hub_model_id, Path(trainer.default_local_dir), trainer.hub_private, trainer.hub_dry_run_dir
        )
        if world.is_main
        else None,
    )


def describe_schedule(config: SftConfig, state: TrainState, total_steps: int) -> str:
    """Return where a run that goes on stands in its schedule, which is drawn anew from the settings of this start."""
    update = state.updates + 1
    lr = lr_at(update, total_steps, config.optim)
    return f"the schedule of {total_steps:,} steps gives {lr:.3g} at the next step, update {update:,}"


def checkpoints_to_keep(trainer: TrainerConfig) -> int | None:
    """Return how many of the newest checkpoints stay beside the best one; None: all.

    Where only trainer.save_best asks for checkpoints, those that were the best once are not wanted any more.
    """
    only_the_best = trainer.save_best and trainer.save_freq in (-1, 0) and trainer.save_hf_freq in (-1, 0)
    return 1 if only_the_best and trainer.max_ckpt_to_keep is None else trainer.max_ckpt_to_keep


def fingerprint_of(config: SftConfig, inputs: Inputs) -> dict[str, Any]:
    """Return what a checkpoint must share with this run so that the run can continue it."""
    return {
        "data": inputs.train.fingerprint,
        "tokens": inputs.train.tokens,
        "init_from_checkpoint": config.trainer.init_from_checkpoint,
        "model": model_fingerprint(inputs.source),
        "lora": adapter_settings(config.model) or None,
        "lora_adapter": config.model.lora_adapter_path,
        "frozen": frozen_settings(config.model),
        "base_dtype": None if config.model.base_dtype == "bf16" else config.model.base_dtype,
        "lora_start": None if config.model.init_lora_weights is True else config.model.init_lora_weights,
        "seed": config.trainer.seed,
        "template": template_fingerprint(inputs.tokenizer, config.data.apply_chat_template_kwargs),
        "train_batch_size": config.data.train_batch_size,
    }


def settings_of_run(config: SftConfig) -> dict[str, Any]:
    """Return the settings that decide how a run goes on, dotted, for a later one to say what it changed."""
    decide = ("data.", "model.", "optim.", "trainer.total_", "use_remove_padding", "ulysses_sequence_parallel_size")
    nowhere = ("data.cache_dir", "data.num_workers")
    settings = dotted(without_secrets(asdict(config)))
    return {key: value for key, value in settings.items() if key.startswith(decide) and key not in nowhere}
