"""Count the memory, the collectives and the host's reads of a device that does not exist.

    with simulated_ranks(8):                # this process is rank 0 of 8 that are not there
        model = ...                         # on DEVICE, sharded
        with SimulatedDevice(model) as device:
            train_step(...)
    device.peak_bytes, device.collectives, device.host_reads

Tensors of the meta device stand for those of CUDA: they have shapes and no memory, so a step of 70B takes
seconds. Fake tensors that say they are on CUDA would be nearer, but torch builds for CPUs take no gradients of them.

Memory is what the host asks for, in its order. Not in it: memory that torch frees later because another stream still
reads it, fragments of the allocator, workspaces inside of kernels, and what CUDA and NCCL hold for themselves.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed import fake_pg  # noqa: F401 - registers the backend "fake"
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sft.parallel.shards import local_part

DEVICE = torch.device("meta")
BLOCK = 512
"""Bytes that torch rounds every piece of CUDA memory up to."""


class Stream(torch.cpu.Stream):
    """torch's stand-in for a stream, whose events are there."""

    def record_event(self) -> torch.cpu.Event:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.cpu.Event()


STREAMS = SimpleNamespace(
    Stream=Stream,
    Event=torch.cpu.Event,
    current_stream=torch.cpu.current_stream,
    stream=torch.cpu.stream,
    current_device=lambda: None,
    is_initialized=lambda: True,
)
"""What FSDP2 asks of torch.cuda; here everything happens at once, in order."""


@contextmanager
def simulated_ranks(size: int) -> Iterator[None]:
    """Be rank 0 of `size` ranks whose collectives return at once, and let FSDP2 and optimizers accept DEVICE."""
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("cpu:fake,meta:fake", store=store, rank=0, world_size=size)
    try:
        with (
            mock.patch.object(torch, DEVICE.type, STREAMS, create=True),
            mock.patch.object(FSDPParamGroup, "_validate_no_meta_params", lambda _: None),
            mock.patch("torch.optim.optimizer._get_fused_kernels_supported_devices", lambda: [DEVICE.type]),
        ):
            yield
    finally:
        dist.destroy_process_group()


class SimulatedDevice(TorchDispatchMode):
    """Count what passes while this is entered. `holding`: modules whose weights and buffers lie on the device already.

    What the host reads of the device is a one.
    """

    def __init__(self, *holding: torch.nn.Module):
        super().__init__()
        self.bytes = self.peak_bytes = 0
        self.host_reads: list[str] = []  # operators
        self.collectives: Counter[str] = Counter()  # calls by kind
        self.collective_bytes: Counter[str] = Counter()  # of the largest tensor: the whole of what is gathered, summed
        self._sizes: dict[int, int] = {}  # bytes by storage
        for module in holding:
            for tensor in (*module.parameters(), *module.buffers()):
                self._note(local_part(tensor))

    def restart_counts(self) -> None:
        """Forget what was counted; memory that is held stays."""
        self.peak_bytes = self.bytes
        self.host_reads.clear()
        self.collectives.clear()
        self.collective_bytes.clear()

    def __enter__(self) -> SimulatedDevice:
        resize = torch.UntypedStorage.resize_

        def noted(storage: torch.UntypedStorage, size: int) -> Any:  # FSDP2 frees and takes so, and no mode sees it
            made = resize(storage, size)
            if storage._cdata in self._sizes:
                self._set(storage._cdata, size)
            return made

        self._resizing = mock.patch.object(torch.UntypedStorage, "resize_", noted)
        self._resizing.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._resizing.stop()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # it comes back with the parts that this rank holds
        kwargs = kwargs or {}
        name = function.name().removeprefix("aten::")
        if name == "is_pinned":
            return True  # memory is pinned for a device that is there
        if (read := self._read(name, args, kwargs)) is not None:
            self.host_reads.append(name)
            return read
        if function.namespace == "c10d":
            sizes = [_bytes(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)]
            kind = name.removeprefix("c10d::")
            self.collectives[kind] += 1
            self.collective_bytes[kind] += max(sizes, default=0)
        made = function(*args, **kwargs)
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                self._note(tensor)
        return made

    def _read(self, name: str, args: Any, kwargs: Any) -> Any:
        """Return what the host gets where an operator brings it a value of the device; None where none does."""
        if name == "_local_scalar_dense" and args[0].is_meta:
            return 1.0
        if name == "_to_copy" and args[0].is_meta and kwargs.get("device") == torch.device("cpu"):
            return torch.ones_like(args[0], **kwargs)
        if name == "copy_" and args[1].is_meta and not args[0].is_meta:
            return args[0].fill_(1)
        return None

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = 0
            weakref.finalize(storage, self._forget, key)
            self._set(key, storage.nbytes())

    def _set(self, key: int, size: int) -> None:
        size = -(-size // BLOCK) * BLOCK
        self.bytes += size - self._sizes[key]
        self._sizes[key] = size
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    def _forget(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
