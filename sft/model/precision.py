"""Parts that an architecture keeps in fp32 while the rest computes in 16 bits: routers, correction biases of experts.

transformers honours `_keep_in_fp32_modules_strict` when it loads a model, and not when it builds one from its
configuration, as we do.
"""

from __future__ import annotations

import re

import torch
from transformers import PreTrainedModel


def keep_in_fp32(model: PreTrainedModel) -> None:
    """Turn what the architecture keeps in fp32 into fp32: buffers, and the parameters of `fp32_modules`."""
    pattern = _kept(model)
    for name, module in model.named_modules():
        for own, buffer in module.named_buffers(prefix=name, recurse=False):
            if buffer.is_floating_point() and pattern.search(own):
                setattr(module, own.rpartition(".")[2], buffer.float())
    for module in fp32_modules(model):
        module.float()


def fp32_modules(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the outermost modules all of whose parameters the architecture keeps in fp32.

    A single parameter among others, such as the sinks of an attention, is not among them: FSDP2 casts and reduces the
    parameters of a module together.
    """
    pattern, found = _kept(model), {}
    for name, module in model.named_modules():
        own = [parameter for parameter, _ in module.named_parameters(prefix=name)]
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if own and not inside and all(pattern.search(parameter) for parameter in own):
            found[name] = module
    return list(found.values())


def _kept(model: PreTrainedModel) -> re.Pattern[str]:
    names = sorted(model._keep_in_fp32_modules_strict or ())
    return re.compile("|".join(rf"(^|\.){name}(\.|$)" for name in names) or "(?!)")
