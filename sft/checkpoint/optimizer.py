"""This module names what an optimizer remembers of each weight, so that a checkpoint can hold it, whatever it is.

What is remembered has one of three forms:

    cut as the weight is (AdamW's moments), or a DTensor    `exp_avg/NAME`       goes on with any number of ranks
    anything else: scales of blocks, plain numbers          `scale/NAME@BOX`     goes on where a rank holds the part BOX
                                                                                 of the weight; equal numbers anywhere
    `step`, the count of updates                            not stored where it is the run's own count
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sft.checkpoint.manifest import CheckpointError
from sft.parallel.shards import StoredTensors, is_first_holder, local_box, local_part

STEP = "step"
"""What torch's optimizers call the updates of a weight: as many as the run has made, unless the weight missed some."""

MODEL = "model"
"""What stands in front of a weight's own name in a checkpoint."""

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Remembered:
    """What an optimizer remembers, by the name it has in a checkpoint. The tensors share the optimizer's memory."""

    cut: dict[str, torch.Tensor] = field(default_factory=dict)  # every rank holds its part
    own: dict[str, torch.Tensor] = field(default_factory=dict)  # of the part that this rank is the first to hold


def remembered(weights: Weights, optimizer: torch.optim.Optimizer, updates: int) -> Remembered:
    """Return everything the optimizer remembers of `weights`. Raises TypeError for what is no tensor and no number."""
    found, steps = Remembered(), {}
    for name, weight in weights.items():
        for key, value in _leaves(optimizer.state.get(weight, {})):
            if key != STEP and (cut := _cut_as(weight, value)) is not None:
                found.cut[f"{key}/{name}"] = cut
            elif is_first_holder(weight):
                bound = steps if key == STEP else found.own
                bound[f"{key}/{name}{_box_of(weight)}"] = _as_tensor(value, f"{key} of {name}")
    if steps:  # one wait for the device, not one per weight
        counts = torch.stack([step.double() for step in steps.values()]).tolist()
        found.own.update({key: steps[key] for key, count in zip(steps, counts, strict=True) if count != updates})
    return found


def restore(
    weights: Weights, optimizer: torch.optim.Optimizer, updates: int, stored: StoredTensors, about: str
) -> None:
    """Make the optimizer remember what a checkpoint holds. about: the checkpoint, for messages.

    Raises CheckpointError where another optimizer wrote it, or where parts of weights are bound to ranks that held
    other parts.
    """
    if updates == 0:
        return
    _remember_something(optimizer)
    theirs = _keys_by_weight(stored)
    cut = {}
    for name, weight in weights.items():
        state = optimizer.state.get(weight, {})
        ours = {key for key, _ in _leaves(state)} - {STEP}
        if ours and theirs and name not in theirs:
            del optimizer.state[weight]  # it never had a gradient: nothing was remembered of it
            continue
        if ours != theirs.get(name, set()) - {STEP}:
            raise CheckpointError(_another_optimizer(about, name, ours, theirs.get(name, set())))
        for key, value in list(_leaves(state)):
            if key != STEP and (target := _cut_as(weight, value)) is not None:
                cut[f"{key}/{name}"] = target
                continue
            found = _find_bound(key, name, weight, stored, updates, about)
            if isinstance(value, torch.Tensor):
                _copy(found, value, f"{key} of {name}", about)
            elif found is not None:
                state[key] = type(value)(found.item())
    for full_name, tensor in cut.items():
        if full_name not in stored.parts or stored.shape(full_name) != tuple(tensor.shape):
            raise CheckpointError(f"{about} is of another optimizer: {full_name} has another shape there.")
    stored.copy_into(cut)


def keys_of(stored: StoredTensors) -> set[str]:
    """Return what a checkpoint's optimizer remembers of its weights, such as exp_avg."""
    return {key for keys in _keys_by_weight(stored).values() for key in keys}


def _keys_by_weight(stored: StoredTensors) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for full_name in stored.parts:
        key, _, name = full_name.partition("/")
        if key != MODEL:
            found.setdefault(name.partition("@")[0], set()).add(key)
    return found


@torch.no_grad()
def _remember_something(optimizer: torch.optim.Optimizer) -> None:
    """Take one step of no length, so that the optimizer creates all that it remembers.

    The weights must be read after it. Nobody else knows what an optimizer creates, in which dtype and class.
    """
    lengths = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad()
    for group, lr in zip(optimizer.param_groups, lengths, strict=True):
        group["lr"] = lr


def _leaves(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what one weight's state holds, by name. A tensor made of several, such as codes and scales, is these."""
    for key, value in state.items():
        local = local_part(value) if isinstance(value, torch.Tensor) else value
        if isinstance(local, torch.Tensor) and is_traceable_wrapper_subclass(local):
            yield from ((f"{key}.{inner}", getattr(local, inner)) for inner in local.__tensor_flatten__()[0])
        elif value is not None:
            yield key, value


def _cut_as(weight: torch.Tensor, value: Any) -> torch.Tensor | None:
    """Return `value` as a tensor that knows which part of the whole it is; None if it is not cut as the weight is."""
    if isinstance(value, DTensor):
        assert not any(placement.is_partial() for placement in value.placements), "half of a sum is no state"
        return value
    if not isinstance(value, torch.Tensor) or value.shape != local_part(weight).shape:
        return None
    if not isinstance(weight, DTensor):
        return value
    mesh, placements = weight.device_mesh, weight.placements
    return DTensor.from_local(
        value, mesh, placements, run_check=False, shape=weight.shape, stride=weight.stride()
    )  # the same memory


def _as_tensor(value: Any, what: str) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, int | float):
        return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    kind = type(value).__name__
    raise TypeError(f"the optimizer remembers a {kind} as {what}; a checkpoint holds tensors and numbers")


def _box_of(weight: torch.Tensor) -> str:
    """Name the part of a weight that this rank holds: `@0,0+8,4` begins at offset 0,0 and has shape 8,4."""
    box = local_box(weight)
    offset, shape = (",".join(map(str, numbers)) for numbers in (box.offset, box.shape))
    return f"@{offset}+{shape}"


def _find_bound(
    key: str, name: str, weight: torch.Tensor, stored: StoredTensors, updates: int, about: str
) -> torch.Tensor | None:
    """Return what belongs to this rank's part of a weight; None if the part is empty and nothing belongs to it."""
    if (bound := f"{key}/{name}{_box_of(weight)}") in stored.parts:
        return stored.read(bound)
    others = [stored.read(other) for other in stored.parts if other.startswith(f"{key}/{name}@")]
    if key == STEP and not others:
        return torch.tensor(float(updates))
    if others and others[0].ndim == 0 and all(torch.equal(others[0], other) for other in others):
        return others[0]
    if local_part(weight).numel() == 0:
        return None
    raise CheckpointError(
        f"{about} holds {key} of {name} for the parts that its own ranks held, and this run cuts the weights "
        "differently. Resume on as many ranks as wrote it, with the same model.fsdp_config.dp_replicate and "
        "optim.name, or begin another run with its weights: trainer.init_from_checkpoint."
    )


def _copy(found: torch.Tensor | None, value: torch.Tensor, what: str, about: str) -> None:
    if found is None:
        return
    if value.shape != found.shape:
        shapes = f"{list(found.shape)} there and {list(value.shape)} here"
        raise CheckpointError(f"{about} is of another optimizer: {what} has shape {shapes}.")
    value.copy_(found)


def _another_optimizer(about: str, name: str, ours: set[str], theirs: set[str]) -> str:
    held, kept = (", ".join(sorted(keys)) or "nothing" for keys in (theirs - {STEP}, ours))
    return (
        f"{about} is of another optimizer: it remembers {held} of {name}, and this run's optimizer {kept}. Leave "
        "optim.name as it was, or begin another run with its weights: trainer.init_from_checkpoint."
    )
