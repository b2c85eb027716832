"""A kernel in the signature that transformers calls, registered by name through its public interface.

Whatever a model hands to its attention is passed on, known to be harmless, or refused: nothing is ignored.

Shapes: R rows of C tokens (packed: one row of T tokens, S samples), H query heads, G key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from sft.errors import InputError
from sft.model.attention import kernels
from sft.model.attention.choice import Choice
from sft.model.attention.kernels import Kernel, Samples, Scores
from sft.parallel.fsdp import class_name

HARMLESS = {
    *("position_ids", "cache_position", "past_key_values", "use_cache", "return_dict", "num_items_in_batch"),
    *("output_attentions", "output_hidden_states", "output_router_logits", "logits_to_keep"),
}
"""Arguments that models pass down to their attention, and that change nothing in it while training."""

_calls = 0  # of any kernel, by this process


def register(choice: Choice) -> None:
    """Make the chosen kernel known to transformers. It needs no mask: it knows where samples end.

    So there is none in AttentionMaskInterface: for a name that is there, transformers looks through the position_ids
    of every micro-batch for samples, and the host waits for the device.
    """
    if choice.kernel is None:  # transformers' own
        return
    function = attention_function(load_kernel(choice.kernel), packed=choice.packed)
    AttentionInterface.register(choice.implementation, function)


def load_kernel(name: str) -> Kernel:
    """Return a kernel by its name in model.attn_implementation; what it needs must be installed."""
    match name:
        case "varlen":
            from torch.nn.attention.varlen import varlen_attn

            return kernels.varlen(varlen_attn)
        case "flash_attention_2":
            from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

            return kernels.flash(name, flash_attn_varlen_func)
        case "flash_attention_3":
            from flash_attn_interface import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

            return kernels.flash(name, flash_attn_varlen_func)
        case "flex":
            from sft.model.attention.flex import flex  # costs a second of imports

            return flex
        case "blocked":
            from sft.model.attention.blocked import blocked

            return blocked
    assert name == "sdpa", name
    return kernels.sdpa


def attention_function(kernel: Kernel, *, packed: bool) -> Any:
    """`kernel` as transformers calls it. packed: the samples of the one row come with the call; otherwise each row is
    one sample (padding stands behind its tokens, where they do not look)."""

    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,  # [R, H, C, D]
        key: torch.Tensor,  # [R, G, C, D]
        value: torch.Tensor,  # [R, G, C, D], of a width of its own in some models
        attention_mask: None,
        *,
        sample_lengths: Sequence[int] | None = None,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int = 0,
        block_masks: Mapping[int | None, Any] | None = None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        is_causal: bool | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:  # [R, C, H, width of value]
        global _calls
        compiling = torch.compiler.is_compiling()
        if not compiling:
            _calls += 1
        unknown = [name for name, given in options.items() if given is not None and name not in HARMLESS]
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        told = not packed or cu_seqlens is not None
        if unknown or attention_mask is not None or not causal or not told:
            _refuse(module, unknown, masked=attention_mask is not None, causal=causal, packed=packed)
        rows, heads, columns, width = query.shape
        if cu_seqlens is not None and packed:
            samples = Samples(tuple(sample_lengths or ()), cu_seqlens, max_seqlen, block_masks)
        else:
            of_rows = _rows_as_samples if compiling else rows_as_the_same_samples
            samples = replace(of_rows(rows, columns, query.device), block_masks=block_masks)
        scores = Scores(
            scale=width**-0.5 if scaling is None else scaling,
            window=sliding_window,
            softcap=softcap,
            sinks=s_aux,
            dropout=dropout,
        )
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # [R·C, heads, D]
        return kernel(q, k, v, samples, scores).reshape(rows, columns, heads, -1), None

    return attention


def _rows_as_samples(rows: int, columns: int, device: torch.device) -> Samples:
    return Samples(None, torch.arange(rows + 1, dtype=torch.int32, device=device) * columns, columns)


rows_as_the_same_samples = lru_cache(maxsize=8)(_rows_as_samples)
"""For all layers of a batch: flex makes a mask for each tensor of boundaries that it meets."""


def _refuse(module: torch.nn.Module, unknown: list[str], *, masked: bool, causal: bool, packed: bool) -> None:
    obstacles = [
        *([f"asks for {', '.join(unknown)}, which the kernels do not know"] if unknown else []),
        *(["brings a mask of its own"] if masked else []),
        *([] if causal else ["is not causal"]),
    ]
    way_out = "use_remove_padding=false with " if packed else ""
    raise InputError(
        f"attention: {class_name(module)} {'; '.join(obstacles) or 'does not pass on where the samples end'}; "
        f"set {way_out}model.attn_implementation=sdpa."
    )


def hide_lengths(model: PreTrainedModel) -> None:
    """Let `model` hand down where samples end as a tensor only, to kernels that read it on the device.

    Compiled layers would be compiled once more for every new number of samples in a row.
    """

    def leave_out(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {name: value for name, value in kwargs.items() if name != "sample_lengths"}

    model.register_forward_pre_hook(leave_out, with_kwargs=True)


def expect_calls(model: PreTrainedModel, at_least: int) -> None:
    """Have the first forward of a packed `model` raise InputError if it calls the kernel less often than `at_least`.

    Attention that is computed elsewhere would look across samples, and nothing else would show it.
    """
    before = _calls

    def check(*_: Any) -> None:
        handle.remove()
        # compile_layers replaces the forward of layers, and compiled ones do not count.
        compiled = any(hasattr(module.forward, "_torchdynamo_orig_callable") for module in model.modules())
        if _calls - before < at_least and not compiled:
            raise InputError(
                f"use_remove_padding=true: {class_name(model)} computed attention {at_least} times and asked for it "
                f"only {_calls - before} times through transformers' AttentionInterface, so samples would see each "
                "other; set use_remove_padding=false."
            )

    handle = model.register_forward_hook(check)
