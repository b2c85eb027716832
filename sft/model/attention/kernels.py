"""Causal attention of every sample with itself, in several ways that give the same numbers.

    kernel(query, key, value, samples, scores) -> output

Shapes: T tokens of S samples that lie end to end, H query heads, G key/value heads (H a multiple of G), D head width.
query [T, H, D], key and value [T, G, D] (value may have a width of its own), output [T, H, width of value].
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from sft.errors import InputError


@dataclass(frozen=True)
class Samples:
    """Where the samples lie: for the host, which plans, and for kernels that read it on the device."""

    lengths: tuple[int, ...] | None  # S of them, Σ = T; empty for kernels that do not ask the host; None: all alike
    cu_seqlens: torch.Tensor  # int32 [S + 1], on the device
    max_seqlen: int
    block_masks: Mapping[int | None, Any] | None = None  # of flex, by window, where they were made before the layers


@dataclass(frozen=True)
class Scores:
    """What a token pays heed to: softmax of softcap · tanh(scale · q·k / softcap), over what it may see."""

    scale: float
    window: int | None = None  # a token sees itself and the window - 1 tokens before it; None: all before it
    softcap: float | None = None
    sinks: torch.Tensor | None = None  # [H], a score per head that takes its share of the softmax and brings no value
    dropout: float = 0.0


Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Samples, Scores], torch.Tensor]


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, samples: Samples, scores: Scores) -> torch.Tensor:
    """PyTorch's scaled dot product, sample by sample, or for all of one length together; where it has no means
    (softcap, sinks), the formula itself."""
    attend = _scaled_dot_product if scores.softcap is None and scores.sinks is None else _by_the_formula
    if samples.lengths is None:
        row_q, row_k, row_v = (x.unflatten(0, (-1, samples.max_seqlen)).transpose(1, 2) for x in (q, k, v))
        return attend(row_q, row_k, row_v, scores).transpose(1, 2).flatten(0, 1)
    assert sum(samples.lengths) == len(q), "where samples end was hidden from a kernel that asks the host"
    lengths = list(samples.lengths)
    parts = zip(*(x.transpose(0, 1)[None].split(lengths, dim=2) for x in (q, k, v)), strict=True)  # [1, heads, L, D]
    return torch.cat([attend(one_q, one_k, one_v, scores)[0].transpose(0, 1) for one_q, one_k, one_v in parts])


def _scaled_dot_product(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scores: Scores) -> torch.Tensor:
    """[R, H, L, D], [R, G, L, D] of R samples of one length -> [R, H, L, D]."""
    short = scores.window is None or q.shape[2] <= scores.window
    shares_heads = q.shape[1] != k.shape[1]
    if shares_heads and not _shares_heads_well(q, masked=not short):
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        shares_heads = False
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=None if short else _visible(q.shape[2], scores.window, q.device),
        is_causal=short,
        scale=scores.scale,
        dropout_p=scores.dropout,
        enable_gqa=shares_heads,
    )


def _shares_heads_well(q: torch.Tensor, *, masked: bool) -> bool:
    """Whether torch has a fused kernel for fewer key heads than query heads.

    On CUDA only flash attention has: 16 bits, no mask. Everything else would go by the formula, whose scores take more
    than 4 GB per copy and layer at 8,192 tokens; keys and values that are repeated take a thousandth of that.
    """
    return not q.is_cuda or (q.dtype in (torch.float16, torch.bfloat16) and not masked)


def _by_the_formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scores: Scores) -> torch.Tensor:
    """[R, H, L, D], [R, G, L, D] of R samples of one length -> [R, H, L, D]. Takes R · H · L² numbers of memory, in
    fp32."""
    heads, length, groups = q.shape[1], q.shape[2], q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    logits = (q @ k.transpose(2, 3)).float() * scores.scale
    if scores.softcap is not None:
        logits = scores.softcap * torch.tanh(logits / scores.softcap)
    logits = logits.masked_fill(~_visible(length, scores.window, q.device), float("-inf"))
    if scores.sinks is not None:
        sinks = scores.sinks.float()[:, None, None].expand(len(q), heads, length, 1)
        logits = torch.cat([logits, sinks], dim=3)
    shares = logits.softmax(dim=3)[..., :length]
    return F.dropout(shares, scores.dropout).to(v.dtype) @ v


def _visible(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return [L, L], true where the token of the row sees the token of the column."""
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return causal if window is None else causal.triu(1 - window)


def varlen(varlen_attn: Callable[..., Any]) -> Kernel:
    """Return the kernel around torch.nn.attention.varlen.varlen_attn: torch's own flash attention, CUDA, 16 bits."""
    shares_heads = "enable_gqa" in inspect.signature(varlen_attn).parameters  # from torch 2.12 on

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, samples: Samples, scores: Scores) -> torch.Tensor:
        means = {
            "softcap": scores.softcap is not None,
            "sinks": scores.sinks is not None,
            "dropout": scores.dropout > 0,
        }
        refuse_left_out("varlen", **means)
        groups, width = q.shape[1] // k.shape[1], v.shape[2]
        q, k, v = _of_one_kind(q, k, v, multiple_of=8)  # of other widths, torch refuses to make it one
        options = {"enable_gqa": groups > 1} if shares_heads else {}
        if not shares_heads:
            k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        output = varlen_attn(
            q,
            k,
            v,
            samples.cu_seqlens,
            samples.cu_seqlens,
            samples.max_seqlen,
            samples.max_seqlen,
            scale=scores.scale,
            window_size=_reach(scores.window),  # torch takes (-1, 0) for causal
            **options,
        )
        return output[..., :width]

    return kernel


def flash(name: str, flash_attn_varlen_func: Callable[..., Any]) -> Kernel:
    """Return the kernel around a function of the flash-attn packages (2: flash_attn, 3: flash_attn_interface)."""
    accepted = inspect.signature(flash_attn_varlen_func).parameters

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, samples: Samples, scores: Scores) -> torch.Tensor:
        optional = {"softcap": scores.softcap, "dropout_p": scores.dropout}
        optional = {key: value for key, value in optional.items() if value}
        refuse_left_out(name, sinks=scores.sinks is not None, **{key: key not in accepted for key in optional})
        width = v.shape[2]
        q, k, v = _of_one_kind(q, k, v)
        output = flash_attn_varlen_func(
            q,
            k,
            v,
            cu_seqlens_q=samples.cu_seqlens,
            cu_seqlens_k=samples.cu_seqlens,
            max_seqlen_q=samples.max_seqlen,
            max_seqlen_k=samples.max_seqlen,
            softmax_scale=scores.scale,
            causal=True,
            window_size=_reach(scores.window),
            **optional,
        )
        return (output[0] if isinstance(output, tuple) else output)[..., :width]  # some versions add the log-sum-exp

    return kernel


def _reach(window: int | None) -> tuple[int, int]:
    """How many tokens to the left and to the right of itself a token sees; -1: all. A window counts the token too."""
    return (-1 if window is None else window - 1, 0)


def _of_one_kind(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, multiple_of: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give all three the same dtype and width: zeros add nothing to scores, and those of values are cut off again."""
    width = -(-max(q.shape[2], v.shape[2]) // multiple_of) * multiple_of
    q, k, v = (F.pad(x, (0, width - x.shape[2])) if x.shape[2] < width else x for x in (q, k, v))
    return q.to(v.dtype), k.to(v.dtype), v


def refuse_left_out(kernel: str, **asked: bool) -> None:
    """Raise InputError for what the model asks of its attention (True) and this kernel would leave out."""
    if names := [name for name, is_asked in asked.items() if is_asked]:
        raise InputError(
            f"model.attn_implementation={kernel} cannot compute the {' and '.join(names)} that this model's attention "
            "asks for; set model.attn_implementation=sdpa."
        )
