"""Cross entropy straight from hidden states: LM head, softmax, loss and gradients of a few rows at a time.

    x = W h + b        z = cap·tanh(scale·x / cap), or scale·x without a cap        ce = log Σ exp z - z[label]

The gradients are computed in the forward pass, while the softmax of the rows is at hand. So a training step costs
three matrix products (x, dh, dW) and not four, and there is never a tensor of N x V.

Shapes: N rows, D width, V vocabulary; n rows of one chunk.
Source: the idea is Liger-Kernel's, Hsu et al. 2024, arXiv:2410.10989.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from sft.model.loss_form import BY_TORCH, CROSS_ENTROPY, LogitForm, LossForm, LossKernel
from sft.types import IGNORE_INDEX

CHUNK = {"cpu": 512, "gpu": 2048}
"""n: rows whose logits are alive at one time."""
WHOLE_LOGITS_CHUNK = 1024
"""The same where the model itself makes logits (loss.py), in fp32 copies: 1024 x 152k x 4 bytes = 0.6 GiB."""
WEIGHT_ROWS = 8192
"""Rows of the weight whose gradients of a chunk are made at one time, in bf16, and then added in fp32."""


LIKELIEST = 20
"""Tokens whose entropy the gate of EAFT goes by."""


def token_losses(logits: torch.Tensor, labels: torch.Tensor, form: LossForm) -> torch.Tensor:
    """Return the loss of every row [n] by the formula above, through autograd.

    logits: fp32 [n, V]. labels: int64 [n]; a row with IGNORE_INDEX gives a number without meaning.
    """
    log_z = logits.logsumexp(dim=1)
    at_label = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    losses = log_z - at_label
    gate: torch.Tensor | float = 1.0
    if form.kind == "dft":
        gate = (-losses).exp().detach()
    elif form.kind == "eaft":
        gate = _entropy(logits.detach())[:, 0]
    if form.label_smoothing:
        losses = log_z - (1 - form.label_smoothing) * at_label - form.label_smoothing * logits.mean(dim=1)
    losses = losses * gate
    return losses + form.z_loss * log_z**2 if form.z_loss else losses


def _entropy(z: torch.Tensor) -> torch.Tensor:
    """Return the entropy of the likeliest tokens among themselves, as a share of its maximum: [n, V] -> [n, 1]."""
    likeliest = min(LIKELIEST, z.shape[1])
    shares = z.topk(likeliest, dim=1).values.softmax(dim=1)
    return torch.special.entr(shares).sum(dim=1, keepdim=True) / math.log(likeliest)


def linear_ce_sum(
    hidden: torch.Tensor,  # [N, D]
    weight: torch.Tensor,  # [V, D], in hidden's dtype
    bias: torch.Tensor | None,  # [V]
    labels: torch.Tensor,  # int64 [N], IGNORE_INDEX = no loss
    loss_weights: torch.Tensor,  # float32 [N]
    form: LogitForm,
    loss: LossForm = CROSS_ENTROPY,
    kernel: LossKernel = BY_TORCH,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (Σ w·CE, differentiable once; w·CE of every row [N]; rows predicted right), all fp32.

    loss: what stands in the place of CE. kernel: how it is computed
    """
    grad_enabled = torch.is_grad_enabled()
    return _LinearCrossEntropy.apply(hidden, weight, bias, labels, loss_weights, form, loss, kernel, grad_enabled)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        loss_weights: torch.Tensor,
        form: LogitForm,
        loss: LossForm,
        kernel: LossKernel,
        grad_enabled: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wants = [grad_enabled and needed for needed in ctx.needs_input_grad[:3]]
        d_hidden = torch.empty_like(hidden) if wants[0] else None
        # In fp32: a sum over many chunks does not survive the 8 bits of bf16's mantissa.
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants[1] else None
        d_bias = weight.new_zeros(len(weight), dtype=torch.float32) if wants[2] else None
        ce, hits = torch.zeros(len(hidden), device=hidden.device), torch.zeros((), device=hidden.device)

        rows = CHUNK["cpu" if hidden.device.type == "cpu" else "gpu"]
        # One piece of memory serves all chunks: on a CPU, new memory costs more than the arithmetic on it.
        x_memory = hidden.new_empty(min(rows, len(hidden)), len(weight))
        in_place = x_memory.dtype == torch.float32 or (kernel.by_triton and not kernel.fp32_logits)
        z_memory = x_memory if in_place else torch.empty_like(x_memory, dtype=torch.float32)
        part = torch.empty_like(weight[:WEIGHT_ROWS]) if wants[1] and weight.dtype != torch.float32 else None

        loss_weights = loss_weights.where(labels != IGNORE_INDEX, 0.0)
        for start in range(0, len(hidden), rows):
            h, label, w = (t[start : start + rows] for t in (hidden, labels, loss_weights))
            x, z = x_memory[: len(h)], z_memory[: len(h)]

            _head(h, weight, bias, out=z if kernel.fp32_logits else x)
            if z is not x and not kernel.fp32_logits:
                z.copy_(x)
            if kernel.by_triton:
                from sft.model.softmax_kernel import softmax_and_gradient  # triton is optional

                losses, found = softmax_and_gradient(z, label, w, form, loss, gradient=x if any(wants) else None)
                d_z = x
            else:
                losses, found = _softmax_and_gradient(z, label, w, form, loss, with_gradient=any(wants))
                d_z = z
            ce[start : start + rows] = losses
            hits = hits + found
            if not any(wants):
                continue

            if d_bias is not None:
                d_bias += d_z.sum(dim=0, dtype=torch.float32)
            d_x = d_z if d_z.dtype == x.dtype else x.copy_(d_z)
            if d_hidden is not None:
                torch.mm(d_x, weight, out=d_hidden[start : start + rows])
            if part is not None and d_weight is not None:
                for sums, of_rows in zip(d_weight.split(WEIGHT_ROWS), d_x.split(WEIGHT_ROWS, dim=1), strict=True):
                    sums += torch.mm(of_rows.T, h, out=part[: len(sums)])
            elif d_weight is not None:
                d_weight.addmm_(d_x.T, h)

        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtype = weight.dtype
        ctx.mark_non_differentiable(ce, hits)
        return ce.sum(), ce, hits

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        # In place, because these are the largest tensors of a step; autograd refuses a second backward through them.
        scaled = (None if d is None else d.mul_(gradient).to(ctx.dtype) for d in ctx.saved_tensors)
        return *scaled, None, None, None, None, None, None


def _head(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, out: torch.Tensor) -> torch.Tensor:
    """x = W h + b, into `out` [n, V]; in fp32, where `out` is and the others are not, on CUDA alone."""
    if out.dtype != h.dtype:
        torch.mm(h, weight.T, out_dtype=out.dtype, out=out)
        return out if bias is None else out.add_(bias)
    return torch.mm(h, weight.T, out=out) if bias is None else torch.addmm(bias, h, weight.T, out=out)


def _softmax_and_gradient(
    z: torch.Tensor,  # fp32 [n, V]: what the LM head gave
    label: torch.Tensor,  # int64 [n]
    w: torch.Tensor,  # fp32 [n]
    form: LogitForm,
    loss: LossForm,
    *,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (w·loss of every row [n], rows whose likeliest token is the label). The gradient takes the place of z."""
    label, w = label[:, None], w[:, None]
    slope = _shape(z, form, with_slope=with_gradient)
    highest, guess = z.max(dim=1, keepdim=True)
    at_label = z.sub_(highest).gather(1, label.clamp(min=0))
    mean = z.mean(dim=1, keepdim=True) if loss.label_smoothing else 0.0
    gate = _entropy(z) if loss.kind == "eaft" else 1.0
    normaliser = z.exp_().sum(dim=1, keepdim=True)
    log_z = normaliser.log()
    losses = log_z - at_label
    from_all = from_label = w  # dz = from_all·softmax - from_label·onehot - from_each
    from_each = None
    if loss != CROSS_ENTROPY:
        gate = (-losses).exp() if loss.kind == "dft" else gate
        smoothing, log_sum = loss.label_smoothing, log_z + highest
        losses = gate * (log_z - (1 - smoothing) * at_label - smoothing * mean) + loss.z_loss * log_sum**2
        from_all = w * (gate + 2 * loss.z_loss * log_sum)
        from_label = w * gate * (1 - smoothing)
        from_each = w * gate * smoothing / z.shape[1] if smoothing else None
    if with_gradient:
        z.mul_(from_all / normaliser).scatter_add_(1, label.clamp(min=0), -from_label)
        if from_each is not None:
            z.sub_(from_each)
        if slope is not None:
            z.mul_(slope)
    return (losses * w)[:, 0], (guess == label).sum()  # IGNORE_INDEX equals no token id


def _shape(x: torch.Tensor, form: LogitForm, *, with_slope: bool) -> torch.Tensor | float | None:
    """Turn x into z in its place; gives dz/dx, None where that is 1."""
    if form.scale != 1:
        x.mul_(form.scale)
    if form.cap is None:
        return form.scale if form.scale != 1 else None
    t = x.div_(form.cap).tanh_()
    slope = (1 - t * t).mul_(form.scale) if with_slope else None
    x.mul_(form.cap)
    return slope
