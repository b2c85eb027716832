"""Share the tokens of every row among the ranks of an sp group: Ulysses sequence parallelism.

    Batch --split_tokens--> the same number of consecutive tokens on every rank
    [t tokens, all heads] --exchange--> [T tokens, some heads] --any kernel--> --exchange--> [t tokens, all heads]

Every layer works on the tokens of its rank; attention alone must see whole samples, and gets them for a part of
the heads. Gradients are sums over dp_shard x sp, where each rank adds what its own tokens teach.

Shapes: T tokens of a row, padded to a multiple of sp; t = T / sp of them on each rank; H query heads, G key/value
heads, D head width.
Source: DeepSpeed Ulysses, Jacobs et al. 2023, arXiv:2309.14509.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from sft.errors import InputError
from sft.parallel.fsdp import class_name
from sft.types import IGNORE_INDEX, Batch, Counts

LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}


def split_tokens(batch: Batch, *, part: int, parts: int) -> Batch:
    """Take part number `part` of a packed batch: t consecutive tokens, [1, T] -> [1, t].

    The counts are those of this part - a sample counts where it begins - so their sums over the parts are the
    batch's own. cu_seqlens and max_seqlen go on to describe the whole row, which is what attention sees. A row
    that cannot be split evenly ends in padding: a segment of its own, which nobody looks at and which teaches nothing.
    """
    if parts == 1:
        return batch
    assert batch.cu_seqlens is not None and batch.sample_lengths is not None, (
        "the config door let sequence parallelism pass with padded rows"
    )
    length = batch.input_ids.shape[1]
    padding = -length % parts
    width = (length + padding) // parts
    begin, end = part * width, (part + 1) * width

    def mine(row: torch.Tensor, filler: int) -> torch.Tensor:
        return F.pad(row, (0, padding), value=filler)[:, begin:end].contiguous()

    counted = {
        # Shifted before they are split: the last token of a part still knows the label that lies in the next part.
        "labels": mine(batch.labels, IGNORE_INDEX),
        "loss_weights": mine(batch.loss_weights, 0),
        "position_ids": mine(batch.position_ids, 0),
        "is_token": mine(batch.is_token, 0),
    }
    ends = batch.cu_seqlens.new_tensor([length + padding] if padding else [])
    return replace(
        batch,
        input_ids=mine(batch.input_ids, 0),
        **counted,
        supervised_columns=(counted["labels"][0] != IGNORE_INDEX).nonzero().flatten(),
        sources=None if batch.sources is None else mine(batch.sources, 0),
        noise=None if batch.noise is None else mine(batch.noise, 1 << 32),
        cu_seqlens=torch.cat([batch.cu_seqlens, ends]),
        sample_lengths=(*batch.sample_lengths, *([padding] if padding else [])),
        max_seqlen=max(batch.max_seqlen, padding),
        counts=Counts.of_tokens(**counted),
    )


def exchange_heads(model: PreTrainedModel, group: dist.ProcessGroup) -> None:
    """Let the attention of `model` see whole rows, although every rank of `group` holds only its part of them.

    Whatever kernel the model uses stays in use, on H / sp heads. Raises InputError where that is not possible.
    """
    refuse_impossible_split(model.config, group.size(), ranks=dist.get_world_size())
    kernel = model.config._attn_implementation
    name = f"{kernel}_ulysses"
    AttentionInterface.register(name, _whole_rows(AttentionInterface()[kernel], group))
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:  # transformers only warns, and every rank would attend to its part
        raise InputError(
            f"ulysses_sequence_parallel_size={group.size()}: the attention of {class_name(model)} cannot be "
            "exchanged, because the model does not call it through transformers' AttentionInterface; use 1."
        )


def gather_tokens(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Join the tokens of all ranks of `group`, [1, t, ...] -> [1, T, ...]; gradients are summed on their way back."""
    everywhere = x.expand(group.size(), *x.shape[1:])  # the same part for every rank
    return _Exchange.apply(everywhere, group).flatten(0, 1)[None]


def refuse_impossible_split(config: PretrainedConfig, sp: int, *, ranks: int) -> None:
    """Raise InputError where sp ranks cannot share a row of this architecture, naming the numbers that can."""
    if sp == 1:
        return
    heads = getattr(config.get_text_config(), "num_attention_heads", None)
    if not heads:
        raise InputError(f"ulysses_sequence_parallel_size={sp}: {config.model_type} has no attention heads; use 1.")
    if heads % sp:
        valid = [size for size in range(1, heads + 1) if heads % size == 0 and ranks % size == 0]
        raise InputError(
            f"ulysses_sequence_parallel_size={sp} must divide the {heads} attention heads of {config.model_type}; "
            f"valid on {ranks} ranks: {', '.join(map(str, valid))}."
        )
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = {str(part.get("rope_type")) for part in (rope, *rope.values()) if isinstance(part, dict)}
    if found := kinds & LENGTH_DEPENDENT_ROPE:
        raise InputError(
            f"ulysses_sequence_parallel_size={sp}: {config.model_type} rotates by the longest position it sees "
            f"(rope_type {', '.join(sorted(found))}), and every rank sees only its own part of a row; use 1."
        )


def _whole_rows(kernel: Callable[..., Any], group: dist.ProcessGroup) -> Callable[..., Any]:
    """Return an attention function, in transformers' signature, that computes `kernel` over the rows of all ranks."""
    sp = group.size()
    # transformers' table of kernels outlives the run; a group still held when it is destroyed can crash at exit.
    alive = weakref.ref(group)

    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,  # [1, H, t, D]
        key: torch.Tensor,  # [1, G, t, D]
        value: torch.Tensor,  # [1, G, t, D], of a width of its own in some models
        attention_mask: torch.Tensor | None,
        s_aux: torch.Tensor | None = None,  # [H], the sinks
        **options: Any,
    ) -> tuple[torch.Tensor, None]:  # [1, t, H, D]
        group = alive()
        assert group is not None, "this model was built for a process group that is gone"
        heads, tokens = query.shape[1], query.shape[2]
        # Where the ranks cannot share the key/value heads evenly, repeat each until they can.
        repeats = sp // math.gcd(key.shape[1], sp)
        key, value = (x if repeats == 1 else x.repeat_interleave(repeats, dim=1) for x in (key, value))

        # One exchange carries all three: [t, sp, Σ heads/sp x D] by the rank that will own the heads.
        by_owner = [x.transpose(1, 2).reshape(tokens, sp, -1) for x in (query, key, value)]
        widths = [x.shape[2] for x in by_owner]
        whole = _Exchange.apply(torch.cat(by_owner, dim=2).transpose(0, 1), group).flatten(0, 1)  # [T, Σ]
        query, key, value = (
            part.unflatten(1, (-1, x.shape[3])).transpose(0, 1)[None]  # [1, heads/sp, T, D]
            for part, x in zip(whole.split(widths, dim=1), (query, key, value), strict=True)
        )
        if s_aux is not None:
            options["s_aux"] = s_aux.chunk(sp)[group.rank()]
        output, _ = kernel(module, query, key, value, attention_mask, **options)  # [1, T, H/sp, D]

        by_heads = _Exchange.apply(output.reshape(sp, tokens, -1), group)  # [sp, t, H/sp x D] by the owner of the heads
        return by_heads.transpose(0, 1).reshape(1, tokens, heads, -1), None

    return attention


class _Exchange(torch.autograd.Function):
    """[sp, ...]: entry r goes to rank r of the group, and what rank r sent here takes its place. Its own inverse."""

    @staticmethod
    def forward(ctx: Any, parts: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        parts = parts.contiguous()
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _Exchange.apply(gradient, ctx.group), None
