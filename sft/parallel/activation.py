"""Change how layers run: compute activations again in backward instead of keeping them; compile them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

MATMULS = {"aten::mm", "aten::addmm", "aten::_scaled_mm"}
MATMULS_OF_EXPERTS = {"aten::_grouped_mm"}
ATTENTION = ("scaled_dot_product", "attn", "flash_attention", "flex_attention")
"""Parts of the names of kernels that compute attention without a [T, T] matrix: of torch, flash-attn and others."""


def checkpoint_activations(layers: Sequence[torch.nn.Module], *, selective: bool) -> None:
    """Keep only the input of every layer; the rest is computed again in backward. Same numbers, less memory.

    selective: keep the results of matmuls and attention as well, which take nearly all of the time to compute and
    less than half of the memory to keep.
    """
    for layer in layers:
        # transformers adds the bias of experts to their products in place: one that was kept would be another.
        spoiled = any(getattr(module, "has_bias", False) for module in layer.modules())
        keep = functools.partial(_keep, MATMULS if spoiled else MATMULS | MATMULS_OF_EXPERTS)
        contexts = {"context_fn": functools.partial(create_selective_checkpoint_contexts, keep)} if selective else {}
        forward = layer.forward
        # Inside of the module's call, where FSDP2 has gathered its weights, and not around it.
        layer.forward = functools.wraps(forward)(
            functools.partial(checkpoint, forward, use_reentrant=False, **contexts)
        )


def compile_layers(layers: Sequence[torch.nn.Module]) -> None:
    """Compile every layer by itself, equal ones once, for any length. After checkpointing, before sharding."""
    # Layers share their code: each kind of it, in training and in validation, counts as one.
    torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
    for layer in layers:
        # Lengths are symbols from the first batch on: those of rows, of the longest sample, of the list of boundaries.
        layer.forward = torch.compile(layer.forward, dynamic=True)


def stays_with_selective(operator: Any, matmuls: set[str] = MATMULS | MATMULS_OF_EXPERTS) -> bool:
    """Return True if selective checkpointing keeps the result of `operator`."""
    name = operator.name().partition(".")[0]
    return name in matmuls or any(part in name for part in ATTENTION)


def _keep(matmuls: set[str], _: Any, operator: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    kept = stays_with_selective(operator, matmuls)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
