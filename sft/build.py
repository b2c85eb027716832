"""From a configuration to everything a run holds: what is read before the ranks meet, then the job itself."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from sft import checkpoint
from sft.config import SftConfig
from sft.data import (
    Dataset,
    Supervision,
    add_missing_tokens,
    find_template,
    open_dataset,
    plan,
    stop_token_ids,
    template_fingerprint,
)
from sft.distributed import World, log
from sft.errors import InputError
from sft.model import (
    adapter_settings,
    build_skeleton,
    decoder_layers,
    find_model,
    grow_vocabulary,
    load_config,
    load_tokenizer,
    load_weights,
)
from sft.model import fingerprint as model_fingerprint
from sft.optim import adamw
from sft.parallel import Mesh, build_mesh, checkpoint_activations, exchange_heads, shard
from sft.resume import resume
from sft.types import TrainState

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Inputs:
    """What a rank reads by itself, outside of any process group: no collective waits while rows are tokenised."""

    source: Path  # the model directory the weights come from
    tokenizer: Any
    chat_template: str | None  # the template trained with, where it is not the tokenizer's own
    new_tokens: dict[str, int]  # special tokens that the tokenizer of the source does not have, with their ids
    train: Dataset
    val: Dataset | None


@dataclass
class Job:
    """Everything a run holds while it trains."""

    config: SftConfig
    world: World
    mesh: Mesh
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
        return plan.step_samples(
            step,
            mixture=self.train.mixture,
            batch_size=self.config.data.train_batch_size,
            seed=self.config.trainer.seed,
        )


def read_inputs(config: SftConfig, world: World) -> Inputs:
    """Tokenizer and data. Raises InputError for a model that is not there and for rows that cannot be used."""
    if config.model.external_lib:
        importlib.import_module(config.model.external_lib)
    source = find_model(config.model.partial_pretrain)
    tokenizer, chat_template, new_tokens = open_tokenizer(config, source)
    train, val = open_data(config, tokenizer, world)
    return Inputs(source, tokenizer, chat_template, new_tokens, train, val)


def build(config: SftConfig, world: World, inputs: Inputs) -> Job:
    """Mesh, sharded model, optimizer, and the state to continue from."""
    mesh = build_mesh(
        world.size,
        world.device.type,
        sp_size=config.ulysses_sequence_parallel_size,
        timeout=timedelta(seconds=config.trainer.timeout_s),
    )
    tokens = max(inputs.new_tokens.values(), default=-1) + 1
    model = build_model(config, inputs.source, mesh, world, tokens=tokens)
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
    state, began_with = resume(config, model, optimizer, inputs.source, world, fingerprint)
    return Job(
        config=config,
        world=world,
        mesh=mesh,
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
    )


def build_model(config: SftConfig, source: Path, mesh: Mesh, world: World, *, tokens: int = 0) -> PreTrainedModel:
    """The model of `source`, sharded over mesh.fsdp; no rank ever holds all of it. With LoRA, adapters inside.

    tokens: how many the vocabulary must hold; one that is too small grows.
    """
    trust = config.model.trust_remote_code
    model, grown = build_bare_model(config, source, tokens=tokens)
    if mesh.sp_size > 1:
        exchange_heads(model, mesh.sp_group)
    if config.model.enable_gradient_checkpointing:
        checkpoint_activations(model)
    shard(model, decoder_layers(model), mesh.fsdp, DTYPES[config.model.fsdp_config.compute_dtype])
    load_weights(model, source, world.device, trust_remote_code=trust, grown_vocabulary=grown)
    if config.model.lora_rank:
        from sft.model import lora

        lora.start_adapters(model, seed=config.trainer.seed, adapter=config.model.lora_adapter_path)
    return model


def build_bare_model(config: SftConfig, source: Path, *, tokens: int = 0) -> tuple[PreTrainedModel, bool]:
    """(the model on the meta device, with LoRA's adapters inside; whether its vocabulary had to grow)."""
    trust, fsdp, adapters = config.model.trust_remote_code, config.model.fsdp_config, adapter_settings(config.model)
    master_dtype, compute_dtype = DTYPES[fsdp.model_dtype], DTYPES[fsdp.compute_dtype]
    model_config = load_config(source, trust_remote_code=trust)
    grown = grow_vocabulary(model_config, tokens)
    model = build_skeleton(
        model_config,
        packed=config.use_remove_padding,
        dtype=compute_dtype if adapters else master_dtype,  # what LoRA freezes never moves: no master copy
        trust_remote_code=trust,
    )
    if adapters:
        from sft.model import lora  # needs peft, which other runs do not

        name = str(source.resolve()) if Path(config.model.partial_pretrain).is_dir() else config.model.partial_pretrain
        lora.add_adapters(model, base=name, dtype=master_dtype, **adapters)
    return model, grown


def open_tokenizer(config: SftConfig, source: Path) -> tuple[Any, str | None, dict[str, int]]:
    """(tokenizer, the template it was given in place of its own, ids of the special tokens that this one needed).

    A tokenizer without a template gets ChatML. Raises InputError for data.chat_template that is none, and where LoRA
    would leave the embeddings of new tokens untrained.
    """
    tokenizer = load_tokenizer(source, trust_remote_code=config.model.trust_remote_code)
    given = config.data.chat_template
    if given is None and tokenizer.chat_template:
        return tokenizer, None, {}
    if given is None:
        log.info("the tokenizer has no chat template: ChatML is used (data.chat_template=chatml).")
    tokenizer.chat_template = find_template(given or "chatml")
    added = add_missing_tokens(tokenizer, tokenizer.chat_template)
    if added and config.model.lora_rank:
        raise InputError(
            f"data.chat_template={given or 'null (ChatML)'} needs {' and '.join(added)}, which the tokenizer does not "
            f"have, and model.lora_rank={config.model.lora_rank} would leave their embeddings untrained; set "
            "data.chat_template=instruction_response, which needs no new token, or model.lora_rank=0."
        )
    if added:
        told = ", ".join(f"{token} = {token_id}" for token, token_id in added.items())
        log.info("special tokens added to the tokenizer, and saved with the model: %s.", told)
    return tokenizer, tokenizer.chat_template, added


def supervision_of(config: SftConfig) -> Supervision:
    """What is trained, as the data rooms want to know it."""
    return Supervision(config.data.train_on, config.data.thinking_history)


def open_data(config: SftConfig, tokenizer: Any, world: World) -> tuple[Dataset, Dataset | None]:
    """The training and the validation samples, tokenised by one process per node, memory-mapped by all."""
    max_tokens = config.data.max_tokens_per_gpu
    if max_tokens is not None:
        max_tokens *= config.ulysses_sequence_parallel_size  # each rank of the group holds its part of the row

    def open_files(files: tuple[str, ...] | None, max_samples: int, curriculum: str | None = None) -> Dataset:
        return open_dataset(
            config.data,
            files,
            max_samples=max_samples,
            max_tokens=max_tokens,
            packed=config.use_remove_padding,
            tokenizer=tokenizer,
            build_here=world.local_rank == 0,
            say=log.info,
            curriculum=curriculum,
            seed=config.trainer.seed,
        )

    train = open_files(config.data.train_files, config.data.train_max_samples, config.data.curriculum)
    if len(train.mixture.sources) > 1:
        log.info("%s", train.describe_epoch())
    val = open_files(config.data.val_files, config.data.val_max_samples) if config.data.val_files else None
    return train, val
