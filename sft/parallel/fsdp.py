"""FSDP2: every rank keeps a part of each weight, gathers a layer while it computes, and sums gradients."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard


def shard(model: torch.nn.Module, layers: list[torch.nn.Module], mesh: DeviceMesh, compute_dtype: torch.dtype) -> None:
    """Shard `model` in place over `mesh`: one group per layer, one for what remains (embeddings, norm, head).

    Layers compute in compute_dtype; gradients are reduced in fp32 and are *sums* over the ranks, because the
    loss is divided by the token count of the whole step before backward.
    """
    precision = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(model, mesh=mesh, mp_policy=precision)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # gloo cannot pre-multiply, so the divide factor alone would fail on CPU.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
