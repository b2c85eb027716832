"""The weights of an export: planned by name, made one at a time, written file by file.

One tensor at a time is whole on rank 0, one output file at a time in its memory.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from sft.errors import InputError
from sft.model.names import has_adapters, named_weights, optional_names
from sft.model.pretrained import weight_files
from sft.parallel.shards import StoredTensors, whole_tensor
from sft.parallel.world import on_every_rank, on_main_rank

if TYPE_CHECKING:
    from sft.model.lora import Adapter

MAX_FILE_BYTES = 5 * 10**9
ROOM_FOR_SIDE_FILES = 64 * 10**6  # tokenizers of 30 MB exist
DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

Gather = Callable[[str, torch.dtype], torch.Tensor]
"""(name in a model directory, dtype) -> the trained weight, whole, on the CPU. Every rank calls it."""

Make = Callable[[], torch.Tensor]
"""Reads, merges and casts without the other ranks; only the one that writes calls it."""


@dataclass(frozen=True)
class Planned:
    """A tensor to be written, whose size is known before it is made."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    collect: Callable[[], Make]  # every rank calls it

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def gather_from(model: PreTrainedModel) -> Gather:
    """The weights of a model that is sharded over the ranks."""
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
) -> None:
    """Every tensor of `source` with the numbers of `model`, adapters merged into them. Every rank calls it.

    write: on the one rank that writes. gather: how to get the numbers; None: out of the model. dtype: of floating-point
    tensors; None: each as in the source.
    """
    gather = gather or gather_from(model)
    found: list[StoredTensors] = []
    on_every_rank(f"reading {source}", lambda: found.append(StoredTensors.of_whole_tensors(weight_files(source))))
    (stored,) = found
    planned = plan_weights(model, stored, gather=gather, dtype=dtype)
    if planned is None:
        write_renamed_weights(model, stored, target, write=write, gather=gather, dtype=dtype)
    else:
        write_files(planned, target, write=write, beside=_adapter_bytes(model))


def plan_weights(
    model: PreTrainedModel, stored: StoredTensors, *, gather: Gather, dtype: torch.dtype | None
) -> dict[str, Planned] | None:
    """The tensors of a trained model under their stored names; None where only transformers knows these names."""
    weights, adapters = named_weights(model), _adapters(model)
    # What LoRA froze is copied from the source, bit for bit; nobody has to gather it.
    changed = {n for n, w in weights.items() if n in adapters or w.requires_grad} if adapters else set(weights)
    if not changed <= stored.parts.keys():
        return None

    def collect(name: str, dtype: torch.dtype) -> Make:
        if name in adapters:
            adapter = adapters[name]()
            return lambda: adapter.merged_into(stored.read(name), dtype)
        if name in changed:
            weight = gather(name, dtype)
            return lambda: weight
        return lambda: stored.read(name).to(dtype)

    planned, left_out = {}, optional_names(model, stored.parts)
    for name in [name for name in stored.parts if name not in left_out] if adapters else weights:
        shape = tuple(weights[name].shape) if name in weights else stored.shape(name)
        to = _target_dtype(DTYPES[stored.dtypes[name]], dtype)
        planned[name] = Planned(shape, to, partial(collect, name, to))
    return planned


def convert_weights(source: Path, target: Path, dtype: torch.dtype | None) -> None:
    """Every tensor of `source` in another dtype; one process alone calls it, in a world of one."""
    stored = StoredTensors.of_whole_tensors(weight_files(source))

    def collect(name: str, dtype: torch.dtype) -> Make:
        return lambda: stored.read(name).to(dtype)

    planned = {}
    for name in stored.parts:
        to = _target_dtype(DTYPES[stored.dtypes[name]], dtype)
        planned[name] = Planned(stored.shape(name), to, partial(collect, name, to))
    write_files(planned, target, write=True)


def write_files(planned: dict[str, Planned], target: Path, *, write: bool, beside: int = 0) -> None:
    """model.safetensors, or several files of at most MAX_FILE_BYTES with an index. Every rank calls it.

    beside: bytes that will be written next to them. Raises InputError on every rank: before anything is written, where
    the file system has no room for all of it, and where the one that writes cannot read or write.
    """
    total = sum(plan.size for plan in planned.values())
    on_main_rank(f"writing {target}", lambda: check_room(target, total + beside))
    files = list(_pack({name: plan.size for name, plan in planned.items()}, MAX_FILE_BYTES))
    weight_map = {}
    for number, names in enumerate(files, start=1):
        file = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        collected = {}
        for name in names:
            make = planned[name].collect()
            if write:
                collected[name] = make
        on_main_rank(f"writing {target / file}", partial(_write_file, collected, target / file))
        weight_map |= dict.fromkeys(names, file)
    if len(files) > 1:
        index = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"
        path = target / "model.safetensors.index.json"
        on_main_rank(f"writing {path}", lambda: path.write_text(index))


def _write_file(collected: dict[str, Make], file: Path) -> None:
    save_file({name: make().contiguous() for name, make in collected.items()}, file, metadata={"format": "pt"})


def check_room(target: Path, weights: int) -> None:
    """Raises InputError if `weights` bytes and what lies beside them do not fit where `target` lies."""
    needed, free = weights + ROOM_FOR_SIDE_FILES, shutil.disk_usage(target).free
    if free < needed:
        raise InputError(
            f"no room for the model: it needs {needed / 1e9:,.2f} GB, and the file system of {target.parent} has "
            f"{free / 1e9:,.2f} GB free; free {(needed - free) / 1e9:,.2f} GB"
        )


def _target_dtype(stored: torch.dtype, asked: torch.dtype | None) -> torch.dtype:
    return asked if asked is not None and stored.is_floating_point else stored


def write_renamed_weights(
    model: PreTrainedModel,
    stored: StoredTensors,
    target: Path,
    *,
    write: bool,
    gather: Gather,
    dtype: torch.dtype | None,
) -> None:
    """For a model whose weights transformers renames while loading: only it knows the way back.

    The rank that writes holds the whole model, the others one tensor at a time.
    """
    weights = named_weights(model)
    usual, _ = Counter(stored.dtypes.values()).most_common(1)[0]
    dtypes = {name: _target_dtype(DTYPES[stored.dtypes.get(name, usual)], dtype) for name in weights}
    total = sum(weight.numel() * dtypes[name].itemsize for name, weight in weights.items())
    on_main_rank(f"writing {target}", lambda: check_room(target, total + _adapter_bytes(model)))
    adapters, whole = _adapters(model), {}
    for name in weights:
        weight = gather(name, torch.float32 if name in adapters else dtypes[name])
        adapter = adapters[name]() if name in adapters else None
        if write:
            whole[name] = adapter.merged_into(weight, dtypes[name]) if adapter else weight
    save = partial(model.save_pretrained, target, state_dict=whole, max_shard_size=MAX_FILE_BYTES)
    on_main_rank(f"writing {target}", save)


def _adapters(model: PreTrainedModel) -> dict[str, Callable[[], Adapter]]:
    if not has_adapters(model):
        return {}
    from sft.model import lora  # needs peft, which other runs do not

    return lora.adapters(model)


def _adapter_bytes(model: PreTrainedModel) -> int:
    """Of all that trains in a LoRA run: what an adapter directory holds."""
    trained = [weight for weight in model.parameters() if weight.requires_grad] if has_adapters(model) else []
    return sum(weight.numel() * weight.itemsize for weight in trained)


def _pack(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    """Names in order, in groups of at most `limit` bytes."""
    group: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if group and filled + size > limit:
            yield group
            group, filled = [], 0
        group.append(name)
        filled += size
    yield group
