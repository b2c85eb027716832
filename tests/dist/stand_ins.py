"""Run several.py with slow functions in place of kernels that need CUDA: `torchrun ... -m tests.dist.stand_ins RUNS`.

They have the signatures of the real ones (torch 2.13, flash-attn 2 and 3, flex_attention), so everything around a
kernel is what a GPU would run: its choice, what it is told of the samples, heads exchanged over sp ranks, gradients.
That the real ones compute the same is for tests/gpu.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
import torch.nn.attention.varlen

from sft import load_config, run
from sft.model.attention import choice, flex
from tests.dist.several import spare_time

CPUS_OWN = {"sdpa", "blocked"}
"""Kernels that need no stand-in."""

called = set()


def attention(name, q, k, v, cu_seqlens, scale, window_size, softcap=None):
    """[T, H, D] and [T, G, D]: each sample with itself, causal, in the formula's own words."""
    called.add(name)
    left, right = window_size
    assert right == 0 and cu_seqlens[-1] == len(q)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    parts = []
    for begin, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q[begin:end], k[begin:end]) * scale
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        seen = torch.ones(end - begin, end - begin, dtype=torch.bool).tril()
        seen = seen if left == -1 else seen.triu(-left)
        parts.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v[begin:end]))
    return torch.cat(parts)


def varlen_attn(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    assert enable_gqa or q.shape[1] == k.shape[1]
    return attention("varlen", q, k, v, cu_seq_q, scale, window_size)


def flash_attn_varlen_func(q, k, v, *, dropout_p=0.0, softcap=0.0, **told):
    assert told["causal"]
    return attention(
        "flash_attention_2", q, k, v, told["cu_seqlens_q"], told["softmax_scale"], told["window_size"], softcap or None
    )


def flash_attn_3_varlen_func(
    q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, window_size, softcap=0.0
):
    assert causal
    return attention("flash_attention_3", q, k, v, cu_seqlens_q, softmax_scale, window_size, softcap or None)


def flex_attention(q, k, v, *, score_mod, block_mask, scale, enable_gqa, return_aux):
    called.add("flex")
    assert enable_gqa or q.shape[1] == k.shape[1]
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * scale
    scores = scores if score_mod is None else score_mod(scores)
    token = torch.arange(q.shape[2])
    scores = scores.masked_fill(~block_mask.mask_mod(0, 0, token[:, None], token), -torch.inf)
    return scores.softmax(-1) @ v, SimpleNamespace(lse=scores.logsumexp(-1))


def install() -> None:
    torch.nn.attention.varlen.varlen_attn = varlen_attn
    for name, function in (("flash_attn", flash_attn_varlen_func), ("flash_attn_interface", flash_attn_3_varlen_func)):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].flash_attn_varlen_func = function
    flex._attend = lambda compiled: flex_attention
    obstacle = choice._obstacle
    everything = {"device": "cuda", "capability": (9, 0), "flash_attn": "", "flash_attn_interface": "", "triton": ""}
    choice._obstacle = lambda kernel, config, here, *, half: obstacle(
        kernel, config, here if kernel in CPUS_OWN else replace(here, **everything), half=True
    )


if __name__ == "__main__":
    install()
    spare_time()
    for overrides in json.loads(Path(sys.argv[1]).read_text()):
        called.clear()
        config = load_config(overrides)
        run(config)
        assert called == {config.model.attn_implementation} - CPUS_OWN, f"{called} computed {overrides}"
