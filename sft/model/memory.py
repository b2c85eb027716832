"""What a run needs of a GPU's memory, from sizes alone: an estimate, in bytes per rank.

States (weights, gradients, what the optimizer remembers) are split over the ranks that share them: ZeRO stage 3,
Rajbhandari et al. 2019.
Activations are counted as the tensors that one decoder layer keeps for its backward pass, in the manner of Korthikanti
et al. 2022, for the layers of today (RMS norms in fp32, rotary positions, grouped heads, gated MLP, attention that
keeps no [T, T] matrix):

    16·D + c·(4·D + 3·Q + 2·KV + 4·I)     bytes per token and layer
    c·D                                   with gradient checkpointing, and all of the above for one layer
    c·(3·D + 2·Q + 2·KV + 2·I)            the same where it keeps the results of matmuls and attention

c bytes of compute dtype, D width, Q and KV widths of all query and of all key heads, I width of the MLP (of the
experts that a token meets). What it leaves out: fragments of the allocator, buffers of NCCL, CUDA itself (some GB).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch
from transformers import PretrainedConfig, PreTrainedModel

from sft.model.head import CHUNK, WHOLE_LOGITS_CHUNK
from sft.model.pretrained import largest_of


@dataclass(frozen=True)
class ModelSize:
    """What memory depends on. Parameters are counted once, tied or not."""

    trainable: int
    frozen: int
    layer: int  # parameters of the largest decoder layer
    outside: int  # parameters outside of the layers: embeddings, LM head, last norm
    layers: int
    width: int
    query_width: int
    key_width: int
    mlp_width: int
    vocabulary: int
    head_trains: bool = True
    fused_loss: bool = True  # there are never all logits of a micro-batch


@dataclass(frozen=True)
class Load:
    """How a run uses the model. tokens and logits: of the largest micro-batch of one rank, padding included."""

    ranks: int  # that share the states between them
    tokens: int
    logits: int  # rows: the positions that the LM head meets
    master_bytes: int  # of a weight that trains, and of its gradient
    compute_bytes: int
    optimizer_bytes: Callable[[int], float]  # what the optimizer remembers of a weight of that many master bytes
    frozen_bytes: int | None = None  # of a weight that does not train; None: compute_bytes
    checkpointing: Literal["full", "selective"] | None = None
    offload: bool = False  # states live in CPU memory
    whole_weights: bool = False  # kept by every rank from forward to the end of the step
    whole_gradients: bool = False  # kept by every rank, in fp32, until the last micro-batch
    on_cpu: bool = False  # else on a GPU
    snapshot: bool = False  # checkpoints are copied into this memory, and written while training goes on


@dataclass(frozen=True)
class Memory:
    """Hold the estimated memory of one rank, in bytes, split by what it is for.

    The moment is the end of the forward pass of the largest micro-batch.
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int  # whole layers while they compute, their gradients until they are shared out
    activations: int
    logits: int
    snapshot: int  # the copy of weights and optimizer that the last checkpoint was written from

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        sizes = {field.name: getattr(self, field.name) for field in fields(self)}
        parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in sizes.items() if size)
        return f"{gigabytes(self.total)} per rank: {parts}"


def estimate(model: ModelSize, load: Load) -> Memory:
    """Estimate the memory of one rank."""
    n, m, c = load.ranks, load.master_bytes, load.compute_bytes
    in_layer = 16 * model.width + c * (
        4 * model.width + 3 * model.query_width + 2 * model.key_width + 4 * model.mlp_width
    )
    kept_layers = 1 if load.checkpointing else model.layers
    checkpoints = 0
    if load.checkpointing:
        checkpoints = c * model.width * model.layers
    if load.checkpointing == "selective":
        kept = 2 * model.width + 2 * model.query_width + 2 * model.key_width + 2 * model.mlp_width
        checkpoints += c * kept * model.layers
    trained_share = model.trainable / (model.trainable + model.frozen)
    # The next layer is gathered while this one computes.
    alive = model.trainable + model.frozen if load.whole_weights else model.outside + 2 * model.layer
    largest = max(model.outside, model.layer)
    here = 0 if load.offload else 1
    remembered = int(model.trainable * load.optimizer_bytes(m))
    return Memory(
        weights=here * (model.trainable * m + model.frozen * (load.frozen_bytes or c)) // n,
        gradients=4 * model.trainable if load.whole_gradients else here * model.trainable * m // n,
        optimizer=here * remembered // n,
        gathered=alive * c + int(trained_share * (c * (model.outside + model.layer) + 4 * largest)),
        activations=load.tokens * (kept_layers * in_layer + checkpoints),
        logits=_fused_loss(model, load) if model.fused_loss else _whole_logits(model, load),
        snapshot=(model.trainable * m + remembered) // n if load.snapshot else 0,
    )


def _fused_loss(model: ModelSize, load: Load) -> int:
    """Count the rows of one chunk, again in fp32, and gradients of what the LM head met and of its weight, in fp32."""
    c, copy = load.compute_bytes, 0 if load.compute_bytes == 4 else load.compute_bytes
    rows = min(load.logits, CHUNK["cpu" if load.on_cpu else "gpu"])
    head = model.vocabulary * model.width * (4 + copy) if model.head_trains and load.logits else 0
    return model.vocabulary * rows * (4 + copy) + c * model.width * load.logits + head


def _whole_logits(model: ModelSize, load: Load) -> int:
    """Return the bytes of logits and gradients in compute dtype, and of three fp32 copies of a chunk (loss.py)."""
    return model.vocabulary * (2 * load.compute_bytes * load.logits + 3 * 4 * min(load.logits, WHOLE_LOGITS_CHUNK))


def savings(model: ModelSize, load: Load, *, can_offload: bool = True) -> dict[str, int]:
    """Return the bytes per rank that each change of a key would save, the most first; none that is made already."""
    now = estimate(model, load).total
    checkpointing = "model.enable_gradient_checkpointing=true"
    if load.checkpointing == "selective":
        checkpointing = "model.gradient_checkpointing_kind=full"
    turned = {
        checkpointing: replace(load, checkpointing="full"),
        "model.fsdp_config.reshard_after_forward=true": replace(load, whole_weights=False),
        "model.fsdp_config.reduce_gradients=every_micro_batch": replace(load, whole_gradients=False),
        "half of data.max_tokens_per_gpu or data.micro_batch_size_per_gpu": replace(
            load, tokens=load.tokens // 2, logits=load.logits // 2
        ),
        "trainer.async_save=false": replace(load, snapshot=False),
        "twice as many ranks": replace(load, ranks=2 * load.ranks),
        "model.fsdp_config.model_dtype=bf16": replace(load, master_bytes=2),
    }
    if load.checkpointing is None:
        turned[f"{checkpointing} model.gradient_checkpointing_kind=selective"] = replace(
            load, checkpointing="selective"
        )
    if can_offload:
        turned["model.fsdp_config.cpu_offload=true"] = replace(load, offload=True)
    saved = {knob: now - estimate(model, other).total for knob, other in turned.items()}
    return {knob: saved[knob] for knob in sorted(saved, key=lambda knob: -saved[knob]) if saved[knob] > 0}


def gigabytes(number: int) -> str:
    """Write a number of bytes as "1.3 GB" or "12 MB"; GB = 1e9 bytes, as perf/max_memory_allocated_gb."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def model_size(model: PreTrainedModel, layers: list[torch.nn.Module]) -> ModelSize:
    """Measure a model, which may lie on the meta device."""
    config = model.config.get_text_config()
    heads = largest_of(config, "num_attention_heads")  # Mamba and RWKV have none
    head_width = largest_of(config, "head_dim") or config.hidden_size // max(heads, 1)
    parameters = list(model.parameters())
    in_layers = [sum(weight.numel() for weight in layer.parameters()) for layer in layers]
    everything = sum(weight.numel() for weight in parameters)
    head = model.get_output_embeddings()
    return ModelSize(
        trainable=sum(weight.numel() for weight in parameters if weight.requires_grad),
        frozen=sum(weight.numel() for weight in parameters if not weight.requires_grad),
        layer=max(in_layers),
        outside=everything - sum(in_layers),
        layers=len(layers),
        width=config.hidden_size,
        query_width=heads * head_width,
        key_width=(largest_of(config, "num_key_value_heads") or heads) * head_width,
        mlp_width=_mlp_width(config),
        vocabulary=config.vocab_size,
        head_trains=any(weight.requires_grad for weight in head.parameters()) if head is not None else True,
        fused_loss=getattr(model, "logit_form", None) is not None,
    )


def device_bytes(device: torch.device) -> int:
    """Return the bytes that one rank may use: of its GPU, or its share of what this container or computer has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if Path(file).is_file() and (text := Path(file).read_text().strip()).isdecimal():
            limit = min(limit, int(text))
    return limit // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _mlp_width(config: PretrainedConfig) -> int:
    experts, width = largest_of(config, "num_experts_per_tok"), largest_of(config, "intermediate_size")
    if experts:
        return experts * (largest_of(config, "moe_intermediate_size") or width)
    return width or 4 * config.hidden_size
