"""Keep in CPU memory what autograd needs of a decoder layer between forward and backward.

    forward of layer k    the GPU computes, a stream of its own copies what was kept to page-locked memory
    backward of layer k   its copies come back, those of layer k - 1 are under way meanwhile

The numbers are the same, bit for bit. On a CPU there is nowhere to go, and nothing is copied.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

SMALLEST = 2**20
"""Bytes: what is smaller stays where it is."""


@functools.cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which this process copies from and to a GPU."""
    return torch.cuda.Stream(device)


class OnHost:
    """A tensor of a GPU that waits in CPU memory."""

    def __init__(self, tensor: torch.Tensor):
        self._device, self._back = tensor.device, None
        self._stream = _stream_of(tensor.device)
        self._stream.wait_stream(torch.cuda.current_stream(tensor.device))  # until it is computed
        self._host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        with torch.cuda.stream(self._stream):
            self._host.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._stream)  # nobody gets its memory before it is copied

    @staticmethod
    def takes(tensor: torch.Tensor) -> bool:
        """Return True for a tensor that can be copied while its device goes on."""
        return tensor.is_cuda and tensor.nbytes >= SMALLEST

    def fetch(self) -> None:
        """Begin to copy it back, unless that has begun."""
        if self._back is None:
            with torch.cuda.stream(self._stream):
                self._back = self._host.to(self._device, non_blocking=True)
            self._arrived = self._stream.record_event()

    def take(self) -> torch.Tensor:
        """Return it on its device; what is computed from now on waits for it."""
        self.fetch()
        assert self._back is not None
        here = torch.cuda.current_stream(self._device)
        here.wait_event(self._arrived)
        self._back.record_stream(here)
        return self._back


def offload_activations(layers: Sequence[torch.nn.Module], kind: Callable[[torch.Tensor], Any] = OnHost) -> None:
    """Let what autograd keeps of each layer wait on the host. After checkpointing and compiling, before sharding.

    kind: how a tensor waits
    """
    before = None
    for layer in layers:
        before = _Kept(layer, kind, before)
        layer.forward = functools.wraps(layer.forward)(functools.partial(before.around, layer.forward))


class _Kept:
    """What autograd keeps of one layer."""

    def __init__(self, layer: torch.nn.Module, kind: Any, before: _Kept | None):
        self._layer, self._kind, self._before = layer, kind, before
        self._waiting: weakref.WeakSet[Any] = weakref.WeakSet()  # autograd lets them go when it has used them
        self._found: dict[Any, tuple[Any, torch.Tensor]] = {}  # while forward runs, by where they lie
        self._weights: set[int] = set()

    def around(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the layer's forward."""
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # FSDP2 has gathered them, and will again.
        self._weights = {weight.untyped_storage().data_ptr() for weight in self._layer.parameters()}
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._put, self._get):
                return forward(*args, **kwargs)
        finally:
            self._found.clear()

    def _put(self, tensor: torch.Tensor) -> Any:
        memory = tensor.untyped_storage().data_ptr()
        if memory in self._weights or not self._kind.takes(tensor):
            return tensor
        # Several operations keep the same numbers, as views of their own: what matters is where these lie.
        numbers, view = tensor.detach(), (tensor.shape, tensor.stride())
        reach = 1 + sum((size - 1) * stride for size, stride in zip(*view, strict=True))
        if reach == tensor.numel():  # without gaps, in whatever order
            numbers = numbers.as_strided((reach,), (1,))
        place = (memory, numbers.storage_offset(), numbers.shape, numbers.stride(), numbers.dtype, tensor._version)
        if place not in self._found:  # with the tensor, so that nothing else gets its memory while forward runs
            self._found[place] = (self._kind(numbers), tensor)
            self._waiting.add(self._found[place][0])
        return self._found[place][0], view if reach == tensor.numel() else None

    def _get(self, kept: Any) -> torch.Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        waiting, view = kept
        for earlier in self._before._waiting if self._before else ():
            earlier.fetch()
        return waiting.take().as_strided(*view) if view else waiting.take()
