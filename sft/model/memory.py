"""What a run needs of a GPU's memory, from sizes alone: an estimate, in bytes per rank.

Weights, gradients and what the optimizer remembers are split over the ranks that share them: ZeRO stage 3, Rajbhandari
et al. 2019. They are not all there at once. A step is fullest at one of five moments, and the estimate is that one:

    forward begins       the embedding and the first layer, twice: as they were sent and in place
    the loss             all activations; the LM head gathered, a chunk of its logits, its gradient in fp32
    backward begins      all activations, one layer's computed again where layers are checkpointed; two layers gathered,
                         the gradients of one whole and being summed
    backward ends        one layer's activations, two layers gathered, the gradients of all layers
    the last gradients   no activations; all gradients, the embedding's whole and being summed

What layers keep for backward is measured on their skeleton (kept.py). scripts/simulate_step.py holds the estimate
against whole steps (docs/performance.md). What it leaves out: fragments of the allocator, buffers of NCCL, CUDA itself
(some GB).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from sft.model.head import CHUNK, WEIGHT_ROWS, WHOLE_LOGITS_CHUNK
from sft.model.kept import Kept, kept_for_backward
from sft.model.loss_form import BY_TORCH, LossKernel
from sft.model.quantised import PACKED_BYTES, as_whole, is_packed
from sft.parallel.host_memory import limit_bytes


@dataclass(frozen=True)
class ModelSize:
    """What memory depends on. Parameters are counted once, tied or not."""

    trainable: int
    frozen: int
    layer: int  # parameters of the largest decoder layer
    first: int  # parameters that are gathered when forward begins: the embedding, and what belongs to no group
    at_loss: int  # while the loss is computed: the LM head, and what belongs to no group
    layers: int
    width: int
    vocabulary: int
    kept: Kept  # for backward, in compute dtype
    layer_trains: int  # of `layer`, those that train
    last_trains: int  # of the groups whose gradients are summed last: the embedding, and what belongs to no group
    head_trains: bool = True
    head_apart: bool = False  # its gradient is summed, and its weight given back, when backward begins
    fused_loss: bool = True  # there are never all logits of a micro-batch
    in_embeddings: int = 0  # of those that train
    packed: int = 0  # of the frozen: kept in 4 bits, all of them in layers
    packed_layer: int = 0  # of `layer`
    largest_packed: int = 0  # of one module, whose weights are unpacked while it computes
    adapted: int = 0  # of the frozen: experts that adapters are added to while their layer computes
    adapted_layer: int = 0  # of `layer`

    @property
    def everything(self) -> int:
        return self.trainable + self.frozen


@dataclass(frozen=True)
class Load:
    """How a run uses the model. tokens and logits: of the largest micro-batch of one rank, padding included."""

    ranks: int  # that share the states between them
    tokens: int
    logits: int  # rows: the positions that the LM head meets
    master_bytes: int  # of a weight that trains, and of its gradient
    compute_bytes: int
    optimizer_bytes: Callable[[int], float]  # what the optimizer remembers of a weight of that many master bytes
    embedding_bytes: Callable[[int], float] | None = None  # the same of a weight of embeddings; None: as of others
    frozen_bytes: int | None = None  # of a weight that does not train; None: compute_bytes
    checkpointing: Literal["full", "selective"] | None = None
    offload: bool = False  # states live in CPU memory
    activations_on_host: bool = False  # what layers keep for backward lives in CPU memory
    whole_weights: bool = False  # kept by every rank from forward to the end of the step
    several_micro_batches: bool = False  # in a step: the first ones leave gradients
    whole_gradients: bool = False  # these are kept whole by every rank, in fp32, until the last micro-batch
    on_cpu: bool = False  # else on a GPU
    loss_kernel: LossKernel = BY_TORCH
    snapshot: bool = False  # checkpoints are copied into this memory, and written while training goes on


@dataclass(frozen=True)
class Memory:
    """Bytes per rank at one moment of a step."""

    moment: str
    weights: int
    optimizer: int
    gradients: int  # this rank's parts, whole ones of earlier micro-batches, those that are being summed
    gathered: int  # whole layers while they compute
    activations: int
    logits: int
    snapshot: int  # the copy of weights and optimizer that the last checkpoint was written from

    @property
    def parts(self) -> dict[str, int]:
        return {name: size for name, size in vars(self).items() if name != "moment"}

    @property
    def total(self) -> int:
        """Return all parts together, in bytes."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        told = ", ".join(f"{name} {gigabytes(size)}" for name, size in self.parts.items() if size)
        return f"{gigabytes(self.total)} per rank, when {self.moment}: {told}"


def estimate(model: ModelSize, load: Load) -> Memory:
    """Return the memory of one rank at the moment of a step when it is fullest."""
    return max(moments(model, load), key=lambda memory: memory.total)


def moments(model: ModelSize, load: Load) -> list[Memory]:
    """Return the memory of one rank at the moments of a step when it may be fullest, in their order."""
    n, m, c = load.ranks, load.master_bytes, load.compute_bytes
    here = 0 if load.offload else 1
    of_embeddings = (load.embedding_bytes or load.optimizer_bytes)(m)
    others = model.trainable - model.in_embeddings
    remembered = int(others * load.optimizer_bytes(m) + model.in_embeddings * of_embeddings)
    of_frozen = (model.frozen - model.packed) * (load.frozen_bytes or c) + int(model.packed * PACKED_BYTES)
    weights = here * (model.trainable * m + of_frozen) // n
    snapshot = (model.trainable * m + remembered) // n if load.snapshot else 0
    shared_gradients = here * model.trainable * m // n
    earlier = 0
    if load.several_micro_batches:
        earlier = 4 * model.trainable if load.whole_gradients else shared_gradients

    inputs = 0
    if load.checkpointing:
        inputs = int(load.tokens * (c * model.width * model.layers + model.kept.results * _is_selective(load)))
    # Of experts with adapters, W + s·BA is kept, and has a gradient as large.
    one_layer = int(load.tokens * model.kept.layer) + 2 * c * model.adapted_layer
    all_layers = int(load.tokens * model.kept.layers) + c * (model.adapted + model.adapted_layer)
    if load.activations_on_host:  # all but what computes and what travels; torch itself holds selected results
        inputs = int(load.tokens * model.kept.results) if _is_selective(load) else 0
        all_layers = min(2 * one_layer, all_layers)
    last_norm = load.tokens * model.width * (4 + 2 * c)

    head = model.vocabulary * model.width
    alone = model.at_loss - head if model.head_apart else model.at_loss  # stays whole through backward
    # Gathered weights are counted in numbers of compute dtype; packed ones are less, but for the one that computes.
    layer = model.layer - int(model.packed_layer * (1 - PACKED_BYTES / c)) + model.largest_packed
    everything = model.everything - int(model.packed * (1 - PACKED_BYTES / c)) + model.largest_packed
    sent = layer - model.largest_packed if n > 1 else 0  # of the next layer, on its way
    of_head = 0 if model.head_apart or not model.head_trains else c * head  # its gradient, whole until the end
    head_summed = 4 * head if model.head_apart and model.head_trains else 0

    def gathered(parameters: int, *, sent: int) -> int:
        return c * ((everything if load.whole_weights else parameters) + sent)

    def being_summed(parameters: int) -> int:
        """Whole gradients of a group in compute dtype, and their copy in fp32 that is summed over the ranks."""
        return (c + 4) * parameters

    def memory(moment: str, *, gradients: int, gathered: int, activations: int, logits: int = 0) -> Memory:
        return Memory(moment, weights, here * remembered // n, gradients, gathered, activations, logits, snapshot)

    return [
        memory(
            "forward begins",
            gradients=earlier,
            gathered=gathered(model.first + layer, sent=model.first + sent if n > 1 else 0),
            activations=0,
        ),
        memory(
            "the loss is computed",
            gradients=earlier,
            gathered=gathered(model.at_loss, sent=(head if model.head_apart else layer) if n > 1 else 0),
            activations=(inputs or all_layers) + last_norm,
            logits=_fused_loss(model, load) if model.fused_loss else _whole_logits(model, load),
        ),
        memory(
            "backward begins",
            gradients=earlier + of_head + max(being_summed(model.layer_trains), head_summed + c * model.layer_trains),
            gathered=gathered(alone + layer, sent=sent),
            activations=inputs + one_layer if inputs else all_layers,
        ),
        memory(
            "backward ends",
            gradients=shared_gradients + of_head + being_summed(model.layer_trains),
            gathered=gathered(alone + layer, sent=sent),
            activations=one_layer,
        ),
        memory(
            "the last gradients are summed",
            gradients=shared_gradients + being_summed(model.last_trains),
            gathered=0,
            activations=0,
        ),
    ]


def _is_selective(load: Load) -> bool:
    return load.checkpointing == "selective"


def _fused_loss(model: ModelSize, load: Load) -> int:
    """Count the logits of one chunk and their gradients, those of what the LM head met, and of its weight, in fp32."""
    c, copy = load.compute_bytes, 0 if load.compute_bytes == 4 else load.compute_bytes
    rows = min(load.logits, CHUNK["cpu" if load.on_cpu else "gpu"])
    of_weight = model.width * (4 * model.vocabulary + copy * min(WEIGHT_ROWS, model.vocabulary))
    head = of_weight if model.head_trains and load.logits else 0
    return model.vocabulary * rows * load.loss_kernel.logit_bytes(c) + c * model.width * load.logits + head


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
        turned["model.activation_offload=true"] = replace(load, activations_on_host=True)
        turned["model.fsdp_config.cpu_offload=true"] = replace(load, offload=True)
    saved = {knob: now - estimate(model, other).total for knob, other in turned.items()}
    return {knob: saved[knob] for knob in sorted(saved, key=lambda knob: -saved[knob]) if saved[knob] > 0}


def gigabytes(number: int) -> str:
    """Write a number of bytes as "1.3 GB" or "12 MB"; GB = 1e9 bytes, as perf/max_memory_allocated_gb."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def model_size(
    model: PreTrainedModel,
    layers: list[torch.nn.Module],
    compute_dtype: torch.dtype = torch.bfloat16,
    ends: Sequence[torch.nn.Module] = (),
) -> ModelSize:
    """Return the sizes of a skeleton whose layers are neither checkpointed nor sharded yet.

    ends: embedding and LM head, those of them that are groups of their own
    """
    config = model.config.get_text_config()
    largest = max(layers, key=_numbers)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    head_apart = any(end is head for end in ends)
    grouped = [*layers, *ends]
    trainable, everything = _numbers(model, trains=True), _numbers(model)
    alone, alone_trains = (
        of_all - sum(_numbers(group, trains) for group in grouped)
        for of_all, trains in ((everything, False), (trainable, True))
    )
    first, first_trains = (sum(_numbers(end, trains) for end in ends if end is embedding) for trains in (False, True))
    return ModelSize(
        trainable=trainable,
        frozen=everything - trainable,
        layer=_numbers(largest),
        first=alone + first,
        at_loss=alone + sum(_numbers(end) for end in ends if end is head),
        layers=len(layers),
        width=config.hidden_size,
        vocabulary=config.vocab_size,
        kept=kept_for_backward(model, layers, compute_dtype),
        layer_trains=_numbers(largest, trains=True),
        last_trains=alone_trains + first_trains,
        head_trains=_numbers(head, trains=True) > 0 if head is not None else True,
        head_apart=head_apart,
        fused_loss=getattr(model, "logit_form", None) is not None,
        in_embeddings=sum(_numbers(module, trains=True) for module in model.modules() if _is_table(module)),
        packed=sum(_packed(model)),
        packed_layer=sum(_packed(largest)),
        largest_packed=max(sum(_packed(module, recurse=False)) for module in largest.modules()),
        adapted=_adapted_experts(model),
        adapted_layer=_adapted_experts(largest),
    )


def _numbers(module: torch.nn.Module, trains: bool = False) -> int:
    """Return how many numbers the parameters of `module` hold. trains: count those alone that train."""
    weights = [weight for weight in module.parameters() if weight.requires_grad or not trains]
    return sum(as_whole(weight).numel() for weight in weights)


def _adapted_experts(module: torch.nn.Module) -> int:
    """Return how many numbers the parameters have around which peft puts adapters (lora.py), asked without peft."""
    wrappers: list[Any] = [each for each in module.modules() if hasattr(each, "parameter_name")]
    return sum(each.get_param().numel() for each in wrappers)


def _is_table(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Embedding)


def _packed(module: torch.nn.Module, *, recurse: bool = True) -> list[int]:
    """Return how many numbers each weight of `module` that is kept in 4 bits stands for."""
    return [as_whole(weight).numel() for weight in module.parameters(recurse) if is_packed(weight)]


def device_bytes(device: torch.device) -> int:
    """Return the bytes that one rank may use: of its GPU, or its share of what this container or computer has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return limit_bytes() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
