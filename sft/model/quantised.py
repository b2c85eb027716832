"""Keep what LoRA freezes in 4 bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314, without double quantisation).

    weight [..., I]  --pack-->  uint8 [..., I/2 + I/16]: two NF4 codes per byte, then the scales of the row as bytes

A scale (fp32) stands for a block of 64 numbers of one row. So every rank packs the rows that it holds, and has what it
would have of the whole packed weight; and a tensor of bytes is cut and gathered by FSDP2 like any other that is frozen,
scales included, which mixed precision would otherwise round. It bears the name of the weight that it stands for.

    choose (before peft puts its modules around others) -> quantise (on the skeleton) -> fill (while files are read)

bitsandbytes makes the codes and reads them. A weight in full exists while its layer computes, and again in backward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from sft.errors import InputError
from sft.model.precision import fp32_modules
from sft.parallel.fsdp import class_name
from sft.parallel.shards import Box, local_box, local_part
from sft.parallel.world import log

BLOCK = 64
"""Numbers of a row that share a scale."""
PACKED_BYTES = 1 / 2 + 4 / BLOCK
"""Of a number, with its part of the scale."""
AT_ONCE = 2**22
"""Numbers that are packed at a time: on a CPU, bitsandbytes needs 16 bytes for each."""


@dataclass(frozen=True)
class Chosen:
    """A module and those of its own weights that are to be packed."""

    module: torch.nn.Module
    weights: tuple[str, ...]


def choose(model: PreTrainedModel, layers: Iterable[torch.nn.Module], linear: Iterable[str]) -> list[Chosen]:
    """Choose what can be packed of the decoder `layers`: linear modules, and experts that are fused into one tensor.

    linear: names of the linear modules whose weights are read by their own forward alone, without routers. What the
    architecture keeps in fp32 stays so.
    """
    inside = {id(module) for layer in layers for module in layer.modules()}
    exact = {id(module) for outer in fp32_modules(model) for module in outer.modules()}
    plain = {id(model.get_submodule(name)) for name in linear}
    chosen = []
    for module in model.modules():
        if id(module) not in inside or id(module) in exact:
            continue
        own = dict(module.named_parameters(recurse=False))
        fused = tuple(name for name, weight in own.items() if _is_of_experts(module, weight))
        if weights := ("weight",) if id(module) in plain else fused:
            chosen.append(Chosen(module, weights))
    return chosen


def _is_of_experts(module: torch.nn.Module, weight: torch.Tensor) -> bool:
    """Return True for a matrix per expert; torch's own modules have weights of three dims for other reasons."""
    return weight.ndim == 3 and min(weight.shape[:2]) > 1 and not type(module).__module__.startswith("torch.")


def quantise(model: PreTrainedModel, chosen: Sequence[Chosen], *, recompute_experts: bool) -> None:
    """Let bytes take the place of those of the `chosen` weights that stay frozen. For a model on the meta device.

    recompute_experts: whether experts compute their outputs again in backward; without, autograd would keep their
    weights in full, unless the whole layer is recomputed anyway.

    Raises InputError where nothing can be packed.
    """
    packed, rows = [], []
    for module, names in ((each.module, each.weights) for each in chosen if _is_frozen(each.module)):
        weights = {name: module.get_parameter(name) for name in names}
        odd = {name: weight for name, weight in weights.items() if weight.shape[-1] % BLOCK}
        rows += [weight.shape[-1] for weight in odd.values()]
        columns = {name: weight.shape[-1] for name, weight in weights.items() if name not in odd}
        for name in columns:
            packed.append(weights[name])
            place = torch.empty(_packed_shape(weights[name].shape), dtype=torch.uint8, device="meta")
            setattr(module, name, torch.nn.Parameter(place, requires_grad=False))
        if not columns:
            continue
        if type(module) is torch.nn.Linear:
            module.forward = functools.partial(_linear, module)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            forward = functools.partial(_with_whole_weights, module, columns, module.forward)
            module.forward = functools.partial(_recomputed, forward) if recompute_experts else forward
    if not packed:
        found = (
            f"the rows of its frozen matrices have {', '.join(map(str, sorted(set(rows))))}" if rows else "it has none"
        )
        raise InputError(
            f"model.base_dtype=nf4: no frozen weight of {class_name(model)} can be kept in blocks of {BLOCK} "
            f"numbers of a row; {found}. Leave model.base_dtype=bf16."
        )
    log.info("%s", _told(packed, rows))


def _is_frozen(module: torch.nn.Module) -> bool:
    return not any(weight.requires_grad for weight in module.parameters(recurse=False))


def _told(packed: Sequence[torch.Tensor], odd_rows: Sequence[int]) -> str:
    numbers = sum(weight.numel() for weight in packed)
    before = sum(weight.nbytes for weight in packed)
    after = numbers * PACKED_BYTES
    told = (
        f"model.base_dtype=nf4: {len(packed)} frozen weights, {numbers / 1e6:,.1f} M numbers, are kept in "
        f"{after / 1e6:,.1f} MB in place of {before / 1e6:,.1f} MB"
    )
    return f"{told}; {len(odd_rows)} are kept as they are: their rows are no multiple of {BLOCK}" if odd_rows else told


def _packed_shape(shape: Sequence[int]) -> tuple[int, ...]:
    return (*shape[:-1], int(shape[-1] * PACKED_BYTES))


def is_packed(weight: torch.Tensor) -> bool:
    """Return True for bytes that stand for a weight. Models with bytes of their own are refused (pretrained.py)."""
    return isinstance(weight, torch.nn.Parameter) and weight.dtype == torch.uint8


def as_whole(weight: torch.Tensor) -> torch.Tensor:
    """Return the weight; where bytes stand for it, a tensor of its shape on the meta device."""
    if not is_packed(weight):
        return weight
    *outer, row = weight.shape
    return torch.empty(*outer, round(row / PACKED_BYTES), device="meta", dtype=torch.bfloat16)


def box_of_whole(weight: torch.Tensor) -> Box:
    """Return which part of the whole weight this rank packs: FSDP2 cuts the first dim, never a row."""
    box, columns = local_box(weight), as_whole(weight).shape[-1]
    assert box.offset[-1] == 0 and box.shape[-1] == weight.shape[-1], "a row is cut"
    return Box(box.offset, (*box.shape[:-1], columns))


def load_operators() -> None:
    """Import bitsandbytes, whose operators `unpack` calls. Optional, and a second of imports: so not before."""
    import bitsandbytes  # noqa: F401


@torch.no_grad()
def fill(weight: torch.Tensor, numbers: torch.Tensor) -> None:
    """Pack this rank's part, as `box_of_whole` has it, into its bytes of `weight`."""
    mine = local_part(weight)
    rows, target = numbers.reshape(-1, numbers.shape[-1]), mine.view(-1, mine.shape[-1])
    at_once = max(1, AT_ONCE // rows.shape[-1])
    for start in range(0, len(rows), at_once):
        target[start : start + at_once].copy_(pack(rows[start : start + at_once].to(mine.device)))


def pack(rows: torch.Tensor) -> torch.Tensor:
    """Return codes and scales of [N, I] numbers: uint8 [N, I/2 + I/16]."""
    from bitsandbytes import functional as bnb

    codes, state = bnb.quantize_4bit(
        rows.float().contiguous(), blocksize=BLOCK, quant_type="nf4", compress_statistics=False
    )
    scales = state.absmax.view(len(rows), -1).view(torch.uint8)
    return torch.cat([codes.view(len(rows), -1), scales], dim=1)


def unpack(packed: torch.Tensor, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight [..., columns] that `packed` stands for, in `dtype`."""
    packed = packed.to(torch.uint8)  # FSDP2 of torch 2.11 gathers it in the compute dtype, which holds 0 to 255 exactly
    codes, scales = packed.tensor_split([columns // 2], dim=-1)
    return torch.ops.bitsandbytes.dequantize_4bit(
        codes.contiguous().view(-1, 1),
        scales.contiguous().view(torch.float32).view(-1),
        BLOCK,
        "nf4",
        (*packed.shape[:-1], columns),
        dtype,
    )


class _Product(torch.autograd.Function):
    """x Wᵀ + b, W unpacked for the time of a product: autograd keeps its bytes, which FSDP2 gathers again."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(packed)
        ctx.columns = x.shape[-1]
        return F.linear(x, unpack(packed, x.shape[-1], x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (packed,) = ctx.saved_tensors
        return gradient @ unpack(packed, ctx.columns, gradient.dtype), None, None


def _linear(module: Any, x: torch.Tensor) -> torch.Tensor:
    return _Product.apply(x, module.weight, module.bias)  # pyright: ignore[reportReturnType]


def _with_whole_weights(
    module: torch.nn.Module,
    columns: dict[str, int],
    forward: Callable[..., Any],
    x: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Call the forward of experts with their weights unpacked: an attribute hides the parameter of its name."""
    whole = {name: unpack(getattr(module, name), width, x.dtype) for name, width in columns.items()}
    vars(module).update(whole)
    try:
        return forward(x, *args, **kwargs)
    finally:
        for name in whole:
            del vars(module)[name]


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
