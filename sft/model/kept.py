"""Measure what decoder layers keep from forward for backward, on the meta device: it takes milliseconds and no memory.

One row of tokens goes through the skeleton in compute dtype. What autograd saves is counted by storage, weights
excepted. Attention is taken to keep what every fast kernel keeps: query, key, value, output and one number per head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from sft.model.attention.interface import attention_function
from sft.model.attention.kernels import Samples, Scores
from sft.model.logits import to_keep
from sft.model.precision import fp32_modules
from sft.model.pretrained import largest_of
from sft.model.quantised import is_packed, load_operators
from sft.parallel.activation import stays_with_selective
from sft.parallel.fsdp import class_name
from sft.parallel.world import log

TOKENS = 256
"""Of the row. What is kept grows with it in proportion."""
NAME = "sft_measured"
"""Of the attention, in transformers. It has no mask there, so none is made."""


@dataclass(frozen=True)
class Kept:
    """Bytes per token."""

    layers: float  # of all decoder layers together
    layer: float  # of the one that keeps most
    results: float  # of matmuls and attention in all layers: selective checkpointing keeps them


def kept_for_backward(model: PreTrainedModel, layers: list[torch.nn.Module], compute_dtype: torch.dtype) -> Kept:
    """Measure the skeleton `model`, or estimate it by the sizes in its config.json where it cannot run without values.

    The model is as it was afterwards, and its layers are not checkpointed or sharded yet.
    """
    try:
        return _measure(model, layers, compute_dtype)
    except Exception as error:  # the code of an architecture may look at values, and says so in its own words
        log.info(
            "memory: %s cannot run without values (%s); what its layers keep is estimated by their widths",
            class_name(model),
            str(error).partition("\n")[0],
        )
        return by_widths(model.config.get_text_config(), compute_dtype.itemsize, len(layers))


def by_widths(config: PretrainedConfig, c: int, layers: int) -> Kept:
    """Estimate in the manner of Korthikanti et al. 2022, for the layers of today: RMS norms in fp32, rotary positions,
    grouped heads, gated MLPs. c bytes of compute dtype; D width, Q and KV of all query and all key heads, I of the MLP:

        8·D + c·(4·D + 2·Q + 2·KV + 4·I)    bytes per token and layer
        c·(2·D + 2·Q + 2·KV + 2·I)          of these, the results of matmuls and attention
    """
    heads = largest_of(config, "num_attention_heads")  # Mamba and RWKV have none
    head_width = largest_of(config, "head_dim") or config.hidden_size // max(heads, 1)
    d, q = config.hidden_size, heads * head_width
    kv = (largest_of(config, "num_key_value_heads") or heads) * head_width
    i = _mlp_width(config)
    layer = 8 * d + c * (4 * d + 2 * q + 2 * kv + 4 * i)
    return Kept(layers * layer, layer, layers * c * (2 * d + 2 * q + 2 * kv + 2 * i))


def _mlp_width(config: PretrainedConfig) -> int:
    experts, width = largest_of(config, "num_experts_per_tok"), largest_of(config, "intermediate_size")
    if experts:
        return experts * (largest_of(config, "moe_intermediate_size") or width)
    return width or 4 * config.hidden_size


def _measure(model: PreTrainedModel, layers: list[torch.nn.Module], compute_dtype: torch.dtype) -> Kept:
    if any(is_packed(weight) for weight in model.parameters()):
        load_operators()
    in_fp32 = {id(weight) for module in fp32_modules(model) for weight in module.parameters()}
    weights = {
        name: weight.detach()
        .to("meta")
        .to(_cast_to(compute_dtype, weight, in_fp32))
        .requires_grad_(weight.requires_grad)
        for name, weight in model.named_parameters()
    }
    buffers = {name: buffer.to("meta") for name, buffer in model.named_buffers()}
    known = {_storage(tensor) for tensor in (*weights.values(), *buffers.values())}
    saved: list[dict[int, int]] = [{} for _ in layers]  # bytes by storage, of each layer
    results = Results()
    alive = []  # no storage may take the place of another one
    at: list[int] = []  # the layer that computes

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if at and (key := _storage(tensor)) not in known:
            known.add(key)
            alive.append(tensor)
            saved[at[0]][key] = tensor.untyped_storage().nbytes()
        return tensor

    hooks = [layer.register_forward_pre_hook(lambda *_, n=n: at.insert(0, n)) for n, layer in enumerate(layers)]
    hooks += [layer.register_forward_hook(lambda *_: at.clear()) for layer in layers]
    try:
        with (
            _measured_attention(model, results),
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            results,
        ):
            ids = torch.zeros(1, TOKENS, dtype=torch.int64, device="meta")
            ends = torch.zeros(2, dtype=torch.int32, device="meta")
            row = {"sample_lengths": (TOKENS,), "cu_seqlens": ends, "max_seqlen": TOKENS}
            functional_call(
                model,
                weights | buffers,
                (),
                {"input_ids": ids, "position_ids": ids, "use_cache": False, **to_keep(model, 1), **row},
            )
    finally:
        for hook in hooks:
            hook.remove()
    by_layer = [sum(sizes.values()) / TOKENS for sizes in saved]
    assert all(by_layer), "a layer kept nothing: it was not called as a module"
    return Kept(sum(by_layer), max(by_layer), results.bytes / TOKENS)


def _cast_to(compute_dtype: torch.dtype, weight: torch.Tensor, in_fp32: set[int]) -> torch.dtype:
    return compute_dtype if weight.is_floating_point() and id(weight) not in in_fp32 else weight.dtype


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Results(TorchDispatchMode):
    """Count the bytes that selective checkpointing would keep."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if stays_with_selective(function):
            self.count(*(tensor for tensor in tree_leaves(made) if isinstance(tensor, torch.Tensor)))
        return made

    def count(self, *tensors: torch.Tensor) -> None:
        self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def _measured_attention(model: PreTrainedModel, results: Results) -> Iterator[None]:
    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: Samples, __: Scores) -> torch.Tensor:
        output, log_sums = _Attention.apply(q.to(v.dtype), k.to(v.dtype), v)
        results.count(output, log_sums)
        return output

    config, before = model.config, model.config._attn_implementation
    AttentionInterface.register(NAME, attention_function(kernel, packed=True))
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        AttentionInterface._global_mapping.pop(NAME)


class _Attention(torch.autograd.Function):
    """What a kernel keeps, and nothing that it computes."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = q.new_empty(*q.shape[:2], v.shape[2])
        log_sums = q.new_empty(q.shape[1], len(q), dtype=torch.float32)
        ctx.save_for_backward(q, k, v, output, log_sums)
        return output, log_sums
