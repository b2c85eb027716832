"""Compute the summed cross entropy over supervised tokens only.

The LM head meets only the columns that carry a label, and of these a few rows at a time: there is never a tensor of
all logits. The work is done in head.py, within the forward pass of the LM head, where FSDP2 has its weight gathered.
A model whose treatment of logits is not known (model/logits.py) gives whole logits of the supervised columns instead.

Shapes: R x C the layout of the batch (packed: R = 1), K supervised columns, N = R·K rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from sft.model.head import WHOLE_LOGITS_CHUNK, linear_ce_sum, token_losses
from sft.model.logits import to_keep
from sft.model.loss_form import BY_TORCH, CROSS_ENTROPY, LogitForm, LossForm
from sft.types import IGNORE_INDEX, Batch


def token_ce_sum(
    model: torch.nn.Module,
    batch: Batch,
    *,
    weight_sum: float = 1.0,
    sources: int = 1,
    loss: LossForm = CROSS_ENTROPY,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (Σ w·CE / weight_sum over the supervised tokens of `batch`, the same of each source [sources]).

    weight_sum: Σ w over all micro-batches and ranks, which only the step knows. loss: what stands in the place of CE

    The scalar is differentiable once. It is the weights that are divided, before anything is rounded to bf16. A batch
    without labels gives a zero that still reaches every parameter, so that a rank with nothing to learn takes part in
    the gradient reduction.
    """
    batch = replace(batch, loss_weights=batch.loss_weights / weight_sum)
    form = getattr(model, "logit_form", None)
    if form is not None:
        total, ce, _ = _fused(model, batch, form, loss)
        return total, _by_source(ce, batch, sources)
    logits, labels, weights = supervised_logits(model, batch)
    parts: list[Any] = [
        checkpoint(_weighted, *chunk, loss, use_reentrant=False) for chunk in _chunks(logits, labels, weights)
    ]
    ce = torch.cat([logits[:0].sum(dim=1, dtype=torch.float32), *parts])
    return ce.sum(), _by_source(ce.detach(), batch, sources)


@torch.no_grad()
def token_ce_sum_and_hits(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (Σ w·CE, number of supervised tokens whose most likely prediction is right), float64 and fp32 scalars."""
    form = getattr(model, "logit_form", None)
    if form is not None:
        _, ce, hits = _fused(model, batch, form, CROSS_ENTROPY)
        return ce.sum(dtype=torch.float64), hits
    logits, labels, weights = supervised_logits(model, batch)
    ce_sum, hits = logits.new_zeros((), dtype=torch.float64), logits.new_zeros((), dtype=torch.float32)
    for chunk in _chunks(logits, labels, weights):
        ce_sum = ce_sum + _weighted(*chunk, loss=CROSS_ENTROPY).sum(dtype=torch.float64)
        hits = hits + (chunk[0].argmax(-1) == chunk[1]).sum()  # IGNORE_INDEX equals no token id
    return ce_sum, hits


def _fused(
    model: Any, batch: Batch, form: LogitForm, loss: LossForm
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(Σ w·CE, w·CE [N], hits): the answer of `model` itself, for the time of one call.

    They must leave the model through its LM head and its own forward, or FSDP2 would not know of their gradients.

    A method registered with FSDP2 (register_fsdp_forward_method) that calls body and LM head by itself would need no
    hooks, and would be wrong for 15 of the 127 families whose loss is fused (docs/design.md, "Why the loss is given by
    hooks"): what the model's own forward does between its arguments and its LM head, only that forward knows.
    """
    head, kernel = model.get_output_embeddings(), getattr(model, "loss_kernel", BY_TORCH)
    hidden, answer = [], []

    def take_hidden(_: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        hidden.append(args[0].flatten(0, 1))
        return (args[0][:, :0],)  # so that the LM head computes no logits

    def give_loss(*_: Any) -> torch.Tensor:
        labels, weights = _supervised(batch)
        answer.extend(linear_ce_sum(hidden[0], head.weight, head.bias, labels, weights, form, loss, kernel))
        return answer[0]

    with (
        head.register_forward_pre_hook(take_hidden),
        # First: FSDP2's own, of either module, must see the answer.
        head.register_forward_hook(give_loss, prepend=True),
        model.register_forward_hook(lambda *_: tuple(answer), prepend=True),
    ):
        return _forward(model, batch)


def supervised_logits(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (logits [N, V], labels [N], loss_weights [N]) of the columns that carry labels.

    The model itself is asked for them (`logits_to_keep`), so that whatever it does after its LM head -
    soft-capping, scaling - is done here too. Of one that answers with all columns (xLSTM), theirs are taken.
    """
    logits, columns = _forward(model, batch).logits, batch.supervised_columns
    kept = logits if logits.shape[1] == len(columns) else logits[:, columns]
    return kept.flatten(0, 1), *_supervised(batch)


def _forward(model: torch.nn.Module, batch: Batch) -> Any:
    return model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        use_cache=False,
        **to_keep(model, batch.supervised_columns),
        **batch.boundaries,
    )


def _supervised(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (labels [N], loss_weights [N]) of the supervised columns."""
    columns = batch.supervised_columns
    return batch.labels[:, columns].flatten(), batch.loss_weights[:, columns].flatten()


def _by_source(ce: torch.Tensor, batch: Batch, sources: int) -> torch.Tensor:
    """Return Σ of ce [N] over the tokens of each source: float64 [sources]."""
    if batch.sources is None:
        return ce.sum(dtype=torch.float64)[None]
    # index_add_ adds one after the other: in fp32 that would lose digits in a long batch.
    totals = ce.new_zeros(sources, dtype=torch.float64)
    return totals.index_add_(0, batch.sources[:, batch.supervised_columns].flatten(), ce.double())


def _chunks(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    # split, not slices: the backward of a slice is a zero gradient of the whole tensor, once for every chunk.
    if len(tensors[0]):
        yield from zip(*(tensor.split(WHOLE_LOGITS_CHUNK) for tensor in tensors), strict=True)


def _weighted(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, loss: LossForm) -> torch.Tensor:
    """Return w·CE of every row [n], or w times what stands in its place."""
    if loss == CROSS_ENTROPY:
        return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="none") * weights
    return token_losses(logits.float(), labels, loss).where(labels != IGNORE_INDEX, 0.0) * weights
