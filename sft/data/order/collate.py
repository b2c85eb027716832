"""Samples -> Batch. The one place where labels are shifted.

Position t of a sample predicts its token t + 1; the last position of every sample predicts nothing, so no
label ever crosses into the next sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sft.types import IGNORE_INDEX, Batch, Counts, Sample

_NOTHING = Sample(np.zeros(1, np.int32), np.zeros(1, np.float32))
"""What a rank computes when a step has no sample left for it: one token that teaches nothing."""


def collate(
    samples: Sequence[Sample],
    *,
    packed: bool,
    pad_id: int,
    sources: Sequence[int] | np.ndarray | None = None,
    draws: Sequence[int] | None = None,
) -> Batch:
    """One micro-batch of whole samples, on the CPU.

    packed: all samples in one row, cu_seqlens marks them. Otherwise one row per sample, padded on the right
    with pad_id to the longest. Both carry the same labels and weights. No samples: a batch without labels.
    sources: the source of every sample, where there are several. draws: 32 random bits of every sample, for noise.
    """
    real_tokens = sum(len(sample) for sample in samples)
    samples = samples or [_NOTHING]
    lengths = np.array([len(sample) for sample in samples])
    longest = int(lengths.max())
    rows, columns = (1, int(lengths.sum())) if packed else (len(samples), longest)
    starts = np.concatenate([[0], np.cumsum(lengths)]) if packed else np.arange(len(samples)) * longest

    input_ids = np.full(rows * columns, pad_id, np.int64)
    labels = np.full(rows * columns, IGNORE_INDEX, np.int64)
    loss_weights = np.zeros(rows * columns, np.float32)
    position_ids = np.arange(rows * columns) % columns
    is_token = np.zeros(rows * columns, np.bool_)
    source_of_position = np.zeros(rows * columns, np.int64)
    noise = np.full(rows * columns, 1 << 32)
    for n, (start, sample) in enumerate(zip(starts, samples, strict=False)):
        end = start + len(sample)
        input_ids[start:end] = sample.input_ids
        loss_weights[start : end - 1] = sample.target_weights
        labels[start : end - 1] = np.where(sample.target_weights > 0, sample.targets, IGNORE_INDEX)
        position_ids[start:end] = np.arange(len(sample))
        is_token[start:end] = real_tokens > 0
        if sources is not None and real_tokens:
            source_of_position[start:end] = sources[n]
        if draws is not None and real_tokens:
            noise[start:end] = len(sample) << 32 | draws[n]

    def layout(flat: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(flat.reshape(rows, columns))

    counted = {
        "labels": layout(labels),
        "loss_weights": layout(loss_weights),
        "position_ids": layout(position_ids),
        "is_token": layout(is_token),
    }
    return Batch(
        input_ids=layout(input_ids),
        **counted,
        supervised_columns=(counted["labels"] != IGNORE_INDEX).any(dim=0).nonzero().flatten(),
        cu_seqlens=torch.from_numpy(starts.astype(np.int32)) if packed else None,
        sample_lengths=tuple(lengths.tolist()) if packed else None,
        sources=None if sources is None else layout(source_of_position),
        noise=None if draws is None else layout(noise),
        max_seqlen=longest,
        counts=Counts.of_tokens(**counted),
    )
