"""Parts that an architecture keeps in fp32 while the rest computes in 16 bits: routers, correction biases of experts.

transformers honours `_keep_in_fp32_modules_strict` when it loads a model, and not when it builds one from its
configuration, as we do. (`_keep_in_fp32_modules`, without `strict`, is about fp16 alone.)
"""

from __future__ import annotations

import re

import torch
from transformers import PreTrainedModel

from sft.model.source_code import is_read_raw
from sft.parallel.fsdp import class_name
from sft.parallel.world import log


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
    parameters of a module together. Nor is a module whose weight is read by what is around it, as the LM head's is by
    the loss: FSDP2 gathers a module when its forward is called.
    """
    pattern, found, head = _kept(model), {}, model.get_output_embeddings()
    for name, module in model.named_modules():
        own = [parameter for parameter, _ in module.named_parameters(prefix=name)]
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if own and not inside and all(map(pattern.search, own)) and module is not head and not is_read_raw(model, name):
            found[name] = module
    return list(found.values())


def say_what_is_rounded(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Log which parameters the architecture keeps in fp32 and that compute in `dtype`, that of their layer."""
    pattern = _kept(model)
    apart = {id(weight) for module in fp32_modules(model) for weight in module.parameters()}
    named = [name for name, weight in model.named_parameters() if pattern.search(name) and id(weight) not in apart]
    if named and dtype != torch.float32:
        kinds = sorted({".".join(name.split(".")[-2:]) for name in named})
        log.info("%s keeps in fp32, and here computes in %s: %s", class_name(model), dtype, ", ".join(kinds))


def _kept(model: PreTrainedModel) -> re.Pattern[str]:
    names = sorted(model._keep_in_fp32_modules_strict or ())
    return re.compile("|".join(rf"(^|\.){name}(\.|$)" for name in names) or "(?!)")
