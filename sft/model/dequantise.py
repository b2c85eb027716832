"""Read a model whose weights were published quantised as if they were bf16: gpt-oss in mxfp4, DeepSeek in fp8 blocks.

    mxfp4   X_blocks uint8 [E, O, G, 16], X_scales uint8 [E, O, G]     ->  X [E, 32·G, O]    two values in each byte
    fp8     X fp8 [..., O, I], X_scale_inv [..., O / b, I / b]         ->  X [..., O, I]     one scale for b x b values

transformers' own code does the arithmetic, on the slice that is asked for. Whoever reads sees names, shapes and dtypes
of a bf16 model: loading, the proof of the export, the export and its check need not know of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sft.config.checks.model import quantisation_of
from sft.errors import InputError
from sft.model.pretrained import weight_files
from sft.parallel.shards import Box, OpenFile, StoredPart, StoredTensors
from sft.parallel.world import log

BLOCKS, SCALES, SCALE_INV = "_blocks", "_scales", "_scale_inv"
UNREAD = (".activation_scale", ".input_scale")
"""What quantised kernels alone need."""

Widen = Callable[[Any, Any, slice], torch.Tensor]
"""(values, scales, which of the first dim) -> that part in bf16, whole in its other dims. Both are slices of a file."""


def stored_weights(directory: Path) -> StoredTensors:
    """Open the tensors of a model directory: as they are, or in bf16 where they are quantised. Reads headers only."""
    files, settings = weight_files(directory), quantisation_of(directory)
    if not settings:
        return StoredTensors.of_whole_tensors(files)
    stored = Dequantised.of_whole_tensors(files)
    stored.widen(directory, settings)
    return stored


def say_how_widened(directory: Path) -> None:
    """Log that the tensors of `directory` are widened, and what that means for the trained model; else nothing."""
    if settings := quantisation_of(directory):
        log.info(
            "model.dequantise=true: weights in %s are read as bf16; the trained model is in bf16, without "
            "quantization_config.",
            settings.get("quant_method"),
        )


def drop_quantisation(directory: Path) -> None:
    """Let config.json say that the weights are bf16, in a directory whose weights were widened; else do nothing."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    holders = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    if any(holder.pop("quantization_config", None) for holder in holders):
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = "bfloat16"
        file.write_text(json.dumps(config, indent=2) + "\n")


@dataclass(frozen=True)
class _Recipe:
    values: StoredPart
    scales: StoredPart
    widen: Widen


class Dequantised(StoredTensors):
    """Stored tensors of which some are made of two: quantised values and their scales."""

    def __init__(self) -> None:
        """Begin with tensors that stay as they are; see `widen`."""
        super().__init__()
        self._recipes: dict[str, _Recipe] = {}

    def widen(self, directory: Path, settings: Mapping[str, Any]) -> None:
        """Put the bf16 tensor in the place of values and scales. settings: quantization_config of `directory`.

        Raises InputError for values without scales.
        """
        for name in [name for name in self.parts if name.endswith(UNREAD)]:
            del self.parts[name], self.dtypes[name]
        widen_fp8 = partial(_widen_fp8, size=_block_of(settings))
        for name in list(self.parts):
            if name.endswith(BLOCKS) and f"{name.removesuffix(BLOCKS)}{SCALES}" in self.parts:
                experts, outputs, groups, _ = self.shape(name)
                whole = name.removesuffix(BLOCKS)
                self._replace(name, f"{whole}{SCALES}", whole, (experts, 32 * groups, outputs), _widen_mxfp4)
            elif f"{name}{SCALE_INV}" in self.parts:
                self._replace(name, f"{name}{SCALE_INV}", name, self.shape(name), widen_fp8)
        if left := [name for name, dtype in self.dtypes.items() if dtype.startswith(("F8", "F4", "I8", "U8"))]:
            raise InputError(
                f"model.dequantise=true: {directory} has {left[0]} in {self.dtypes[left[0]]} without scales of a known "
                f"name ({BLOCKS} with {SCALES}, or {SCALE_INV}); take a bf16 copy of this model."
            )

    def read(self, name: str) -> torch.Tensor:
        """Read the whole tensor, widened."""
        if name not in self._recipes:
            return super().read(name)
        tensor = torch.empty(self.shape(name), dtype=torch.bfloat16)
        self.copy_into({name: tensor})
        return tensor

    def _replace(self, values: str, scales: str, name: str, shape: tuple[int, ...], widen: Widen) -> None:
        ((value_part,), (scale_part,)) = self.parts.pop(values), self.parts.pop(scales)
        del self.dtypes[values], self.dtypes[scales]
        self.parts[name] = [StoredPart(value_part.file, name, Box((0,) * len(shape), shape))]
        self.dtypes[name] = "BF16"
        self._recipes[name] = _Recipe(value_part, scale_part, widen)

    def _piece(self, part: StoredPart, index: tuple[slice, ...], opened: OpenFile) -> torch.Tensor:
        if (recipe := self._recipes.get(part.key)) is None:
            return super()._piece(part, index, opened)
        values, scales = (opened(each.file).get_slice(each.key) for each in (recipe.values, recipe.scales))
        return recipe.widen(values, scales, index[0])[:, *index[1:]]


def _block_of(settings: Mapping[str, Any]) -> tuple[int, int]:
    height, width = settings.get("weight_block_size") or (128, 128)
    return height, width


def _widen_mxfp4(values: Any, scales: Any, experts: slice) -> torch.Tensor:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    return convert_moe_packed_tensors(values[experts], scales[experts], dtype=torch.bfloat16)


def _widen_fp8(values: Any, scales: Any, part: slice, *, size: tuple[int, int]) -> torch.Tensor:
    """Widen experts of [E, O, I] or, of [O, I], rows: the blocks that hold them are read whole. Blocks are of `size`.

    transformers wants whole blocks. Published models end in parts of blocks (DeepSeek's kv_a_proj has 576 rows).
    """
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    height, width = size
    *experts, outputs, inputs = values.get_shape()
    if experts:
        first, read, rows = 0, values[part], slice(0, outputs)
        grid = scales[part]
    else:
        first = part.start // height
        read, rows = values[first * height : part.stop], slice(part.start - first * height, part.stop - first * height)
        grid = scales[first : -(-part.stop // height)]
    blocks = read.new_zeros(*read.shape[:-2], grid.shape[-2] * height, grid.shape[-1] * width)
    blocks[..., : read.shape[-2], :inputs] = read
    # Under names of a chain of its conversions, which mean the same in all versions: one tensor, and its scales.
    (widened,) = Fp8Dequantize(None).convert({"blocks": [blocks], "blocks_scale_inv": [grid]})["blocks"]
    return widened[..., rows, :inputs].to(torch.bfloat16)
