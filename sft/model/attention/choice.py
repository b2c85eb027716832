"""Which kernel computes the attention of a model, here, and why.

What the device and the installation offer is a plain value, so that every choice can be tested on any machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from sft.errors import InputError
from sft.model.pretrained import largest_of

KERNELS = {
    "flash_attention_3": "fa3",
    "varlen": "varlen",
    "flash_attention_2": "fa2",
    "flex": "flex",
    "blocked": "in_blocks",
    "sdpa": "by_sample",
}
"""In the order of preference, with their names in transformers, which takes "flash" and "sdpa" in a name for its own.
sdpa runs everywhere and computes everything."""

PLAIN_LAYERS = {"full_attention", "sliding_attention"}
SEPARABLE_LAYERS = {"linear_attention", "mamba", "conv", "recurrent", "hybrid", "hybrid_sliding"}
"""Layers that mix tokens in other ways as well, and can be called one sample at a time (mixers.py)."""
WITH_SINKS = {"flint", "gpt_oss", "granite_swa", "granitemoe_swa", "mimo_v2_flash"}
"""Models whose attention has sinks; kernels without refuse one that is missing here when it first calls them."""

WINDOW_IN_MASK = {"phimoe"}
"""Models whose attention is not told of its sliding window."""

WIDEST_HEAD = 256
"""Of the flash attention kernels."""


ABSENT = "is not installed"


def why_not(package: str, function: str) -> str:
    """Return why `function` of a package cannot be used, as the end of a sentence; empty if it can.

    The package is imported: one that was built for another torch is found, and fails only then.
    """
    if find_spec(package) is None:
        return ABSENT
    try:
        module = import_module(package)
    except Exception as error:  # a missing symbol, another CUDA, a check of versions: all of them mean "not here"
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"is installed, but cannot be imported ({first_line})"
    return "" if hasattr(module, function) else f"is installed without its {function}"


@dataclass(frozen=True)
class Available:
    """What there is to compute with."""

    device: Literal["cpu", "cuda"]
    capability: tuple[int, int] = (0, 0)  # CUDA's: (8, 0) A100, (9, 0) H100
    # What keeps a package from being used, as the end of a sentence; empty: nothing does.
    flash_attn: str = ABSENT  # flash attention 2
    flash_attn_interface: str = ABSENT  # flash attention 3
    triton: str = ABSENT

    @classmethod
    def on(cls, device: torch.device) -> Available:
        """Return what this installation offers on `device`."""
        if device.type != "cuda":
            return cls("cpu")
        return cls(
            "cuda",
            torch.cuda.get_device_capability(device),
            flash_attn=why_not("flash_attn", "flash_attn_varlen_func"),
            flash_attn_interface=why_not("flash_attn_interface", "flash_attn_varlen_func"),
            triton=why_not("triton", "jit"),
        )


@dataclass(frozen=True)
class Choice:
    """The attention of a model."""

    implementation: str  # its name in transformers
    kernel: str | None  # None: transformers' own
    packed: bool
    why: str

    def __str__(self) -> str:
        layout = "rows of whole samples" if self.packed else "padded rows"
        return f"{self.kernel or self.implementation} on {layout} ({self.why})"


def choose_attention(config: PretrainedConfig, *, wanted: str, packed: bool, half: bool, here: Available) -> Choice:
    """Return the attention that is right for this model and layout, as wanted or (auto) the fastest.

    half: whether the model computes in 16 bits. Raises InputError for a kernel that cannot compute this model here,
    and where packing would be wrong: layers that mix tokens by other means than causal attention, attention that
    cannot be exchanged.
    """
    # Code from a model directory (trust_remote_code) is in no mapping; it is taken to be an ordinary transformer, and
    # its first forward shows whether it asked for the kernel.
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    fixed = _not_exchangeable(config, model_class)
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    other_layers = getattr(model_class, "_is_stateful", False) or kinds - PLAIN_LAYERS
    if packed and (unknown := kinds - PLAIN_LAYERS - SEPARABLE_LAYERS):
        fixed = f"has layers ({', '.join(sorted(unknown))}) whose tokens would see those of other samples"
    if packed and fixed:
        raise InputError(f"use_remove_padding=true: {config.model_type} {fixed}; set use_remove_padding=false.")
    # transformers looks through the positions of every micro-batch for samples, and a GPU would be waited for: its own
    # attention is left for what may need its masks (is_decoder: encoders that can be decoders).
    plain = model_class is not None and not (other_layers or fixed or hasattr(config, "is_decoder"))
    if not packed and (wanted == "sdpa" or (wanted == "auto" and not (plain and here.device == "cuda"))):
        return _of_transformers(config, model_class)
    if fixed:
        raise InputError(
            f"model.attn_implementation={wanted}: {config.model_type} {fixed}; set model.attn_implementation=auto."
        )
    obstacles = {kernel: _obstacle(kernel, config, here, half=half) for kernel in KERNELS}
    possible = [kernel for kernel in KERNELS if not obstacles[kernel]]
    if wanted == "auto":
        # flex is compiled for minutes: only where sdpa would have to go by the formula. blocked wins by itself, but no
        # whole step became faster by it (docs/performance.md).
        by_formula = _soft_capped(config) or _has_sinks(config)
        considered = [kernel for kernel in KERNELS if kernel != "blocked" and (kernel != "flex" or by_formula)]
        kernel = next(kernel for kernel in considered if not obstacles[kernel])
        why = _passed_over(considered[: considered.index(kernel)], obstacles) or "the fastest here"
    elif obstacles[wanted]:
        raise InputError(
            f"model.attn_implementation={wanted} {obstacles[wanted]}; possible for {config.model_type} on this "
            f"{here.device} device: auto, {', '.join(possible)}."
        )
    else:
        kernel, why = wanted, f"model.attn_implementation={wanted}"
    if kernel == "sdpa" and (_soft_capped(config) or _has_sinks(config)):
        why += (
            "; soft-capped scores and sinks go by the formula, which takes memory for the square of a sample's length"
        )
    return Choice(f"{'packed' if packed else 'padded'}_{KERNELS[kernel]}", kernel, packed, why)


def _not_exchangeable(config: PretrainedConfig, model_class: Any) -> str:
    """Why no kernel of ours can take the place of this model's attention; empty if one can."""
    text = config.get_text_config()
    # Hybrids do not claim it, for the sake of their other layers; those that do not ask for a kernel show it when
    # their separation is proven.
    hybrid = getattr(model_class, "_is_stateful", False)
    if not (hybrid or getattr(model_class, "_supports_attention_backend", True)):
        return "does not let its attention be exchanged"
    if text.model_type in WINDOW_IN_MASK and (text.sliding_window or math.inf) < text.max_position_embeddings:
        return "tells its sliding window to transformers' masks, and not to its attention"
    return ""


def _of_transformers(config: PretrainedConfig, model_class: Any) -> Choice:
    """Choose transformers' own attention, which is right on padded rows whatever the layers are."""
    if getattr(model_class, "_supports_sdpa", True) and not _soft_capped(config):
        return Choice("sdpa", None, False, "use_remove_padding=false")
    return Choice("eager", None, False, f"use_remove_padding=false, and {config.model_type} has no sdpa")


def _obstacle(kernel: str, config: PretrainedConfig, here: Available, *, half: bool) -> str:
    """Why `kernel` cannot compute this model here; empty if it can."""
    if kernel == "sdpa":
        return ""
    if kernel == "blocked" and here.device == "cuda":
        return "is for CPUs"
    if kernel != "blocked" and here.device != "cuda":
        return "needs CUDA"
    text = config.get_text_config()
    if getattr(text, "attention_dropout", 0) and kernel != "flash_attention_2":
        return f"has no dropout (attention_dropout={text.attention_dropout} in the model's config.json)"
    if _has_sinks(config) and kernel != "flex":
        return "has no attention sinks"
    if _soft_capped(config) and kernel in ("varlen", "blocked"):
        return "has no soft-capping"
    if kernel == "blocked":
        return ""
    if kernel == "flex":
        return f"needs triton, which {here.triton}" if here.triton else ""
    package = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}.get(kernel)
    if package is not None and (reason := getattr(here, package)):
        return f"needs the package {package}, which {reason}"
    if kernel == "flash_attention_3" and here.capability[0] != 9:
        return "needs a Hopper GPU (H100, H200)"
    if here.capability < (8, 0):
        return "needs an Ampere GPU or a newer one"
    if not half:
        return "computes in 16 bits only (model.fsdp_config.compute_dtype=bf16)"
    if (width := _head_width(text)) > WIDEST_HEAD:
        return f"takes heads of at most {WIDEST_HEAD}, not {width}"
    return ""


def _soft_capped(config: PretrainedConfig) -> bool:
    return getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None


def _has_sinks(config: PretrainedConfig) -> bool:
    return config.get_text_config().model_type in WITH_SINKS


def _head_width(config: PretrainedConfig) -> int:
    names = ("head_dim", "global_head_dim", "qk_head_dim")
    stated = [width for name in names if (width := largest_of(config, name))]
    heads = largest_of(config, "num_attention_heads") or 1  # Mamba and RWKV have none
    return max(stated, default=config.hidden_size // heads)


def _passed_over(kernels: list[str], obstacles: dict[str, str]) -> str:
    """Return the obstacles of these kernels, those with the same one together."""
    by_obstacle: dict[str, list[str]] = {}
    for kernel in kernels:
        by_obstacle.setdefault(obstacles[kernel], []).append(kernel)
    return "; ".join(f"{', '.join(names)}: {obstacle}" for obstacle, names in by_obstacle.items())
