"""Write the part of a tensor that this rank owns to safetensors files, and read it back.

FSDP2 keeps every parameter and optimizer moment as a DTensor: the global tensor is cut into boxes, one per rank.
Loading a model, resuming a checkpoint on the same or on another number of ranks is one operation: copy into my
box whatever the files hold of it. No rank ever reads, or holds, a whole model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from sft.errors import InputError
from sft.files import let_others_read
from sft.parallel.host_memory import HostMemory


@dataclass(frozen=True)
class Box:
    """A rectangular part of a global tensor: where it starts and how far it reaches, per dim."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    def overlap(self, other: Box) -> Box | None:
        """Return the part that both boxes hold, in global coordinates; None if there is none."""
        starts = [max(a, b) for a, b in zip(self.offset, other.offset, strict=True)]
        ends = [
            min(a + n, b + m) for a, n, b, m in zip(self.offset, self.shape, other.offset, other.shape, strict=True)
        ]
        if any(end <= start for start, end in zip(starts, ends, strict=True)):
            return None
        return Box(tuple(starts), tuple(end - start for start, end in zip(starts, ends, strict=True)))

    def slices(self) -> tuple[slice, ...]:
        """Return the index that takes this box out of the global tensor."""
        return tuple(slice(start, start + length) for start, length in zip(self.offset, self.shape, strict=True))

    def slices_within(self, outer: Box) -> tuple[slice, ...]:
        """Return the index that takes this box out of a tensor that holds `outer`."""
        return tuple(
            slice(mine - theirs, mine - theirs + length)
            for mine, theirs, length in zip(self.offset, outer.offset, self.shape, strict=True)
        )


def local_box(tensor: torch.Tensor) -> Box:
    """Return which part of the global tensor this rank holds; all of it for an ordinary tensor."""
    if isinstance(tensor, DTensor):
        shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        return Box(tuple(offset), tuple(shape))
    return Box((0,) * tensor.ndim, tuple(tensor.shape))


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part as an ordinary tensor that shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_part_like(
    weight: torch.Tensor, part: torch.Tensor, shape: tuple[int, ...], *, whole: bool = False
) -> torch.Tensor:
    """Return `part` as this rank's part of a tensor of `shape`, in the same memory.

    It is cut as `weight` is; with `whole`, it lies on every rank.
    """
    if not isinstance(weight, DTensor):
        return part
    mesh = weight.device_mesh
    placements = [Replicate()] * mesh.ndim if whole else weight.placements
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride)


@torch.no_grad()
def whole_tensor(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Gather the global tensor on the CPU of rank 0, which writes, cast before it travels. A collective over its mesh.

    Other ranks get its shape alone, on the meta device: a copy of theirs would make them wait, for nobody.
    """
    tensor = tensor.detach().to(dtype)
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    writes = not dist.is_initialized() or dist.get_rank() == 0
    return whole.cpu().contiguous() if writes else whole.to("meta")


@dataclass(frozen=True)
class StoredPart:
    """One tensor in one safetensors file, and which part of the global tensor it is."""

    file: Path
    key: str
    box: Box


OpenFile = Callable[[Path], Any]
"""Opens a safetensors file, once."""


class StoredTensors:
    """Global tensors by name, spread over safetensors files in one or more parts."""

    def __init__(self) -> None:
        self.parts: dict[str, list[StoredPart]] = {}
        self.dtypes: dict[str, str] = {}  # as safetensors spells them: "BF16", "F32", ...

    @classmethod
    def of_whole_tensors(cls, files: Iterable[Path]) -> Self:
        """Open a Hugging Face model directory: every tensor whole, in exactly one file. Reads headers only."""
        stored = cls()
        for file in files:
            try:
                stored._add_whole_tensors_of(file)
            except SafetensorError as error:
                raise InputError(
                    f"{file} is no whole safetensors file ({error}): it is cut short, or another file under this name; "
                    "download it again."
                ) from error
        return stored

    def _add_whole_tensors_of(self, file: Path) -> None:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                if name in self.parts:
                    raise InputError(f"{name} is in {self.parts[name][0].file} and in {file}; only one can be meant.")
                view = tensors.get_slice(name)
                shape = tuple(view.get_shape())
                self.parts[name] = [StoredPart(file, name, Box((0,) * len(shape), shape))]
                self.dtypes[name] = view.get_dtype()

    @classmethod
    def of_ranks(cls, directory: Path) -> StoredTensors:
        """Open what `LocalParts.write` of all ranks left in `directory`."""
        stored = cls()
        for file in sorted(directory.glob("rank_*.safetensors")):
            with safe_open(file, "pt") as tensors:
                boxes = json.loads(tensors.metadata()["boxes"])
                for name, (offset, shape) in boxes.items():
                    stored.parts.setdefault(name, []).append(StoredPart(file, name, Box(tuple(offset), tuple(shape))))
                    stored.dtypes[name] = tensors.get_slice(name).get_dtype()
        return stored

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the global tensor."""
        ends = [tuple(o + n for o, n in zip(part.box.offset, part.box.shape, strict=True)) for part in self.parts[name]]
        return tuple(max(column) for column in zip(*ends, strict=True))

    def read(self, name: str) -> torch.Tensor:
        """Read the tensor as it is in the file that holds all of it."""
        (part,) = self.parts[name]
        with safe_open(part.file, "pt") as tensors:
            return tensors.get_tensor(part.key)

    def read_part(self, name: str, box: Box) -> torch.Tensor:
        """Read a part of a tensor as it is in the file that holds all of it."""
        (part,) = self.parts[name]
        with ExitStack() as stack:
            return self._piece(part, box.slices(), lambda file: stack.enter_context(safe_open(file, "pt")))

    def read_whole(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Read the global tensor in `dtype`, put together of its parts, on the CPU."""
        tensor = torch.empty(self.shape(name), dtype=dtype)
        self.copy_into({name: tensor})
        return tensor

    @torch.no_grad()
    def copy_into(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fill this rank's part of every tensor, cast to its dtype. Raises ValueError if the files lack some of it."""
        with ExitStack() as stack:
            opened = cache(lambda file: stack.enter_context(safe_open(file, "pt")))
            for name, tensor in tensors.items():
                mine, target = local_box(tensor), local_part(tensor)
                filled = 0
                for part in self.parts[name]:
                    if (both := mine.overlap(part.box)) is None:
                        continue
                    piece = self._piece(part, both.slices_within(part.box), opened)
                    target[both.slices_within(mine)].copy_(piece)
                    filled += piece.numel()
                if filled != target.numel():
                    raise ValueError(f"{name}: the files hold {filled} of the {target.numel()} elements of this rank.")

    def _piece(self, part: StoredPart, index: tuple[slice, ...], opened: OpenFile) -> torch.Tensor:
        """Read one slice of a part."""
        return opened(part.file).get_slice(part.key)[index]


@dataclass(frozen=True)
class LocalParts:
    """The parts of tensors that this rank answers for, copied to the CPU, each with its box."""

    tensors: dict[str, torch.Tensor]
    boxes: dict[str, Box]

    def write(self, file: Path) -> None:
        """Write one safetensors file, for `StoredTensors.of_ranks`."""
        boxes = {name: (box.offset, box.shape) for name, box in self.boxes.items()}
        save_file(self.tensors, file, metadata={"boxes": json.dumps(boxes)})
        let_others_read(file)


def copy_local_parts(
    tensors: Mapping[str, torch.Tensor],
    memory: HostMemory | None = None,
    own: Mapping[str, torch.Tensor] | None = None,
) -> LocalParts:
    """Return what this rank has to save of `tensors`, on the CPU.

    Together the ranks hold every element exactly once: of ranks that hold the same part, the first does.
    memory: a copy is made there, over the one before, which later changes do not reach; None: what is on the CPU
            already is not copied, and must be written before it changes
    own: plain tensors that no other rank has under these names
    """
    mine = {name: tensor for name, tensor in tensors.items() if is_first_holder(tensor)} | dict(own or {})
    parts = {name: local_part(tensor).detach() for name, tensor in mine.items()}
    if memory is not None:
        copies = memory.copy(parts)
    else:
        copies = {name: part.to("cpu").contiguous() for name, part in parts.items()}
    return LocalParts(copies, {name: local_box(tensor) for name, tensor in mine.items()})


def is_first_holder(tensor: torch.Tensor) -> bool:
    """Return True on one rank, of those that hold the same part of a tensor; False where the part is empty."""
    if not isinstance(tensor, DTensor):
        return dist.get_rank() == 0
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None, "this rank is outside of the tensor's mesh"
    copies = [c for c, placement in zip(coordinate, tensor.placements, strict=True) if placement.is_replicate()]
    return local_part(tensor).numel() > 0 and not any(copies)
