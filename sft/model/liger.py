"""Liger's kernels for norms, rotary positions and gated MLPs; the loss stays ours (sft/model/head.py).

Source: Liger-Kernel, Hsu et al. 2024, arXiv:2410.10989.
"""

from __future__ import annotations

import inspect
from importlib.metadata import version
from importlib.util import find_spec

import torch
from transformers import PreTrainedModel

from sft.errors import InputError
from sft.parallel.world import log

KERNELS = {
    "rms_norm": "RMS norms",
    "layer_norm": "layer norms",
    "rope": "rotary positions",
    "swiglu": "gated MLPs",
    "geglu": "gated MLPs",
}
"""Liger's names of what it can exchange in a model, but for the loss."""


def refuse_without_liger(device: torch.device) -> None:
    """Raise InputError where liger could help and is not installed. A CPU does without it."""
    if device.type == "cuda" and find_spec("liger_kernel") is None:
        raise InputError(
            "model.use_liger=true needs liger-kernel, which is not installed: pip install liger-kernel, or leave "
            "it out."
        )


def use_liger_kernels(model: PreTrainedModel, device: torch.device) -> None:
    """Let liger compute what it can of `model`, in place; one line in the log says what, or why nothing.

    Some of it - rotary positions - is exchanged in transformers itself, for every model of this kind in the process.
    Raises InputError where liger is not installed or does not know this version of the architecture.
    """
    kind = model.config.model_type
    refuse_without_liger(device)
    if obstacle := _obstacle(kind, device):
        log.info("model.use_liger=true has no effect: %s", obstacle)
        return
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN  # pyright: ignore[reportMissingImports]

    apply = MODEL_TYPE_TO_APPLY_LIGER_FN[kind]
    options = inspect.signature(apply).parameters
    ours = {name: False for name in ("cross_entropy", "fused_linear_cross_entropy") if name in options}
    try:
        apply(model=model, **ours)
    except Exception as error:
        raise InputError(
            f"model.use_liger=true: liger-kernel {version('liger-kernel')} cannot take over this {kind} "
            f"({type(error).__name__}: {error}); set model.use_liger=false."
        ) from error
    parts = dict.fromkeys(words for name, words in KERNELS.items() if name in options and options[name].default)
    log.info("model.use_liger: liger-kernel %s computes %s", version("liger-kernel"), ", ".join(parts))


def _obstacle(kind: str, device: torch.device) -> str:
    """Why liger cannot help, as the end of a sentence; empty if it can."""
    if device.type != "cuda":
        return f"its kernels run on GPUs, and this run is on the {device.type.upper()}"
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN  # pyright: ignore[reportMissingImports]

    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        return f"liger-kernel {version('liger-kernel')} has no kernels for {kind}"
    return ""
