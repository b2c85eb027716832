"""Copy tensors into CPU memory that is used again and again.

New memory is slow: a page that is written for the first time must be found and cleared by the kernel, which takes
several times as long as the copy. And a GPU copies by itself, without waiting, only into memory that is page-locked.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from sft.parallel.world import log

ALIGNMENT = 64  # bytes: any dtype may begin there


def available_bytes(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this computer still gives to processes, within the limits of this container."""
    free = [_number_behind(root / "proc/meminfo", "MemAvailable:") * 1024]
    for group, (limit, used, cache) in _groups(root):
        with suppress(OSError, ValueError):
            most, taken = int((group / limit).read_text()), int((group / used).read_text())
            # What is kept of files is counted as used there, and given up when somebody wants the memory.
            free.append(most - taken + _number_behind(group / "memory.stat", cache))
    return max(min(free), 0)


def limit_bytes(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this computer has, or that this container may use, if those are fewer."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group, (limit, _, _) in _groups(root):
        with suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int((group / limit).read_text()))
    return min(limits)


CGROUPS = {
    "": ("sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")),
    "memory": ("sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
}
"""Of version 2 and 1, by the controller that /proc/self/cgroup names: where groups are; their files of the limit and
of what is used; and in memory.stat, what of this is files."""


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield the memory groups that this process is in, each with the names of its files.

    The limit of every one of them holds: of a job, as of a step of it, or of the container around both. A container
    may see its own group as the root, by whatever name the computer calls it.
    """
    lines = []
    with suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    paths = {name: path for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}
    for controller, (mount, files) in CGROUPS.items():
        within = Path(paths.get(controller, "/").lstrip("/"))
        yield from ((root / mount / group, files) for group in (within, *within.parents))


def resident_bytes(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process holds now; 0 where the system does not say (not Linux)."""
    with suppress(OSError):
        return _number_behind(root / "proc/self/status", "VmRSS:") * 1024
    return 0


def _number_behind(file: Path, name: str) -> int:
    fields = (line.split() for line in file.read_text().splitlines())
    return next((int(words[1]) for words in fields if words[0] == name), 0)


class HostMemory:
    """Room on the CPU for a copy of some tensors, taken at the first copy and kept until this object goes."""

    def __init__(self) -> None:
        self._copies: dict[str, torch.Tensor] = {}

    @property
    def is_taken(self) -> bool:
        """Return True once there was a copy."""
        return bool(self._copies)

    @torch.no_grad()
    def copy(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copy the tensors as they are now to the CPU, contiguous; the next call writes over the copies.

        Raises MemoryError or RuntimeError where there is no room.
        """
        if _layout(tensors) != _layout(self._copies):
            self._copies = {}  # first: there may be no room for both
            self._copies = _room_for(tensors)
        for name, tensor in tensors.items():
            self._copies[name].copy_(tensor, non_blocking=True)
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()  # once for all: until here the copies were only ordered
        return dict(self._copies)


def _layout(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _room_for(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of the same shapes and dtypes, one after the other in one block of memory."""
    starts, size = {}, 0
    for name, tensor in tensors.items():
        starts[name] = size
        size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    block = torch.empty(size, dtype=torch.uint8)
    if any(tensor.is_cuda for tensor in tensors.values()):
        _lock_pages(block)
    return {
        name: block[start : start + tensors[name].nbytes].view(tensors[name].dtype).view(tensors[name].shape)
        for name, start in starts.items()
    }


def _lock_pages(block: torch.Tensor) -> None:
    """Page-lock memory for as long as it lives. torch's own pinned memory would be rounded up to a power of two."""
    runtime, address = torch.cuda.cudart(), block.data_ptr()
    assert runtime is not None, "there are tensors on a GPU, and no CUDA"
    if error := int(runtime.cudaHostRegister(address, block.nbytes, 0)):
        log.warning(
            "%.1f GB of CPU memory for checkpoints cannot be page-locked (CUDA error %d): every save stops training "
            "for longer. A higher limit (ulimit -l, or of the container) would help.",
            block.nbytes / 1e9,
            error,
        )
        _forget_last_error()
        return
    # The storage, which all tensors in it share, and not the block, which nobody holds.
    weakref.finalize(block.untyped_storage(), runtime.cudaHostUnregister, address).atexit = False


def _forget_last_error() -> None:
    """Clear the error that CUDA keeps until somebody asks: otherwise the next kernel of the step would report it."""
    with suppress(RuntimeError):
        torch.ones(1, device="cuda")
