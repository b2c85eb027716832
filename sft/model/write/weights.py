"""The weights of an export: planned by name, made one at a time, written file by file.

One weight at a time is whole, on rank 0: its file grows tensor by tensor.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from transformers import PreTrainedModel

from sft.errors import InputError
from sft.model.adapter import Adapter
from sft.model.conversion import Conversion, Group, conversion_of
from sft.model.dequantise import stored_weights
from sft.model.load import refuse_misfits
from sft.model.names import changed_weights, has_adapters, named_weights
from sft.model.vocabulary import vocabulary_weights
from sft.model.write.growing_file import DTYPES, GrowingFile
from sft.model.write.side_files import side_file_bytes
from sft.parallel.shards import StoredTensors, whole_tensor
from sft.parallel.world import on_every_rank, on_main_rank

MAX_FILE_BYTES = 5 * 10**9
ROOM_FOR_HEADERS = 10**6
"""Bytes for what is not known yet: names and shapes at the head of each file, the index, the card with its picture."""

Gather = Callable[[str, torch.dtype], torch.Tensor]
"""(name in a model directory, dtype) -> the trained weight, whole, on the CPU. Every rank calls it."""

Make = Callable[[], dict[str, torch.Tensor]]
"""Reads, merges and casts without the other ranks; only the one that writes calls it."""


@dataclass(frozen=True)
class Planned:
    """Tensors to be written, made together, whose sizes are known before they are made."""

    tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]  # by name, in the order in which they are written
    collect: Callable[[], Make]  # every rank calls it

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.tensors.values())


def gather_from(model: PreTrainedModel) -> Gather:
    """Return the function that puts a weight of `model`, which is sharded over the ranks, together on the CPU."""
    weights = named_weights(model)
    return lambda name, dtype: whole_tensor(weights[name], dtype)


def write_weights(
    model: PreTrainedModel,
    source: Path,
    target: Path,
    *,
    write: bool,
    gather: Gather | None = None,
    dtype: torch.dtype | None = None,
) -> set[str]:
    """Write every tensor of `source` with the numbers of `model`, adapters merged into them. Every rank calls it.

    Returns the names that are left out, second names of tied weights. write: on the one rank that writes. gather: how
    to get the numbers; None: out of the model. dtype: of floating-point tensors; None: each as in the source.
    """
    planned, left_out = plan_weights(model, source, gather=gather or gather_from(model), dtype=dtype)
    write_files(planned, target, write=write, beside=_adapter_bytes(model) + side_file_bytes(source))
    return left_out


def plan_weights(
    model: PreTrainedModel, source: Path, *, gather: Gather, dtype: torch.dtype | None
) -> tuple[list[Planned], set[str]]:
    """Plan the tensors of a model directory like `source`, with the numbers of `model`. Every rank calls it.

    Returns the plan and the names of `source` that it leaves out: a tied weight is written once. What training did not
    change is copied from `source`, bit for bit, and nobody has to gather it; so is what the model does not read.
    Raises InputError where there is no way back to the names of `source`.
    """
    found: list[StoredTensors] = []
    on_every_rank(f"reading {source}", lambda: found.append(stored_weights(source)))
    planned, conversion = plan_of(model, found[0], source, gather=gather, dtype=dtype)
    return planned, set(conversion.repeated)


def plan_of(
    model: PreTrainedModel, stored: StoredTensors, source: Path, *, gather: Gather, dtype: torch.dtype | None
) -> tuple[list[Planned], Conversion]:
    """Return what `plan_weights` does and the conversion it is made with, without the other ranks."""
    weights = named_weights(model)
    conversion = conversion_of(model, stored, grown=vocabulary_weights(model, weights))
    refuse_misfits(model, source, conversion)
    changed, adapters = changed_weights(model), adapters_of(model)
    changed |= adapters.keys()
    dtypes = {name: _target_dtype(DTYPES[stored.dtypes[name]], dtype) for name in stored.parts}

    def collect(group: Group) -> Make:
        """Gather the trained weights of `group`; return the function that makes its tensors, as the files hold them."""
        widest = reduce(torch.promote_types, (dtypes[name] for name in group.stored))
        make = _collect(group, conversion, stored, changed, adapters, lambda name: gather(name, widest))

        def revert() -> dict[str, torch.Tensor]:
            return {name: each.to(dtypes[name]) for name, each in conversion.revert(group, make(widest)).items()}

        return revert

    planned = []
    for group in conversion.groups:
        shapes = {name: stored.shape(name) for name in group.stored}
        if group.converter is None:
            shapes = {
                group.stored[0]: tuple(conversion.parts.known[next(iter(group.weights))].shape)
            }  # a vocabulary may have grown
        tensors = {name: (shapes[name], dtypes[name]) for name in group.stored}
        is_changed = not changed.isdisjoint(group.weights)
        planned.append(Planned(tensors, partial(collect, group) if is_changed else _copies(stored, tensors)))
    for name in conversion.unread:
        tensors = {name: (stored.shape(name), dtypes[name])}
        planned.append(Planned(tensors, _copies(stored, tensors)))
    return planned, conversion


def merged_weights(
    model: PreTrainedModel, source: Path, *, gather: Gather, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every weight as the model names it, adapters merged into it. For one process alone."""
    stored = stored_weights(source)
    conversion = conversion_of(model, stored, grown=vocabulary_weights(model, named_weights(model)))
    refuse_misfits(model, source, conversion)
    changed, adapters = changed_weights(model), adapters_of(model)
    changed |= adapters.keys()
    for group in conversion.groups:
        make = _collect(group, conversion, stored, changed, adapters, lambda name: gather(name, dtype))
        yield from ((name, tensor.to(dtype)) for name, tensor in make(dtype).items())


def _collect(
    group: Group,
    conversion: Conversion,
    stored: StoredTensors,
    changed: set[str],
    adapters: Mapping[str, Callable[[], Adapter]],
    gather: Callable[[str], torch.Tensor],
) -> Callable[[torch.dtype], dict[str, torch.Tensor]]:
    """Gather what was trained of a group; return how its weights are made of that and of the files, in a dtype."""
    gathered = {name: gather(name) for name in group.weights if name in changed and name not in adapters}
    merges = {name: adapters[name]() for name in group.weights if name in adapters}

    def make(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        if gathered.keys() == group.weights.keys():
            return gathered
        read = conversion.convert(group, stored.read)
        return read | {name: each.merged_into(read[name], dtype) for name, each in merges.items()} | gathered

    return make


def _copies(stored: StoredTensors, tensors: Mapping[str, tuple[Any, torch.dtype]]) -> Callable[[], Make]:
    """Plan tensors that are read from the files as they are and only cast: return Planned.collect of these."""
    return lambda: lambda: {name: stored.read(name).to(dtype) for name, (_, dtype) in tensors.items()}


def convert_weights(source: Path, target: Path, dtype: torch.dtype | None) -> None:
    """Write every tensor of `source` in another dtype; one process alone calls it, in a world of one."""
    stored = stored_weights(source)
    planned = []
    for name in stored.parts:
        tensors = {name: (stored.shape(name), _target_dtype(DTYPES[stored.dtypes[name]], dtype))}
        planned.append(Planned(tensors, _copies(stored, tensors)))
    write_files(planned, target, write=True)


def write_files(planned: Sequence[Planned], target: Path, *, write: bool, beside: int = 0) -> None:
    """Write model.safetensors, or several files of at most MAX_FILE_BYTES with an index. Every rank calls it.

    beside: bytes that will be written next to them. Raises InputError on every rank: before anything is written, where
    the file system has no room for all of it, and where the one that writes cannot read or write.
    """
    total = sum(plan.size for plan in planned)
    on_main_rank(f"writing {target}", lambda: check_room(target, total + beside))
    weight_map = {}
    for file, plans in _files(planned).items():
        tensors = {name: about for plan in plans for name, about in plan.tensors.items()}
        growing = GrowingFile(target / file, tensors) if write else None
        for plan in plans:
            make = plan.collect()
            if growing is not None:
                growing.append(make)
            del make
        on_main_rank(f"writing {target / file}", growing.close if growing is not None else lambda: None)
        weight_map |= dict.fromkeys(tensors, file)
    if len(set(weight_map.values())) > 1:
        index = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"
        path = target / "model.safetensors.index.json"
        on_main_rank(f"writing {path}", lambda: path.write_text(index))


def check_room(target: Path, weights: int) -> None:
    """Raise InputError if `weights` bytes (of weights and the files beside them) do not fit where `target` lies."""
    needed, free = weights + ROOM_FOR_HEADERS, shutil.disk_usage(target).free
    if free < needed:
        raise InputError(
            f"no room for the model: it needs {needed / 1e9:,.2f} GB, and the file system of {target.parent} has "
            f"{free / 1e9:,.2f} GB free; free {(needed - free) / 1e9:,.2f} GB"
        )


def _target_dtype(stored: torch.dtype, asked: torch.dtype | None) -> torch.dtype:
    return asked if asked is not None and stored.is_floating_point else stored


def adapters_of(model: PreTrainedModel) -> dict[str, Callable[[], Adapter]]:
    """Return how to get the adapter of each adapted weight, by its name; to call one is a collective."""
    if not has_adapters(model):
        return {}
    from sft.model import lora  # needs peft, which other runs do not

    return lora.adapters(model)


def _adapter_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of all that trains in a LoRA run, which an adapter directory holds; 0 without LoRA."""
    trained = [weight for weight in model.parameters() if weight.requires_grad] if has_adapters(model) else []
    return sum(weight.numel() * weight.itemsize for weight in trained)


def _files(planned: Sequence[Planned]) -> dict[str, list[Planned]]:
    """Return the plans of each file by its name; tensors that are made together stand in one file."""
    split = split_state_dict_into_shards_factory(
        {str(number): plan for number, plan in enumerate(planned)},
        get_storage_size=lambda plan: plan.size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=MAX_FILE_BYTES,
    )
    return {file: [planned[int(number)] for number in numbers] for file, numbers in split.filename_to_tensors.items()}
