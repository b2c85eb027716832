"""Estimate each rank's memory from the plan and the skeleton of the model, before the model is built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedModel

from sft.config import SftConfig
from sft.data.dataset import Dataset
from sft.data.order.plan import Plan
from sft.errors import OwnMishapError
from sft.model.load import decoder_layers
from sft.model.loss_form import LOSS_KERNELS
from sft.model.memory import Load, ModelSize, device_bytes, estimate, gigabytes, model_size, savings
from sft.model.place import DTYPES, own_ends
from sft.parallel.host_memory import resident_bytes
from sft.parallel.lost_ranks import is_out_of_memory
from sft.parallel.world import World, max_over_all_ranks
from sft.train.forecast import Forecast, forecast, plan_of
from sft.train.optim import OPTIMIZERS

STEPS = 8  # of the first epoch: enough to say how much is padding, and how large a micro-batch becomes
ROOM = 0.8  # share of a device's memory that an estimate may fill: it knows nothing of fragments and libraries
BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Footprint:
    """The estimate for a run, and the memory that its ranks have."""

    model: ModelSize
    load: Load
    ranks: int
    device: str = "cuda"
    device_bytes: int = 0  # of one rank; 0: nobody looked
    process_bytes: int = 0  # that a rank takes of the same memory before there is a model: Python and its libraries
    reduce_once: bool = True  # sum gradients over the ranks once per step, as asked or because there is room

    def fits(self) -> bool:
        """Return True if the estimate leaves room on the device."""
        needed = estimate(self.model, self.load).total + self.process_bytes
        return not self.device_bytes or needed <= ROOM * self.device_bytes

    def line(self) -> str:
        """Write the estimate in one line; where it does not fit, with what would save memory."""
        has = f"; a rank has {gigabytes(self.device_bytes)}" if self.device_bytes else ""
        told = f"memory: about {estimate(self.model, self.load)}{self._beside()}{has}"
        return told if self.fits() else f"{told}. This may not fit. {self._savings()}"

    def table(self) -> str:
        """Write the estimate, and every key that saves memory, in a few lines."""
        model, ranks = self.model, self.ranks
        trains = f", {model.trainable / 1e6:,.1f} M of them train" if model.frozen else ""
        return "\n".join(
            [
                f"memory: an estimate for {ranks} rank{'s' * (ranks > 1)}, a model of "
                f"{(model.trainable + model.frozen) / 1e6:,.1f} M parameters{trains}, and micro-batches of up to "
                f"{self.load.tokens:,} tokens per rank",
                f"  {estimate(model, self.load)}{self._beside()}",
                *[f"  {told}" for told in [self._savings()] if told],
            ]
        )

    def _beside(self) -> str:
        return f"; {gigabytes(self.process_bytes)} for Python and its libraries" if self.process_bytes else ""

    def _savings(self) -> str:
        saved = savings(self.model, self.load, can_offload=self.device != "cpu")
        return "would save: " * bool(saved) + "; ".join(f"{knob} {gigabytes(size)}" for knob, size in saved.items())


def footprint(
    config: SftConfig,
    model: PreTrainedModel,
    dataset: Dataset,
    ranks: int,
    *,
    device: str = "cuda",
    device_bytes: int = 0,
    process_bytes: int = 0,
    supervised_tokens: np.ndarray | None = None,
) -> Footprint:
    """Estimate the memory of `config` on `ranks` ranks. model: its skeleton, adapters inside. Looks at some steps.

    supervised_tokens: of every sample, where somebody counted them
    """
    view = look_ahead(config, dataset, ranks, supervised_tokens)
    load = load_of(
        config,
        ranks=ranks,
        tokens=view.most_positions // view.sp_size,
        logits=view.most_logits // view.sp_size,
        device=device,
    )
    size = size_of(config, model)
    load = replace(load, several_micro_batches=view.micro_batches > 1)
    plain = Footprint(size, load, ranks, device, device_bytes, process_bytes, reduce_once=False)
    whole = replace(plain, load=replace(load, whole_gradients=True), reduce_once=True)
    has_room = whole.fits() and not load.offload  # what was offloaded for want of memory must not come back
    when = config.model.fsdp_config.reduce_gradients
    if when == "once" or (when == "auto" and has_room):
        return whole if view.micro_batches > 1 else replace(plain, reduce_once=True)
    return plain


def size_of(config: SftConfig, model: PreTrainedModel) -> ModelSize:
    """Return the sizes of the skeleton `model` as `config` will compute and shard it."""
    dtype = DTYPES[config.model.fsdp_config.compute_dtype]
    return model_size(model, decoder_layers(model), dtype, own_ends(model))


def load_of(config: SftConfig, *, ranks: int, tokens: int, logits: int, device: str) -> Load:
    """Return how `config` uses a model on `ranks` ranks. tokens, logits: of the largest micro-batch of one rank."""
    model, fsdp, trainer = config.model, config.model.fsdp_config, config.trainer
    return Load(
        ranks=ranks // fsdp.dp_replicate,
        tokens=tokens,
        logits=logits,
        master_bytes=BYTES[fsdp.model_dtype],
        compute_bytes=BYTES[fsdp.compute_dtype],
        # Without LoRA a frozen weight lies among those that train, in their dtype.
        frozen_bytes=None if model.lora_rank else BYTES[fsdp.model_dtype],
        optimizer_bytes=OPTIMIZERS[config.optim.name].state_bytes,
        embedding_bytes=OPTIMIZERS[config.optim.name].bytes_in_embeddings,
        checkpointing=model.gradient_checkpointing_kind if model.enable_gradient_checkpointing else None,
        offload=(fsdp.cpu_offload or fsdp.offload_params) and device != "cpu",
        activations_on_host=config.model.activation_offload and device != "cpu",
        whole_weights=not fsdp.reshard_after_forward,
        on_cpu=device == "cpu",
        loss_kernel=LOSS_KERNELS[model.loss_kernel],
        # A GPU's checkpoints are copied to the CPU.
        snapshot=device == "cpu" and trainer.async_save and trainer.save_freq not in (-1, 0),
    )


def footprint_of_run(config: SftConfig, skeleton: PreTrainedModel, train: Dataset, world: World) -> Footprint:
    """Estimate the memory of this run, the same on every rank: by the smallest device, and some steps' samples."""
    plan, counted = plan_of(config, train), np.zeros(len(train), np.int64)
    for step in steps_to_look_at(plan, curriculum=config.data.curriculum is not None):
        for index in plan.samples(step):
            counted[index] = train.supervised_tokens(index)
    on_cpu = world.device.type == "cpu"
    smallest, process = max_over_all_ranks(-device_bytes(world.device), resident_bytes() if on_cpu else 0)
    return footprint(
        config,
        skeleton,
        train,
        world.size,
        device=world.device.type,
        device_bytes=int(-smallest),
        process_bytes=int(process),
        supervised_tokens=counted,
    )


def steps_to_look_at(plan: Plan, *, curriculum: bool) -> list[int]:
    """Return the first steps of an epoch; with a curriculum, whose first steps are the easy ones, also the last."""
    steps = range(1, plan.steps_per_epoch + 1)
    first, last = list(steps[:STEPS]), list(steps[STEPS:][-STEPS:])
    return first + last if curriculum else first


def look_ahead(
    config: SftConfig, dataset: Dataset, ranks: int, supervised_tokens: np.ndarray | None = None
) -> Forecast:
    """Forecast the run on these ranks from some of its steps."""
    plan, sp_size = plan_of(config, dataset), config.ulysses_sequence_parallel_size
    return forecast(
        dataset,
        plan,
        steps=steps_to_look_at(plan, curriculum=config.data.curriculum is not None),
        dp_size=ranks // sp_size,
        sp_size=sp_size,
        supervised_tokens=supervised_tokens,
    )


class OutOfMemory(OwnMishapError):
    """A rank had no memory left; the message says what takes how much, and what would save some."""


@contextmanager
def explaining_memory(footprint: Footprint, what: str) -> Iterator[None]:
    """Turn the error of an allocator into OutOfMemory with the estimate. what: what this rank was doing."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        said = str(error).strip().partition("\n")[0]
        raise OutOfMemory(f"out of memory in {what} ({said})\n{footprint.table()}") from error
