"""Summed cross entropy over supervised tokens only.

The LM head meets only the columns that carry a label, and the fp32 softmax exists for one chunk of them at a
time: there is never a [T, V] tensor of all positions.

Shapes: R x C the layout of the batch (packed: R = 1), K supervised columns, N = R·K rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from sft.types import IGNORE_INDEX, Batch

CHUNK = 1024
"""Rows of logits whose fp32 copy is alive at one time: 1024 x 152k x 4 bytes = 0.6 GiB."""


def token_ce_sum(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Σ w·CE over the supervised tokens of `batch`: fp32 scalar, differentiable, not divided by anything.

    Only the step knows Σ w over all micro-batches and ranks. A batch without labels gives a zero that still
    reaches every parameter, so that a rank with nothing to learn takes part in the gradient reduction.
    """
    logits, labels, weights = supervised_logits(model, batch)
    total = logits[:0].sum(dtype=torch.float32)
    for chunk in _chunks(logits, labels, weights):
        total = total + checkpoint(_weighted_ce, *chunk, use_reentrant=False)
    return total


@torch.no_grad()
def token_ce_sum_and_hits(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(Σ w·CE, number of supervised tokens whose most likely prediction is right), both fp32 scalars."""
    logits, labels, weights = supervised_logits(model, batch)
    ce_sum = hits = logits.new_zeros((), dtype=torch.float32)
    for chunk in _chunks(logits, labels, weights):
        ce_sum = ce_sum + _weighted_ce(*chunk)
        hits = hits + (chunk[0].argmax(-1) == chunk[1]).sum()  # IGNORE_INDEX equals no token id
    return ce_sum, hits


def supervised_logits(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logits [N, V], labels [N], loss_weights [N]) of the columns that carry labels.

    The model itself is asked for them (`logits_to_keep`), so that whatever it does after its LM head -
    soft-capping, scaling - is done here too.
    """
    logits = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        logits_to_keep=batch.supervised_columns,
        use_cache=False,
        **batch.boundaries,
    ).logits
    columns = batch.supervised_columns
    return logits.flatten(0, 1), batch.labels[:, columns].flatten(), batch.loss_weights[:, columns].flatten()


def _chunks(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    # split, not slices: the backward of a slice is a zero gradient of the whole tensor, once for every chunk.
    if len(tensors[0]):
        yield from zip(*(tensor.split(CHUNK) for tensor in tensors), strict=True)


def _weighted_ce(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    ce = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="none")
    return (ce * weights).sum()
