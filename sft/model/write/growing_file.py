"""A safetensors file that is written tensor by tensor, so that nobody holds all of it.

The format: the length of a JSON header (8 bytes, little-endian), the header, the numbers of all tensors end to end.
Source: https://github.com/huggingface/safetensors#format; its own save_file wants every tensor at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import torch

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
SPELLINGS = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT = 8  # of the numbers, in bytes; the header is filled up with spaces


class GrowingFile:
    """The file at `path` for `tensors`, by name, of which shapes and dtypes are known before there are numbers."""

    def __init__(self, path: Path, tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        self._path, self._left = path, dict(tensors)
        self._begins: dict[str, int] = {}  # where the numbers of a tensor stand in the file
        self._file: BinaryIO | None = None
        self._error: Exception | None = None

    def append(self, make: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        """Write what `make` returns, the next of the tensors. Whatever goes wrong is raised by `close`."""
        if self._error is not None:
            return
        try:
            if self._file is None:
                self._file = self._begin()
            for name, tensor in make().items():
                self._put(self._file, name, tensor)
        except Exception as error:  # the other ranks are gathering: they hear of it at the end of the file
            self._error = error

    def close(self) -> None:
        """End the file. Raises the first exception of `append`; what was written is then removed."""
        if self._file is None and self._error is None:
            self._file = self._begin()
        if self._file is not None:
            self._file.close()
        if self._error is not None:
            with suppress(OSError):
                self._path.unlink()
            raise self._error
        assert not self._left, f"{self._path} lacks {list(self._left)}"

    def _begin(self) -> BinaryIO:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        # The widest first: readers map the file, and want every number at a multiple of its width.
        for name, (shape, dtype) in sorted(self._left.items(), key=lambda item: -item[1][1].itemsize):
            begin, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": SPELLINGS[dtype], "shape": list(shape), "data_offsets": [begin, end]}
            self._begins[name] = begin
        told = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        told += b" " * (-len(told) % ALIGNMENT)
        file = self._path.open("wb")
        file.write(len(told).to_bytes(8, "little") + told)
        self._begins = {name: file.tell() + begin for name, begin in self._begins.items()}
        file.truncate(file.tell() + end)
        return file

    def _put(self, file: BinaryIO, name: str, tensor: torch.Tensor) -> None:
        planned, found = self._left.pop(name), (tuple(tensor.shape), tensor.dtype)
        assert found == planned, f"{name} is {found}, planned {planned}"
        file.seek(self._begins[name])
        file.write(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()))  # pyright: ignore[reportArgumentType]
