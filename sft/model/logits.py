"""What a model does to its logits after the LM head, found by trying: soft-capping, scaling, nothing, or more.

The fused loss (sft/model/head.py) never has whole logits, so it must do to them what the model would have done. No
table of architectures says that; the model's own forward does, with everything below and the LM head itself replaced
by stubs.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

from sft.errors import InputError
from sft.model.attention.choice import why_not
from sft.model.loss_form import BY_TORCH, LOSS_KERNELS, LogitForm
from sft.parallel.fsdp import class_name
from sft.parallel.world import log

LOGITS_AS_LARGE_AS = 30.0
"""Standard deviation of the logits tried: soft-caps in use are 15 to 50."""


def refuse_loss_kernel(name: str, device: torch.device) -> None:
    """Raise InputError where model.loss_kernel names what `device`, or this installation, does not have."""
    kernel = LOSS_KERNELS[name]
    obstacle = "CUDA, and this run is on the CPU" if kernel != BY_TORCH and device.type == "cpu" else ""
    if not obstacle and kernel.by_triton and (reason := why_not("triton", "jit")):
        obstacle = f"triton, which {reason}"
    if obstacle:
        raise InputError(f"model.loss_kernel={name} needs {obstacle}; set model.loss_kernel=torch.")


def note_loss_kernel(model: PreTrainedModel, name: str) -> None:
    """Note on `model`, whose logit form is known, how its loss is computed: one of model.loss_kernel."""
    vars(model)["loss_kernel"] = LOSS_KERNELS[name]
    if LOSS_KERNELS[name] != BY_TORCH and vars(model)["logit_form"] is None:
        log.warning("model.loss_kernel=%s has no effect: the loss is computed from whole logits.", name)


def to_keep(model: torch.nn.Module, columns: int | torch.Tensor) -> dict[str, Any]:
    """Return the argument that asks `model` for the logits of these columns alone; none if its forward takes none.

    A forward that takes any argument may ignore this one, too: who asks must be ready for logits of all columns.
    """
    taken = inspect.signature(model.forward).parameters.values()
    knows = any(each.name == "logits_to_keep" or each.kind is each.VAR_KEYWORD for each in taken)
    return {"logits_to_keep": columns} if knows else {}


def learn_logit_form(model: PreTrainedModel) -> LogitForm | None:
    """Find out how the logits of `model` follow from the output of its LM head, and note it as model.logit_form.

    None, and a line in the log, where that is not proven: the loss is then computed from whole logits, which is as
    right and takes more memory. For a model that is not sharded yet; the meta device will do.
    """
    form = _proven_form(model)
    vars(model)["logit_form"] = form  # to nn.Module, an attribute is a parameter or a module
    return form


def _proven_form(model: PreTrainedModel) -> LogitForm | None:
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:  # LoRA on the LM head, a head of several layers
        return _give_up(model, f"its LM head is a {type(head).__name__}")
    x = LOGITS_AS_LARGE_AS * torch.randn(1, 2, head.out_features, dtype=torch.float64, generator=_generator())
    capped = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    try:
        z = _logits_of(model, head, x.clone())
        _logits_of(model, head, x.sum())  # the fused loss gives a scalar where logits were
        for form in (_fit(x, z.double(), cap) for cap in (None, capped) if z.shape == x.shape):
            if torch.allclose(_apply(form, x), z.double(), rtol=1e-5, atol=1e-5):
                return form
    except Exception as error:  # foreign code, called with stubs: whatever it says means "not proven"
        return _give_up(model, f"its forward could not be tried ({type(error).__name__}: {error})")
    return _give_up(model, "it does more to its logits than scale and soft-cap them")


def _give_up(model: PreTrainedModel, reason: str) -> None:
    log.info("%s: the loss is computed from whole logits, not fused with the LM head: %s", class_name(model), reason)


def _logits_of(model: PreTrainedModel, head: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Return what `model` answers for columns 0 and 2 of three tokens when its LM head says `x`."""
    body = model.base_model
    if body is model:
        raise NotImplementedError("it has no body apart from its LM head")
    hidden = torch.zeros(1, 3, head.in_features)

    def answer(hidden_states: torch.Tensor) -> torch.Tensor:
        if hidden_states.shape != (1, 2, head.in_features):
            raise NotImplementedError("its LM head meets other tokens than it is asked for")
        return x

    stubs: list[tuple[Any, Any]] = [(body, lambda *_, **__: _BodyOutput([hidden])), (head, answer)]
    for module, stub in stubs:
        module.forward = stub
    try:
        return model(
            input_ids=torch.zeros(1, 3, dtype=torch.int64),
            position_ids=torch.arange(3)[None],
            use_cache=False,
            **to_keep(model, torch.tensor([0, 2])),
        ).logits
    finally:
        for module, _ in stubs:
            del module.forward


class _BodyOutput(tuple):
    """The last hidden state, by position or by name; all else that a body may give is None."""

    @property
    def last_hidden_state(self) -> torch.Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        return None


def _fit(x: torch.Tensor, z: torch.Tensor, cap: float | None) -> LogitForm:
    """Return the scale that explains z, from the logits that are too small to be capped."""
    small = x.abs() < 1
    x, z = x[small], z[small]
    straight = z if cap is None else cap * torch.atanh((z / cap).clamp(-0.999, 0.999))
    scale = float((straight @ x) / (x @ x))
    return LogitForm(1.0 if abs(scale - 1) < 1e-6 else scale, cap)


def _apply(form: LogitForm, x: torch.Tensor) -> torch.Tensor:
    scaled = form.scale * x
    return scaled if form.cap is None else form.cap * torch.tanh(scaled / form.cap)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
