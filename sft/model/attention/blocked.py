"""The blocked kernel: attention on a CPU by few, large matmuls in bf16, where torch's own kernel makes many small ones.

A row is cut into spans of whole samples: one sample, or several short ones that fit into a block together. A span is
cut into blocks of queries. Each block meets the keys that it may see at once: scores in fp32, softmax, values. Only
query, key and value are kept; backward computes the scores again.

For autograd, selective checkpointing and torch.compile all of it is one operator, sft::blocked_attn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any

import torch

from sft.model.attention.kernels import Samples, Scores, refuse_left_out, sdpa

BLOCK = 128
"""Queries of a block at most. Fewer make matmuls small; more compute more of the scores that nobody sees."""

LONGEST = 4096
"""Tokens that a token may see at most; fewer with narrow heads, see `_longest`."""


def blocked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, samples: Samples, scores: Scores) -> torch.Tensor:
    """See kernels.py for the signature. In bf16 as exact as torch's own: within 0.35 % of the norm, gradients too."""
    asked = {"softcap": scores.softcap is not None, "sinks": scores.sinks is not None, "dropout": scores.dropout > 0}
    refuse_left_out("blocked", **asked)
    q, k, longest = q.to(v.dtype), k.to(v.dtype), _longest(q.shape[2])
    if samples.max_seqlen <= longest or (scores.window or math.inf) <= longest:
        return _attend(q, k, v, samples.cu_seqlens, scores.scale, scores.window)
    lengths = samples.lengths or samples.cu_seqlens.diff().tolist()
    outputs, start = [], 0
    for are_long, run in groupby(lengths, lambda length: length > longest):
        part = _row_of(tuple(run))
        begin, start = start, start + int(part.cu_seqlens[-1])
        attend = sdpa if are_long else blocked
        outputs.append(attend(q[begin:start], k[begin:start], v[begin:start], part, scores))
    return torch.cat(outputs)


def _longest(width: int) -> int:
    """Return how many tokens a token may see: 512 for heads of 32, 2,048 for heads of 64.

    Scores of longer samples leave the caches. torch's own kernel, which never writes them to memory, is faster then,
    and takes less of it. The narrower a head is, the less arithmetic there is for each score.
    """
    return min(LONGEST, width**2 // 2)


@lru_cache(maxsize=64)
def _row_of(lengths: tuple[int, ...]) -> Samples:
    ends = torch.tensor((0, *lengths)).cumsum(0)
    return Samples(lengths, ends.to(torch.int32), max(lengths))


@dataclass(frozen=True)
class Block:
    """Queries begin to end of the row, and keys first_key to end."""

    first_key: int
    begin: int
    end: int
    mask: torch.Tensor  # fp32 [end - begin, 1, K] to add to scores of the last K keys: -inf where a query sees none


@dataclass(frozen=True)
class Span:
    """Whole samples, begin to end of the row. No block sees beyond its span."""

    begin: int
    end: int
    blocks: tuple[Block, ...]


@lru_cache(maxsize=16)  # the layers of a row share them, and so does backward
def _spans(boundaries: tuple[int, ...], window: int | None) -> list[Span]:
    """boundaries: cu_seqlens"""
    ends: list[int] = [0]  # of spans
    for start, end in pairwise(boundaries):
        if len(ends) > 1 and end - ends[-2] <= BLOCK:
            ends[-1] = end
        elif end > start:
            ends.append(end)
    starts = torch.tensor(boundaries[:-1]).repeat_interleave(
        torch.tensor(boundaries).diff()
    )  # [T], of a token's sample
    return [
        Span(
            begin,
            end,
            tuple(_block(at, min(at + BLOCK, end), begin, starts, window) for at in range(begin, end, BLOCK)),
        )
        for begin, end in pairwise(ends)
    ]


def _block(begin: int, end: int, span: int, starts: torch.Tensor, window: int | None) -> Block:
    first_key = span if window is None else max(span, begin - window + 1)
    # Without a window, keys before the block are of the same sample, and all of its queries see them.
    keys = torch.arange(begin if window is None else first_key, end)
    queries = torch.arange(begin, end)[:, None]
    hidden = (keys > queries) | (keys < starts[begin:end, None])
    if window is not None:
        hidden |= keys <= queries - window
    mask = torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))  # added in a fraction of the time of a fill
    return Block(first_key, begin, end, mask[:, None])


@torch.library.custom_op("sft::blocked_attn", mutates_args=(), device_types="cpu")
def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, scale: float, window: int | None
) -> torch.Tensor:
    groups = k.shape[1]
    output = q.new_empty(*q.shape[:2], v.shape[2])
    for span in _spans(tuple(cu_seqlens.tolist()), window):
        keys, values = (x[span.begin : span.end].transpose(0, 1).contiguous() for x in (k, v))  # [G, L, D]
        exact_keys = keys.float()
        for block in span.blocks:
            seen, mine = slice(block.first_key - span.begin, block.end - span.begin), slice(block.begin, block.end)
            shares = _shares(_by_group(q[mine], groups), exact_keys[:, seen], block, scale).to(q.dtype)
            output[mine] = _by_token(shares @ values[:, seen], len(q[mine]))
    return output


@torch.library.custom_op("sft::blocked_attn_backward", mutates_args=(), device_types="cpu")
def _differentiate(
    d_output: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scale: float,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    groups = k.shape[1]
    d_q, d_k, d_v = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    for span in _spans(tuple(cu_seqlens.tolist()), window):
        whole = slice(span.begin, span.end)
        keys, values = (x[whole].transpose(0, 1).contiguous() for x in (k, v))  # [G, L, D]
        exact_keys, exact_values = keys.float(), values.float()
        d_keys, d_values = (torch.zeros_like(x) for x in (exact_keys, exact_values))  # sums over blocks, in fp32
        for block in span.blocks:
            seen, mine = slice(block.first_key - span.begin, block.end - span.begin), slice(block.begin, block.end)
            queries, d_outputs = _by_group(q[mine], groups), _by_group(d_output[mine], groups)
            shares = _shares(queries, exact_keys[:, seen], block, scale)
            d_values[:, seen] += shares.to(q.dtype).transpose(1, 2) @ d_outputs
            d_shares = _exact_product(d_outputs, exact_values[:, seen], 1.0)
            d_scores = torch.ops.aten._softmax_backward_data(d_shares, shares, -1, torch.float32).to(q.dtype)
            d_q[mine] = _by_token(_scaled(d_scores, keys[:, seen], scale), len(q[mine]))
            d_keys[:, seen] += _scaled(d_scores.transpose(1, 2), queries, scale)
        d_k[whole], d_v[whole] = d_keys.transpose(0, 1), d_values.transpose(0, 1)
    return d_q, d_k, d_v


@_attend.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any) -> torch.Tensor:
    return q.new_empty(*q.shape[:2], v.shape[2])


@_differentiate.register_fake
def _(_: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *__: Any) -> tuple[torch.Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    q, k, v, cu_seqlens, *ctx.of_scores = inputs
    ctx.save_for_backward(q, k, v, cu_seqlens)


def _backward(ctx: Any, d_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return (*_differentiate(d_output, *ctx.saved_tensors, *ctx.of_scores), None, None, None)


_attend.register_autograd(_backward, setup_context=_keep)


def _shares(queries: torch.Tensor, exact_keys: torch.Tensor, block: Block, scale: float) -> torch.Tensor:
    """Return what each query takes of each value: [G, n·H/G, D], fp32 [G, K, D] -> fp32 [G, n·H/G, K]."""
    scores = _exact_product(queries, exact_keys, scale)
    by_query = scores.unflatten(1, (len(block.mask), -1))
    by_query[..., -block.mask.shape[2] :].add_(block.mask)
    return scores.softmax(-1)


def _exact_product(x: torch.Tensor, exact_y: torch.Tensor, scale: float) -> torch.Tensor:
    """Return scale · x yᵀ in fp32. What comes from 16 bits is multiplied as it is, which loses nothing."""
    with _multiplying_in_bf16() if x.dtype == torch.bfloat16 else nullcontext():
        return _scaled(x.float(), exact_y.transpose(1, 2), scale)


@contextmanager
def _multiplying_in_bf16() -> Iterator[None]:
    """Let matmuls of fp32 round their inputs to bf16, in the way that CPUs with bf16 instructions are fast at.

    torch has no matmul on a CPU that takes bf16 and gives fp32.
    """
    matmul: Any = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _scaled(x: torch.Tensor, y: torch.Tensor, scale: float) -> torch.Tensor:
    """Return scale · x y, without a pass of its own for the scale."""
    return torch.baddbmm(x.new_empty(1, 1, 1), x, y, beta=0, alpha=scale)


def _by_group(x: torch.Tensor, groups: int) -> torch.Tensor:
    """[n, H, D] -> [G, n·H/G, D]: the heads that share keys meet them in one matmul."""
    return x.unflatten(1, (groups, -1)).transpose(0, 1).flatten(1, 2)


def _by_token(x: torch.Tensor, tokens: int) -> torch.Tensor:
    """[G, n·H/G, D] -> [n, H, D]"""
    return x.unflatten(1, (tokens, -1)).transpose(0, 1).flatten(1, 2)
