"""Shard a model with FSDP2: each rank keeps a part of each weight, gathers a layer to compute it, sums gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.overrides import TorchFunctionMode


@contextmanager
def on_trial(model: torch.nn.Module) -> Iterator[None]:
    """Call a model without training it: dropout is off meanwhile, and its weights are sharded again afterwards."""
    was_training = model.training
    model.eval()
    yield
    for module in model.modules():  # without a backward, the root would stay gathered
        if isinstance(module, FSDPModule):
            module.reshard()
    model.train(was_training)


def class_name(module: torch.nn.Module) -> str:
    """Return the name that a module's author gave its class: fully_shard makes another, with FSDP in front."""
    return next(kind.__name__ for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))


@dataclass(frozen=True)
class Sharding:
    """How the weights are spread, and which memory each rank gives so that it waits less for the others."""

    compute_dtype: torch.dtype
    offload: bool = False  # weights, gradients and optimizer state live in CPU memory
    reshard_after_forward: bool = True  # False: weights stay whole from the first forward of a step to its end
    reduce_once: bool = True  # sum gradients over the ranks once per step; every rank holds whole ones until then
    min_group_params: int = 0  # decoder layers are gathered together until they have that many


def shard(
    model: torch.nn.Module,
    layers: list[torch.nn.Module],
    mesh: DeviceMesh,
    sharding: Sharding,
    *,
    ends: Sequence[torch.nn.Module] = (),
    apart: Sequence[torch.nn.Module] = (),
    in_fp32: Sequence[torch.nn.Module] = (),
) -> None:
    """Shard `model` in place over `mesh`: one group per layer, one for each of `ends`, one for what remains.

    mesh: its last axis shards the weights; where it has two, the first one replicates them. ends: embedding and LM
    head, where their weights are nobody else's (model/place.py); other ones stay in the group of what remains. apart:
    modules that no forward calls; as groups of their own they are never gathered. in_fp32: modules, inside of layers,
    that are groups of their own and compute in fp32 on inputs of whatever dtype.
    Layers compute in compute_dtype; gradients are reduced in fp32 and are *sums* over the ranks, because the
    loss is divided by the token count of the whole step before backward.
    """
    precision = MixedPrecisionPolicy(param_dtype=sharding.compute_dtype, reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if sharding.offload else OffloadPolicy()
    # None: layers give their weights back after forward, and the root, which backward needs at once, does not.
    reshard = None if sharding.reshard_after_forward else False
    exact = MixedPrecisionPolicy(torch.float32, torch.float32, cast_forward_inputs=False)
    for module in in_fp32:
        _fully_shard(module, mesh=mesh, mp_policy=exact, offload_policy=offload, reshard_after_forward=reshard)
    for end in ends:
        # Backward looks up no token, so it does without an embedding's weight. It begins with the LM head, which would
        # be gathered twice in a row.
        is_embedding = isinstance(end, torch.nn.Embedding)
        whole = None if is_embedding and reshard is None else False
        _fully_shard(end, mesh=mesh, mp_policy=precision, offload_policy=offload, reshard_after_forward=whole)
        if is_embedding:
            cast(FSDPModule, end).set_unshard_in_backward(False)
    for group in (*join_layers(layers, sharding.min_group_params), *apart, model):
        _fully_shard(group, mesh=mesh, mp_policy=precision, offload_policy=offload, reshard_after_forward=reshard)
    if mesh.size() == 1:  # nothing is averaged, and a factor would cost a copy of every gradient
        return
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # gloo cannot pre-multiply, so the divide factor alone would fail on CPU.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


class _BytesStayFrozen(TorchFunctionMode):
    """Do not let bytes (a base in 4 bits) require gradients: FSDP2 of torch 2.11 asks it of every part for a moment."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.requires_grad_ and args[0].dtype == torch.uint8:
            return args[0]
        return function(*args, **(kwargs or {}))


def _fully_shard(group: torch.nn.Module | list[torch.nn.Module], **how: Any) -> None:
    with _BytesStayFrozen():
        fully_shard(group, **how)


def join_layers(
    layers: Sequence[torch.nn.Module], min_group_params: int
) -> list[torch.nn.Module | list[torch.nn.Module]]:
    """Group neighbouring layers, in order, until a group holds min_group_params parameters.

    Layers that share weights are neighbours wherever they stand: FSDP2 knows a weight in one group only.
    """
    groups: list[torch.nn.Module | list[torch.nn.Module]] = []
    joined: list[torch.nn.Module] = []
    parameters = 0
    sharing = _sharing_weights(layers)
    for number, same in enumerate(sharing):
        joined += same
        parameters += sum(weight.numel() for weight in same[0].parameters())
        if parameters >= min_group_params or number == len(sharing) - 1:
            groups.append(joined if len(joined) > 1 else joined[0])
            joined, parameters = [], 0
    return groups


def _sharing_weights(layers: Sequence[torch.nn.Module]) -> list[list[torch.nn.Module]]:
    """Return the layers in order, each in a list with those that share weights with it (Zamba's attention)."""
    lists: list[list[torch.nn.Module]] = []
    of_weight: dict[torch.nn.Parameter, list[torch.nn.Module]] = {}
    for layer in layers:
        same = next((of_weight[weight] for weight in layer.parameters() if weight in of_weight), None)
        if same is None:
            lists.append(same := [])
        same.append(layer)
        of_weight |= dict.fromkeys(layer.parameters(), same)
    return lists


def begin_micro_batch(model: torch.nn.Module, sharding: Sharding, *, is_last: bool) -> None:
    """Set whether the next backward sums gradients over the ranks, and whether it gives whole weights back.

    With sharding.reduce_once, only the last micro-batch of a step sums them. Otherwise each does, over the ranks that
    share the weights; replicas of them (dp_replicate) add theirs in the last. Without reshard_after_forward, only the
    last one gives the weights back.
    """
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(is_last or not sharding.reduce_once)
    model.set_requires_all_reduce(is_last)
    model.set_reshard_after_backward(is_last or sharding.reshard_after_forward)
