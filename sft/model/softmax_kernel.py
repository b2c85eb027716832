"""Softmax, loss and gradient of a chunk of logits in one Triton kernel: the arithmetic of head.py's torch path.

    p = exp z / Z        dz = from_all·p - from_label·onehot - from_each

Every row is read twice: once for its largest logit, Z and the logit of its label, once for the gradient, which may take
the place of the logits. The torch path reads and writes a chunk about seven times; it stays the default until a GPU has
compared the two (loss_form.py).
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from sft.model.loss_form import LogitForm, LossForm

BLOCK = 8192
"""Logits that a program handles at a time."""
WARPS = 16


def softmax_and_gradient(
    x: torch.Tensor,  # [n, V] in any floating dtype: what the LM head gave
    labels: torch.Tensor,  # int64 [n]; a label below 0 has no logit
    weights: torch.Tensor,  # fp32 [n]
    form: LogitForm,
    loss: LossForm,
    *,
    gradient: torch.Tensor | None,  # [n, V], to be filled with dΣ/dx; may be x itself. None: nobody needs it
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (w·loss of every row, fp32 [n]; rows whose likeliest token is the label, fp32 scalar)."""
    assert loss.kind != "eaft", "the entropy of the likeliest tokens is not computed here"
    assert x.is_contiguous() and (gradient is None or gradient.is_contiguous())
    losses, hits = (torch.empty(len(x), device=x.device) for _ in range(2))
    launch: Any = _of_a_row
    launch[(len(x),)](
        x,
        x if gradient is None else gradient,
        labels,
        weights,
        losses,
        hits,
        x.shape[1],
        form.scale,
        form.cap,
        loss.label_smoothing,
        loss.z_loss,
        is_dft=loss.kind == "dft",
        with_gradient=gradient is not None,
        block=min(BLOCK, triton.next_power_of_2(x.shape[1])),
        num_warps=WARPS,
    )
    return losses, hits.sum()


@triton.jit
def _of_a_row(
    x,
    gradient,
    labels,
    weights,
    losses,
    hits,
    vocabulary: tl.constexpr,
    scale: tl.constexpr,
    cap: tl.constexpr,
    smoothing: tl.constexpr,
    z_loss: tl.constexpr,
    is_dft: tl.constexpr,
    with_gradient: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # n·V may be more than int32 holds
    x += row * vocabulary
    gradient += row * vocabulary
    label = tl.load(labels + row)
    w = tl.load(weights + row)

    highest = -3.4e38  # of what is finite; a block of -inf alone leaves it there
    normaliser = 0.0  # Σ exp(z - highest)
    at_label = 0.0
    all_logits = 0.0
    guess = label * 0 - 1
    for start in range(0, vocabulary, block):
        columns = start + tl.arange(0, block)
        inside = columns < vocabulary
        z = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32) * scale
        if cap is not None:
            z = cap * (2.0 * tl.sigmoid(2.0 * z / cap) - 1.0)  # cap·tanh(z / cap)
        seen = tl.where(inside, z, float("-inf"))
        largest = tl.max(seen, axis=0)
        guess = tl.where(largest > highest, start + tl.argmax(seen, axis=0), guess)
        above = tl.maximum(highest, largest)
        normaliser = normaliser * tl.exp(highest - above) + tl.sum(tl.where(inside, tl.exp(z - above), 0.0), axis=0)
        highest = above
        at_label += tl.sum(tl.where(columns == label, z, 0.0), axis=0)
        if smoothing > 0:
            all_logits += tl.sum(tl.where(inside, z, 0.0), axis=0)

    log_z = tl.log(normaliser)  # of z - highest, as at_label and the mean below
    at_label -= highest
    ce = log_z - at_label
    gate = tl.exp(-ce) if is_dft else 1.0
    smoothed = ce
    if smoothing > 0:
        smoothed = log_z - (1.0 - smoothing) * at_label - smoothing * (all_logits / vocabulary - highest)
    log_sum = log_z + highest
    tl.store(losses + row, w * (gate * smoothed + z_loss * log_sum * log_sum))
    tl.store(hits + row, tl.where(guess == label, 1.0, 0.0))

    if with_gradient:
        from_all = w * (gate + 2.0 * z_loss * log_sum) / normaliser
        from_label = w * gate * (1.0 - smoothing)
        from_each = w * gate * smoothing / vocabulary
        for start in range(0, vocabulary, block):
            columns = start + tl.arange(0, block)
            inside = columns < vocabulary
            z = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32) * scale
            slope = scale
            if cap is not None:
                t = 2.0 * tl.sigmoid(2.0 * z / cap) - 1.0
                z = cap * t
                slope = scale * (1.0 - t * t)
            d_z = from_all * tl.exp(z - highest) - from_each - tl.where(columns == label, from_label, 0.0)
            tl.store(gradient + columns, (d_z * slope).to(gradient.dtype.element_ty), mask=inside)
