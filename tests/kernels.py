"""Attention token by token, in the place of kernels that need CUDA: functions of the same signatures."""

from __future__ import annotations

import torch

from sft.model.attention.kernels import Scores

LENGTHS = (7, 1, 12)
"""Of the samples that the kernels are told of; a test of others sets it."""


def by_definition(q, k, v, lengths, scores):
    """Token by token and head by head, in plain words."""
    rows, start = [], 0
    for length in lengths:
        for token in range(start, start + length):
            first = start if scores.window is None else max(start, token - scores.window + 1)
            heads = []
            for head in range(q.shape[1]):
                group = head // (q.shape[1] // k.shape[1])
                logits = k[first : token + 1, group] @ q[token, head] * scores.scale
                if scores.softcap is not None:
                    logits = scores.softcap * torch.tanh(logits / scores.softcap)
                total = logits.exp().sum() + (0 if scores.sinks is None else scores.sinks[head].exp())
                heads.append((logits.exp() / total) @ v[first : token + 1, group])
            rows.append(torch.stack(heads))
        start += length
    return torch.stack(rows)


def slow_attention(q, k, v, cu_seqlens, scale, window, causal, softcap=None):
    """The contract of flash attention: windows count tokens beside the own one, -1 is all, causal cuts the right."""
    left, right = window
    assert cu_seqlens.dtype == torch.int32 and (right == 0 or causal)
    assert q.dtype == k.dtype == v.dtype and q.shape[2] == k.shape[2] == v.shape[2]
    lengths = cu_seqlens.diff().tolist()
    return by_definition(q, k, v, lengths, Scores(scale, None if left == -1 else left + 1, softcap))


def varlen_of_torch_2_13(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    assert cu_seq_q is cu_seq_k and max_q == max_k == max(LENGTHS)
    assert enable_gqa or query.shape[1] == key.shape[1]
    return slow_attention(query, key, value, cu_seq_q, scale, window_size, causal=False)


def varlen_of_torch_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    assert query.shape[1] == key.shape[1] == value.shape[1]
    return varlen_of_torch_2_13(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size
    )


def flash_2(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
):
    assert cu_seqlens_q is cu_seqlens_k and max_seqlen_q == max_seqlen_k == max(LENGTHS)
    return slow_attention(q, k, v, cu_seqlens_q, softmax_scale, window_size, causal, softcap or None)


def flash_3(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
):  # without dropout and, in some versions, soft-capping; returns the log-sum-exp as well
    given = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return flash_2(q, k, v, *given, softmax_scale=softmax_scale, causal=causal, window_size=window_size), None
