"""From a configuration and what was read to everything a run holds: mesh, sharded model, optimizer, state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from sft import checkpoint, judge
from sft.config import SftConfig
from sft.data import Dataset, plan, stop_token_ids, template_fingerprint
from sft.distributed import World, log, max_over_all_ranks, seed_rank
from sft.footprint import STEPS, Footprint, explaining_memory, footprint
from sft.hub import Hub, open_hub
from sft.inputs import Inputs, supervision_of
from sft.memory import device_bytes
from sft.model import (
    Choice,
    adapter_settings,
    build_skeleton,
    decoder_layers,
    grow_vocabulary,
    learn_logit_form,
    load_config,
    load_weights,
    use_liger_kernels,
)
from sft.model import fingerprint as model_fingerprint
from sft.optim import adamw
from sft.parallel import (
    Mesh,
    Sharding,
    build_mesh,
    checkpoint_activations,
    compile_layers,
    exchange_heads,
    shard,
)
from sft.resume import resume
from sft.score import my_batches
from sft.types import Batch, TrainState

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


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
    total_steps: int
    steps_per_epoch: int
    fingerprint: dict[str, Any]  # what a checkpoint must share with this run to continue it
    began_with: str  # the directory whose weights the run had at step 0
    stop_token_ids: list[int]
    hub: Hub | None  # on rank 0, where trainer.hub_model_id is set

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train: the last step is done, or early stopping is out of patience."""
        trainer = self.config.trainer
        return self.state.step >= self.total_steps or judge.out_of_patience(
            self.state.course, trainer.early_stop_metric, trainer.early_stop_patience
        )

    @property
    def train(self) -> Dataset:
        return self.inputs.train

    @property
    def val(self) -> Dataset | None:
        return self.inputs.val

    @property
    def run_dir(self) -> Path:
        return Path(self.config.trainer.default_local_dir)

    def samples_of(self, step: int) -> np.ndarray:
        """Sample ids of a step, the same on every rank and in every run with this data, seed and batch size."""
        return samples_of(self.config, self.inputs, step)

    def batches(self, dataset: Dataset, sample_ids: np.ndarray) -> Iterator[Batch]:
        """The micro-batches in which this rank computes its part of `sample_ids`."""
        for batch in my_batches(dataset, sample_ids, self.mesh):
            yield batch.pinned() if self.world.device.type == "cuda" else batch


def build(config: SftConfig, world: World, inputs: Inputs) -> Job:
    """Mesh, sharded model, optimizer, and the state to continue from."""
    trainer = config.trainer
    judge.check_metric(trainer.early_stop_metric, inputs.val.mixture.ids if inputs.val else {})
    mesh = build_mesh(
        world.size,
        world.device.type,
        sp_size=config.ulysses_sequence_parallel_size,
        dp_replicate=config.model.fsdp_config.dp_replicate,
        timeout=timedelta(seconds=config.trainer.timeout_s),
    )
    tokens = max(inputs.new_tokens.values(), default=-1) + 1
    model, grown = build_bare_model(config, inputs.source, inputs.attention, tokens=tokens)
    memory = measure(config, model, inputs, world)
    log.info("%s", memory.line())
    fsdp = config.model.fsdp_config
    sharding = Sharding(
        DTYPES[fsdp.compute_dtype],
        offload=fsdp.cpu_offload or fsdp.offload_params,
        reshard_after_forward=fsdp.reshard_after_forward,
        reduce_once=memory.load.whole_gradients,
        min_group_params=fsdp.wrap_policy.min_num_params,
    )
    with explaining_memory(memory, "loading the model"):
        place(model, config, inputs.source, mesh, sharding, world, grown=grown)
    optim = config.optim
    optimizer = adamw(model, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)
    fingerprint = {
        "data": inputs.train.fingerprint,
        "init_from_checkpoint": config.trainer.init_from_checkpoint,
        "model": model_fingerprint(inputs.source),
        "lora": adapter_settings(config.model) or None,
        "lora_adapter": config.model.lora_adapter_path,
        "seed": config.trainer.seed,
        "template": template_fingerprint(inputs.tokenizer, config.data.apply_chat_template_kwargs),
        "train_batch_size": config.data.train_batch_size,
    }
    steps_per_epoch = plan.steps_per_epoch(len(inputs.train.mixture), config.data.train_batch_size)
    seed_rank(trainer.seed, world)
    state, began_with = resume(config, model, optimizer, inputs.source, world, fingerprint)
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
                "base_model": config.model.partial_pretrain,
                "began_with": began_with,
                "steps_per_epoch": steps_per_epoch,
                "fingerprint": fingerprint,
            },
            keep=config.trainer.max_ckpt_to_keep,
            in_background=config.trainer.async_save,
        ),
        total_steps=config.trainer.total_training_steps or config.trainer.total_epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
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


def samples_of(config: SftConfig, inputs: Inputs, step: int) -> np.ndarray:
    """Sample ids of a step."""
    batch_size, seed = config.data.train_batch_size, config.trainer.seed
    return plan.step_samples(step, mixture=inputs.train.mixture, batch_size=batch_size, seed=seed)


def measure(config: SftConfig, skeleton: PreTrainedModel, inputs: Inputs, world: World) -> Footprint:
    """The estimate of memory, the same on every rank: by the smallest device, and the samples of the first steps."""
    first_steps = min(STEPS, plan.steps_per_epoch(len(inputs.train.mixture), config.data.train_batch_size))
    counted = np.zeros(len(inputs.train), np.int64)
    for step in range(1, first_steps + 1):
        for index in samples_of(config, inputs, step):
            counted[index] = inputs.train.supervised_tokens(index)
    (smallest,) = max_over_all_ranks(-device_bytes(world.device))
    return footprint(
        config,
        skeleton,
        inputs.train,
        world.size,
        device=world.device.type,
        device_bytes=int(-smallest),
        supervised_tokens=counted,
    )


def place(
    model: PreTrainedModel,
    config: SftConfig,
    source: Path,
    mesh: Mesh,
    sharding: Sharding,
    world: World,
    *,
    grown: bool,
) -> None:
    """Shard the skeleton over mesh.fsdp and fill it from `source`; no rank ever holds all of it.

    grown: the vocabulary of the skeleton is larger than that of the files
    """
    trust, layers = config.model.trust_remote_code, decoder_layers(model)
    if config.model.use_liger:
        use_liger_kernels(model, world.device)
    if mesh.sp_size > 1:
        exchange_heads(model, mesh.sp_group)
    if config.model.enable_gradient_checkpointing:
        checkpoint_activations(layers, selective=config.model.gradient_checkpointing_kind == "selective")
    if config.model.compile:
        if world.device.type == "cpu":
            log.warning("model.compile=true: on a CPU it costs minutes at the start and wins little.")
        compile_layers(layers)
    shard(model, layers, mesh.fsdp, sharding)
    load_weights(model, source, world.device, offload=sharding.offload, trust_remote_code=trust, grown_vocabulary=grown)
    if config.model.lora_rank:
        from sft.model import lora

        lora.start_adapters(model, seed=config.trainer.seed, adapter=config.model.lora_adapter_path)


def build_bare_model(
    config: SftConfig, source: Path, attention: Choice, *, tokens: int = 0
) -> tuple[PreTrainedModel, bool]:
    """(the model on the meta device, with LoRA's adapters inside; whether its vocabulary had to grow)."""
    trust, fsdp, adapters = config.model.trust_remote_code, config.model.fsdp_config, adapter_settings(config.model)
    master_dtype, compute_dtype = DTYPES[fsdp.model_dtype], DTYPES[fsdp.compute_dtype]
    model_config = load_config(source, trust_remote_code=trust)
    grown = grow_vocabulary(model_config, tokens)
    model = build_skeleton(
        model_config,
        attention=attention,
        dtype=compute_dtype if adapters else master_dtype,  # what LoRA freezes never moves: no master copy
        trust_remote_code=trust,
    )
    if adapters:
        from sft.model import lora  # needs peft, which other runs do not

        name = str(source.resolve()) if Path(config.model.partial_pretrain).is_dir() else config.model.partial_pretrain
        lora.add_adapters(model, base=name, dtype=master_dtype, **adapters)
    learn_logit_form(model)  # with its adapters: one on the LM head makes it another head
    return model, grown
