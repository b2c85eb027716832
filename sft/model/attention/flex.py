"""The flex kernel: torch compiles one for the mask and the scores that are asked for. CUDA; on the CPU no backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention
from torch.utils.weak import WeakIdKeyDictionary

from sft.model.attention.kernels import Samples, Scores, refuse_left_out


def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, samples: Samples, scores: Scores) -> torch.Tensor:
    """See kernels.py for the signature. The tokens of other samples are skipped in blocks of 128."""
    refuse_left_out("flex", dropout=scores.dropout > 0)
    heads = q.shape[1]
    if heads & (heads - 1):  # shared heads need a power of two
        k, v = k.repeat_interleave(heads // k.shape[1], dim=1), v.repeat_interleave(heads // v.shape[1], dim=1)
    attend: Any = _attend(q.is_cuda)
    output, aux = attend(
        q.to(v.dtype).transpose(0, 1)[None],
        k.to(v.dtype).transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        score_mod=None if scores.softcap is None else _soft_cap(scores.softcap),
        block_mask=_mask_of(samples, scores.window, len(q)),  # pyright: ignore[reportCallIssue]
        scale=scores.scale,
        enable_gqa=heads != k.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    output = output[0].transpose(0, 1)  # [T, H, D]
    if scores.sinks is None:
        return output
    # A sink adds exp(sink) to what the softmax divides by: exp(lse) / (exp(lse) + exp(sink)) is left for the tokens.
    left = torch.sigmoid(aux.lse[0].float() - scores.sinks.float()[:, None])  # [H, T]
    return (output * left.transpose(0, 1)[:, :, None]).to(v.dtype)


@cache
def _attend(compiled: bool) -> Callable[..., Any]:
    return torch.compile(flex_attention) if compiled else flex_attention  # uncompiled: [H, T, T] scores, for tests


@cache
def _soft_cap(softcap: float) -> Callable[..., Any]:
    def capped(score: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


_masks: Any = WeakIdKeyDictionary()  # cu_seqlens of a batch -> its masks by window: the layers share them


@torch.compiler.disable
def _mask_of(samples: Samples, window: int | None, tokens: int) -> BlockMask:
    """[T, T] in blocks: a token sees those of its sample up to itself, and no further back than the window."""
    masks = _masks.setdefault(samples.cu_seqlens, {})
    if window not in masks:
        device = samples.cu_seqlens.device
        sample_of = torch.searchsorted(samples.cu_seqlens[1:], torch.arange(tokens, device=device), right=True)

        def visible(_: Any, __: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            seen = (sample_of[query] == sample_of[key]) & (key <= query)
            return seen if window is None else seen & (query - key < window)

        compiled = device.type == "cuda"  # otherwise it is made from all T x T pairs
        masks[window] = create_block_mask(visible, None, None, tokens, tokens, device=device, _compile=compiled)
    return masks[window]
