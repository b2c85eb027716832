"""Kernels for the CPU under torch's own flash attention operators, so that the real `varlen_attn` runs without a GPU.

Its checks, its autograd formula and its fake kernels are torch's; only the arithmetic is done here, sample by sample.
The contract is that of the CUDA kernels: 16 bits, widths that are multiples of 8, int32 boundaries.
"""

from contextlib import contextmanager

import torch


def _seen(length: int, left: int | None, right: int | None) -> torch.Tensor:
    """[L, L], true where the query of the row sees the key of the column."""
    back = torch.arange(length)[:, None] - torch.arange(length)
    seen = back >= -(right if right is not None and right >= 0 else length)
    return seen & (back <= left) if left is not None and left >= 0 else seen


def _pieces(boundaries, *tensors):
    for begin, end in zip(boundaries[:-1].tolist(), boundaries[1:].tolist(), strict=True):
        yield slice(begin, end), [tensor[begin:end].float() for tensor in tensors]


def _attend(q, k, v, scale, seen):
    """[L, H, D] of one sample -> ([L, H, D], log-sum-exp [H, L])."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    scores = scores.masked_fill(~seen, -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v), scores.logsumexp(-1)


def _forward(
    q, k, v, cu_q, cu_k, max_q, max_k, dropout, causal, debug, *, scale=None, window_size_left=None,
    window_size_right=None, **options,
):  # fmt: skip
    assert q.dtype == k.dtype == v.dtype and q.dtype in (torch.bfloat16, torch.float16), q.dtype
    assert q.shape[2] == k.shape[2] == v.shape[2] and q.shape[2] % 8 == 0, "head_size must be a multiple of 8"
    assert cu_q.dtype == cu_k.dtype == torch.int32 and all(x.stride(-1) == 1 for x in (q, k, v))
    output, lse = torch.empty_like(q), q.new_empty(q.shape[1], len(q), dtype=torch.float32)
    for piece, (one_q, one_k, one_v) in _pieces(cu_q, q, k, v):
        assert len(one_q) <= max_q
        seen = _seen(len(one_q), window_size_left, 0 if causal else window_size_right)
        output[piece], lse[:, piece] = _attend(one_q, one_k, one_v, scale, seen)
    nothing = torch.zeros(2, dtype=torch.uint64)
    return output, lse, nothing, nothing[0], torch.empty(0)


def _backward(
    d_output, q, k, v, output, lse, cu_q, cu_k, max_q, max_k, dropout, causal, *random, scale=None,
    window_size_left=None, window_size_right=None,
):  # fmt: skip
    """By hand: below autograd, where an operator runs, nothing is recorded."""
    d_q, d_k, d_v = (torch.empty_like(x) for x in (q, k, v))
    shared = q.shape[1] // k.shape[1]
    for piece, (d_o, one_q, one_k, one_v, o) in _pieces(cu_q, d_output, q, k, v, output):
        seen = _seen(len(d_o), window_size_left, 0 if causal else window_size_right)
        one_k, one_v = (x.repeat_interleave(shared, dim=1) for x in (one_k, one_v))
        scores = torch.einsum("qhd,khd->hqk", one_q, one_k) * scale
        shares = (scores - lse[:, piece, None]).exp().masked_fill(~seen, 0.0)
        d_shares = torch.einsum("qhd,khd->hqk", d_o, one_v) - (d_o * o).sum(-1).T[..., None]
        d_scores = shares * d_shares * scale
        d_q[piece] = torch.einsum("hqk,khd->qhd", d_scores, one_k).to(q.dtype)
        d_k[piece] = torch.einsum("hqk,qhd->khd", d_scores, one_q).unflatten(1, (-1, shared)).sum(2).to(k.dtype)
        d_v[piece] = torch.einsum("hqk,qhd->khd", shares, d_o).unflatten(1, (-1, shared)).sum(2).to(v.dtype)
    return d_q, d_k, d_v


@contextmanager
def flash_attention_on_cpu():
    """Give torch's operators their CPU kernels, for the length of the block."""
    library = torch.library.Library("aten", "IMPL")
    try:
        library.impl("_flash_attention_forward", _forward, "CPU")
        library.impl("_flash_attention_backward", _backward, "CPU")
        yield
    finally:
        library._destroy()
