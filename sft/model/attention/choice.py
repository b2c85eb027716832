"""Which kernel computes the attention of a model, here, and why.

What the device and the installation offer is a plain value, so that every choice can be tested on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from sft.errors import InputError

KERNELS = {
    "flash_attention_3": "fa3",
    "varlen": "varlen",
    "flash_attention_2": "fa2",
    "flex": "flex",
    "sdpa": "by_sample",
}
"""In the order of preference, with their names in transformers, which takes "flash" and "sdpa" in a name for its own.
sdpa runs everywhere and computes everything."""

PACKABLE_LAYERS = {"full_attention", "sliding_attention"}
WITH_SINKS = {"flint", "gpt_oss", "granite_swa", "granitemoe_swa", "mimo_v2_flash"}
"""Models whose attention has sinks; kernels without refuse one that is missing here when it first calls them."""

WIDEST_HEAD = 256
"""Of the flash attention kernels."""


@dataclass(frozen=True)
class Available:
    """What there is to compute with."""

    device: Literal["cpu", "cuda"]
    capability: tuple[int, int] = (0, 0)  # CUDA's: (8, 0) A100, (9, 0) H100
    flash_attn: bool = False  # the package of flash attention 2
    flash_attn_interface: bool = False  # that of flash attention 3
    triton: bool = False

    @classmethod
    def on(cls, device: torch.device) -> Available:
        """What this installation offers on `device`."""
        if device.type != "cuda":
            return cls("cpu")
        return cls(
            "cuda",
            torch.cuda.get_device_capability(device),
            *(find_spec(name) is not None for name in ("flash_attn", "flash_attn_interface", "triton")),
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
    """The attention that is right for this model and layout, as wanted or (auto) the fastest.

    half: whether the model computes in 16 bits. Raises InputError for a kernel that cannot compute this model here,
    and where packing would be wrong: layers that mix tokens by other means than causal attention, attention that
    cannot be exchanged.
    """
    # Code from a model directory (trust_remote_code) is in no mapping; it is taken to be an ordinary transformer, and
    # its first forward shows whether it asked for the kernel.
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if packed:
        _check_layers(config, model_class)
    elif wanted in ("auto", "sdpa"):
        return _of_transformers(config, model_class)
    elif not getattr(model_class, "_supports_attention_backend", True):
        raise InputError(
            f"model.attn_implementation={wanted}: {config.model_type} does not let its attention be exchanged; "
            "set model.attn_implementation=auto."
        )
    obstacles = {kernel: _obstacle(kernel, config, here, half=half) for kernel in KERNELS}
    possible = [kernel for kernel in KERNELS if not obstacles[kernel]]
    if wanted == "auto":
        # Compiled for minutes: only where sdpa would have to go by the formula.
        by_formula = _soft_capped(config) or _has_sinks(config)
        considered = [kernel for kernel in KERNELS if kernel != "flex" or by_formula]
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


def _check_layers(config: PretrainedConfig, model_class: Any) -> None:
    """Raise InputError where samples in one row would see each other, whatever the kernel."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if getattr(model_class, "_is_stateful", False) or kinds - PACKABLE_LAYERS:
        obstacle = "has layers that mix tokens in another way, which would leak from one sample into the next"
    elif not getattr(model_class, "_supports_attention_backend", True):
        obstacle = "does not let its attention be exchanged"
    else:
        return
    raise InputError(f"use_remove_padding=true: {config.model_type} {obstacle}; set use_remove_padding=false.")


def _of_transformers(config: PretrainedConfig, model_class: Any) -> Choice:
    """transformers' own attention, which is right on padded rows whatever the layers are."""
    if getattr(model_class, "_supports_sdpa", True) and not _soft_capped(config):
        return Choice("sdpa", None, False, "use_remove_padding=false")
    return Choice("eager", None, False, f"use_remove_padding=false, and {config.model_type} has no sdpa")


def _obstacle(kernel: str, config: PretrainedConfig, here: Available, *, half: bool) -> str:
    """Why `kernel` cannot compute this model here; empty if it can."""
    if kernel == "sdpa":
        return ""
    if here.device != "cuda":
        return "needs CUDA"
    text = config.get_text_config()
    if getattr(text, "attention_dropout", 0) and kernel != "flash_attention_2":
        return f"has no dropout (attention_dropout={text.attention_dropout} in the model's config.json)"
    if kernel == "flex":
        return "" if here.triton else "needs triton, which is not installed"
    package = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}.get(kernel)
    if package is not None and not getattr(here, package):
        return f"needs the package {package}, which is not installed"
    if kernel == "flash_attention_3" and here.capability[0] != 9:
        return "needs a Hopper GPU (H100, H200)"
    if here.capability < (8, 0):
        return "needs an Ampere GPU or a newer one"
    if not half:
        return "computes in 16 bits only (model.fsdp_config.compute_dtype=bf16)"
    if (width := _head_width(text)) > WIDEST_HEAD:
        return f"takes heads of at most {WIDEST_HEAD}, not {width}"
    if _has_sinks(config):
        return "has no attention sinks"
    if _soft_capped(config) and kernel == "varlen":
        return "has no soft-capping"
    return ""


def _soft_capped(config: PretrainedConfig) -> bool:
    return getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None


def _has_sinks(config: PretrainedConfig) -> bool:
    return config.get_text_config().model_type in WITH_SINKS


def _head_width(config: PretrainedConfig) -> int:
    names = ("head_dim", "global_head_dim", "qk_head_dim")
    stated = [width for name in names if (width := getattr(config, name, None))]
    return max(stated, default=config.hidden_size // config.num_attention_heads)


def _passed_over(kernels: list[str], obstacles: dict[str, str]) -> str:
    """The obstacles of these kernels, those with the same one together."""
    by_obstacle: dict[str, list[str]] = {}
    for kernel in kernels:
        by_obstacle.setdefault(obstacles[kernel], []).append(kernel)
    return "; ".join(f"{', '.join(names)}: {obstacle}" for obstacle, names in by_obstacle.items())
