"""Take model, optimizer and random state out of a run into a checkpoint, and bring them back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sft.checkpoint.changes import changes, differences, explained
from sft.checkpoint.manifest import STATE_DIR, CheckpointError, read_manifest
from sft.checkpoint.optimizer import MODEL, remembered, restore
from sft.files import let_others_read
from sft.model.names import trained_weights
from sft.parallel.host_memory import HostMemory
from sft.parallel.shards import LocalParts, StoredTensors, copy_local_parts, is_first_holder, local_part
from sft.parallel.world import World, log
from sft.types import TrainState


class Snapshot:
    """What this rank saves, in CPU memory.

    updates: how often the optimizer moved. memory: a copy is made there, so that training may go on while it is
    written; it must be written before the next one is made. None: it must be written before training goes on.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        updates: int,
        world: World,
        memory: HostMemory | None = None,
    ):
        weights = trained_weights(model)  # frozen ones are read from the model again
        moments = remembered(weights, optimizer, updates)
        self._parts: LocalParts = copy_local_parts(named(weights) | moments.cut, memory, own=moments.own)
        self._random_state = _random_state(world)
        self._file_names = _file_names(world.rank)

    def write(self, checkpoint: Path) -> list[str]:
        """Write this rank's files; returns their names within the checkpoint."""
        tensors, rng = self._file_names
        self._parts.write(checkpoint / tensors)
        save_file(self._random_state, checkpoint / rng)
        let_others_read(checkpoint / rng)
        return [tensors, rng]


def state_bytes(model: torch.nn.Module, optimizer: torch.optim.Optimizer, updates: int) -> int:
    """Return the bytes of a Snapshot of this rank."""
    weights = trained_weights(model)
    moments = remembered(weights, optimizer, updates)
    cut = [local_part(tensor) for tensor in (named(weights) | moments.cut).values() if is_first_holder(tensor)]
    return sum(tensor.nbytes for tensor in (*cut, *moments.own.values()))


def load(
    checkpoint: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    world: World,
    fingerprint: dict[str, Any],
    settings: Mapping[str, Any] | None = None,
    force: bool = False,
) -> TrainState:
    """Bring model, optimizer and random state to where `checkpoint` stands, on any number of ranks.

    On the number of ranks that wrote it, the run goes on bit for bit. Raises CheckpointError where the run
    asked for is another one (data, model, seed, batch size); with force, that is only said. settings: of this run, by
    their keys; what else has changed among them is said.
    """
    manifest = read_manifest(checkpoint)
    changed = changes(manifest.get("settings", {}), settings or {})
    if differs := differences(manifest["fingerprint"], fingerprint):
        if not force:
            raise CheckpointError(_another_run(checkpoint, differs, changed))
        told = "; ".join(explained(differs, changed))
        log.warning("trainer.resume_force=true: %s is continued although %s", checkpoint, told)
    for line in changed.values():
        log.info("since %s: %s", checkpoint.name, line)
    state = TrainState.of(manifest["state"])
    weights, random_state = trained_weights(model), _random_state(world)
    stored = stored_state(named(weights), checkpoint)
    restore(weights, optimizer, state.updates, stored, str(checkpoint))
    stored.copy_into(named(weights))
    _restore_random_state(random_state)  # an optimizer may have drawn numbers
    if manifest["world_size"] == world.size:
        _restore_random_state(load_file(checkpoint / _file_names(world.rank)[1]))
    return state


def fill(tensors: dict[str, torch.Tensor], checkpoint: Path) -> None:
    """Copy this rank's part of each tensor out of the checkpoint. Raises CheckpointError if it holds others."""
    stored_state(tensors, checkpoint).copy_into(tensors)


def stored_state(tensors: Mapping[str, torch.Tensor], checkpoint: Path) -> StoredTensors:
    """Open the tensors of a checkpoint. Raises CheckpointError unless these are among them, in these shapes."""
    stored = StoredTensors.of_ranks(checkpoint / STATE_DIR)
    wrong = [
        f"{name} of shape {list(tensor.shape)} is "
        + (f"{list(stored.shape(name))} there" if name in stored.parts else "not there")
        for name, tensor in tensors.items()
        if name not in stored.parts or stored.shape(name) != tuple(tensor.shape)
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{checkpoint} is of another model: {'; '.join(wrong[:3])}{more}.")
    return stored


def named(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights by the names that they have in a checkpoint."""
    return {f"{MODEL}/{name}": weight for name, weight in weights.items()}


def _random_state(world: World) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _another_run(checkpoint: Path, differs: dict[str, str], changed: dict[str, str]) -> str:
    if list(differs) == ["init_from_checkpoint"]:
        return (
            f"{checkpoint} belongs to a run that began elsewhere:\n  {differs['init_from_checkpoint']}\n"
            "Leave trainer.init_from_checkpoint as it was to go on with this run, or begin another one in another "
            "trainer.default_local_dir (trainer.resume_mode=disable begins it here and sets this one aside)."
        )
    return (
        f"{checkpoint} belongs to another run:\n  " + "\n  ".join(explained(differs, changed)) + "\nUse another "
        "trainer.default_local_dir, or trainer.resume_mode=disable to start over. If you know that it is the same "
        "run, trainer.resume_force=true goes on with it."
    )


def _file_names(rank: int) -> tuple[str, str]:
    return f"{STATE_DIR}/rank_{rank:05d}.safetensors", f"{STATE_DIR}/rng_{rank:05d}.safetensors"
