"""The flex kernel: torch compiles one for the mask and the scores that are asked for. CUDA; on the CPU no backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PreTrainedModel

from sft.model.attention.interface import rows_as_the_same_samples
from sft.model.attention.kernels import Samples, Scores, refuse_left_out

VARIANTS = 64
"""Most variants that torch may compile of one function here. Its default of 8 is too few: training and validation, each
with and without a window, with and without a single sample, for the first length and for any. Beyond the limit torch
would compute the whole matrix of scores, [H, T, T]; compiled as a whole (fullgraph), it raises an error instead."""

BLOCK = 128
"""Tokens in a block of the mask. Rows are padded to whole blocks, which saves variants for odd lengths."""


def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, samples: Samples, scores: Scores) -> torch.Tensor:
    """See kernels.py for the signature. The tokens of other samples are skipped in blocks of 128."""
    refuse_left_out("flex", dropout=scores.dropout > 0)
    heads = q.shape[1]
    if heads & (heads - 1):  # shared heads need a power of two
        k, v = k.repeat_interleave(heads // k.shape[1], dim=1), v.repeat_interleave(heads // v.shape[1], dim=1)
    tokens, padding = len(q), -len(q) % BLOCK
    if scores.window in (made := samples.block_masks or {}):
        mask = made[scores.window]
    else:
        mask = _mask_of(samples, scores.window, tokens + padding)
    # A compiled layer takes the function into its own graph.
    attend: Any = flex_attention if torch.compiler.is_compiling() else _attend(q.is_cuda)
    output, aux = attend(
        *(F.pad(x.to(v.dtype).transpose(0, 1)[None], (0, 0, 0, padding)) for x in (q, k, v)),
        score_mod=None if scores.softcap is None else _soft_cap(scores.softcap),
        block_mask=mask,
        scale=scores.scale,
        enable_gqa=heads != k.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    output = output[0, :, :tokens].transpose(0, 1)  # [T, H, D]
    if scores.sinks is None:
        return output
    # A sink adds exp(sink) to what the softmax divides by: exp(lse) / (exp(lse) + exp(sink)) is left for the tokens.
    left = torch.sigmoid(aux.lse[0, :, :tokens].float() - scores.sinks.float()[:, None])  # [H, T]
    return (output * left.transpose(0, 1)[:, :, None]).to(v.dtype)


def make_masks_first(model: PreTrainedModel) -> None:
    """Make the masks of every batch before the layers of `model` are called, and hand them down with the boundaries.

    Layers that are compiled can take a mask; to make one, they would have to leave their graph.
    """
    windows = {None, getattr(model.config.get_text_config(), "sliding_window", None)}

    def hand_down(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if "flex" not in str(model.config._attn_implementation):  # answers are given by another kernel
            return None
        if kwargs.get("cu_seqlens") is not None:  # packed; with parallel/ulysses.py, longer than the part that is here
            tokens = sum(kwargs["sample_lengths"])
            samples = Samples((), kwargs["cu_seqlens"], kwargs["max_seqlen"])
        else:
            rows, columns = kwargs["input_ids"].shape
            tokens, samples = rows * columns, rows_as_the_same_samples(rows, columns, kwargs["input_ids"].device)
        masks = {window: _mask_of(samples, window, tokens + -tokens % BLOCK) for window in windows}
        return args, kwargs | {"block_masks": masks}

    # First: `hide_lengths` takes the lengths away.
    model.register_forward_pre_hook(hand_down, with_kwargs=True, prepend=True)


def _attend(compiled: bool) -> Callable[..., Any]:
    return _compiled(flex_attention) if compiled else flex_attention  # uncompiled: [H, T, T] scores, for tests


def _make_mask(compiled: bool) -> Callable[..., BlockMask]:
    return _compiled(create_block_mask) if compiled else create_block_mask  # uncompiled: of all T x T pairs


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    dynamo: Any = torch._dynamo.config  # pyright: ignore[reportPrivateImportUsage]
    dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS)
    return torch.compile(function, fullgraph=True)


@cache
def _soft_cap(softcap: float) -> Callable[..., Any]:
    def capped(score: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


_masks: Any = WeakIdKeyDictionary()  # cu_seqlens of a batch -> its masks by window: the layers share them


def _mask_in_blocks(samples: Samples, window: int | None, tokens: int) -> BlockMask:
    """Build the mask, [T, T] in blocks: a token sees its sample up to itself, and no further back than the window.

    Tokens behind the last sample are padding: they see each other, and no sample sees them.
    """
    masks = _masks.setdefault(samples.cu_seqlens, {})
    if window not in masks:
        device = samples.cu_seqlens.device
        sample_of = torch.searchsorted(samples.cu_seqlens[1:], torch.arange(tokens, device=device), right=True)

        def visible(_: Any, __: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            seen = (sample_of[query] == sample_of[key]) & (key <= query)
            return seen if window is None else seen & (query - key < window)

        make = _make_mask(device.type == "cuda")
        masks[window] = make(visible, None, None, tokens, tokens, device=device)
    return masks[window]


_mask_of: Any = torch.compiler.disable(_mask_in_blocks)
