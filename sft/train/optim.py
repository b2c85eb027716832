"""Declare the optimizers (OPTIMIZERS, made of those in optimizers.py) and the learning-rate schedules (SCHEDULES).

A schedule is a pure function of the update number, so nothing of it needs saving. To add one of either, add an entry
here and its name in sft/config/schema.py and conf/optim/; a checkpoint holds whatever an optimizer remembers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sft.config.schema import OptimConfig
from sft.model.names import shown_name
from sft.parallel.shards import local_part
from sft.train.groups import parameter_groups
from sft.train.optimizers import BLOCK, Adafactor, AdamW8bit, Lion, ShardedAdamW, ShardedSGD, Two

IN_CACHE = 2**16
"""Elements of a gradient that are summed at a time: in float64 they still fit into a core's cache."""

DECAY_FRACTION_OF_WSD = 0.1
"""Share of the steps after warm-up in which warmup-stable-decay decays (verl: stable_ratio = 0.9)."""


def hidden_matrices(model: torch.nn.Module) -> set[str]:
    """Return the names of the matrices between embeddings and LM head, which Muon is made for; no adapters of LoRA."""
    outside = {id(weight) for module in _embeddings(model) for weight in module.parameters()}
    return {
        shown_name(name)  # as the groups know it
        for name, weight in model.named_parameters()
        if weight.ndim == 2 and id(weight) not in outside and ".lora_" not in name
    }


def in_blocks(model: torch.nn.Module) -> set[str]:
    """Return the names of the matrices whose moments AdamW8bit keeps: whole blocks to a row, and no embeddings.

    A row of embeddings has a gradient in few steps, and codes are too coarse for that (section 2.3 of its paper).
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    return {
        shown_name(name)
        for name, weight in model.named_parameters()
        if weight.ndim > 1 and weight.shape[1:].numel() % BLOCK == 0 and id(weight) not in tables
    }


def _embeddings(model: Any) -> list[torch.nn.Module]:
    tables: list[torch.nn.Module] = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return tables if head is None else [*tables, head]


@dataclass(frozen=True)
class Optimizer:
    """One choice of optim.name."""

    build: Callable[[torch.nn.Module, OptimConfig], torch.optim.Optimizer]
    state_bytes: Callable[[int], float]
    """What it remembers of a parameter whose master weight has that many bytes; for the estimate of memory."""
    bytes_in_embeddings: Callable[[int], float] | None = None
    """The same of the parameters of embeddings; None: as of all others."""


OPTIMIZERS = {
    "adamw": Optimizer(
        build=lambda model, optim: ShardedAdamW(parameter_groups(model, optim), betas=optim.betas, fused=True),
        state_bytes=lambda master_bytes: 2 * master_bytes,  # two moments
    ),
    "muon": Optimizer(
        build=lambda model, optim: Two(
            parameter_groups(model, optim, hidden_matrices(model)),
            lambda groups: torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw"),
            lambda groups: ShardedAdamW(groups, betas=optim.betas, fused=True),
        ),
        state_bytes=lambda master_bytes: 2 * master_bytes,  # at most: one for hidden matrices, two for all others
    ),
    "sgd": Optimizer(
        build=lambda model, optim: ShardedSGD(parameter_groups(model, optim), momentum=optim.betas[0]),
        state_bytes=lambda master_bytes: master_bytes,
    ),
    "adamw_8bit": Optimizer(
        build=lambda model, optim: Two(
            parameter_groups(model, optim, in_blocks(model)),
            lambda groups: AdamW8bit(groups, optim.betas),
            lambda groups: ShardedAdamW(groups, betas=optim.betas, fused=True),
        ),
        state_bytes=lambda master_bytes: 2 * (1 + 4 / BLOCK),  # of matrices: codes, and a scale for every block
        bytes_in_embeddings=lambda master_bytes: 2 * master_bytes,
    ),
    "lion": Optimizer(
        build=lambda model, optim: Lion(parameter_groups(model, optim), optim.betas),
        state_bytes=lambda master_bytes: master_bytes,
    ),
    "adafactor": Optimizer(
        build=lambda model, optim: Adafactor(parameter_groups(model, optim)),
        state_bytes=lambda master_bytes: 4 * 2 / 1024,  # a number for each row and each column, of 1,024 say
    ),
}
"""optim.name. The state of an optimizer, which a checkpoint holds, may be DTensors, tensors cut as the part of a
weight that this rank holds, tensors of other shapes, which belong to that part, and numbers."""


@torch.no_grad()
def squared_norm_of_gradients(model: torch.nn.Module) -> torch.Tensor:
    """Return Σ g² over this rank's parts of all gradients: float64 scalar on their device, no communication."""
    parts = _local_gradients(model)
    if not parts:  # a rank may hold no part of any weight that trains
        return torch.zeros((), dtype=torch.float64)
    if not parts[0].is_cpu:  # in one pass, block by block, and not in a gradient's own bf16
        norms = torch._foreach_norm(parts, 2, torch.float32)  # pyright: ignore[reportPrivateImportUsage]
        return torch.stack(norms).double().square().sum()
    # On a CPU that sum runs through a whole gradient in fp32: 1 % too small at 100 M elements, and other on two ranks.
    total = torch.zeros((), dtype=torch.float64)
    for part in parts:
        for piece in part.reshape(-1).split(IN_CACHE):
            total += (exact := piece.double()).dot(exact)
    return total


@torch.no_grad()
def update(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, grad_norm: torch.Tensor, finite: torch.Tensor, clip: float
) -> None:
    """Take one step with the gradients scaled down to the norm `clip`, or none at all where `finite` is false.

    grad_norm: float64 scalar, finite: bool scalar, the same on every rank. AdamW reads both on their device, and the
    host does not wait for them; other optimizers ask the host.
    """
    too_long = ((grad_norm + 1e-6) / clip).clamp(min=1.0)
    if isinstance(optimizer, ShardedAdamW):
        device = _device_of(optimizer)
        optimizer.grad_scale = too_long.to(device, torch.float32)  # what gradients are divided by
        optimizer.found_inf = finite.logical_not().to(device, torch.float32)
        optimizer.step()
    elif factor := torch.where(finite, 1.0 / too_long, 0.0).item():
        scale_gradients(model, factor)
        optimizer.step()


def _device_of(optimizer: torch.optim.Optimizer) -> torch.device:
    """Return where the weights are: with model.fsdp_config.cpu_offload, not where their gradients were summed."""
    return local_part(optimizer.param_groups[0]["params"][0]).device


@torch.no_grad()
def scale_gradients(model: torch.nn.Module, factor: float) -> None:
    """Multiply all gradients by `factor`, which is the same on every rank."""
    if factor != 1 and (parts := _local_gradients(model)):
        torch._foreach_mul_(parts, factor)  # pyright: ignore[reportPrivateImportUsage]


def _local_gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return [part for gradient in gradients if (part := local_part(gradient)).numel()]


def _half_cosine(progress: float) -> float:
    return (1.0 + math.cos(math.pi * progress)) / 2.0


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": _half_cosine,  # (1 + cos πp) / 2: Loshchilov & Hutter 2017
    # 1 until the last tenth, then the half cosine: Hu et al. 2024; decay as in verl
    "wsd": lambda p: _half_cosine(max(0.0, 1.0 - (1.0 - p) / DECAY_FRACTION_OF_WSD)),
    "linear": lambda p: 1.0 - p,
    "constant": lambda p: 1.0,
}
"""optim.lr_scheduler: the height of the rate over its minimum, in [0, 1], at progress p in (0, 1] after warm-up."""


def lr_at(update: int, total_updates: int, optim: OptimConfig) -> float:
    """Return the learning rate of one update (1 = the first); the last one runs at lr·min_lr_ratio, if it decays.

    Warm-up is linear over `warmup_steps` updates (None: int(total_updates·warmup_steps_ratio)) and ends at `lr`. Then,
    with progress p in (0, 1] over the remaining updates and m = min_lr_ratio, the rate is
    lr·(m + (1 - m)·SCHEDULES[lr_scheduler](p)).

    A run of a single update takes it at `lr`: there is no room to decay.
    """
    lr, minimum, warmup = optim.lr, optim.min_lr_ratio, optim.warmup_steps
    if warmup is None:
        warmup = int(total_updates * optim.warmup_steps_ratio)
    if update <= warmup:
        return lr * update / warmup
    if total_updates == 1:
        return lr
    progress = min(1.0, (update - warmup) / (total_updates - warmup))
    return lr * (minimum + (1.0 - minimum) * SCHEDULES[optim.lr_scheduler](progress))
