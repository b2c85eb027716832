"""Add noise to the embeddings while training (NEFTune, Jain et al. 2023, arXiv:2310.05914).

    x + alpha / √(L·D) · u        u uniform in [-1, 1), L tokens of the sample, D width

A number of u is a hash of what its sample drew (of the run's seed, the step and the sample), its position and its dim.
So it does not depend on how a step is split into micro-batches, rows and ranks, nor on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sft.types import Batch

BITS_32 = 0xFFFFFFFF
STEP = 0x9E3779B9  # 2^32 / golden ratio: multiples of it are spread evenly
ROWS_AT_ONCE = 1024


@contextmanager
def noisy_embeddings(model: Any, batch: Batch, alpha: float) -> Iterator[None]:
    """Add noise to what the embeddings of `model` say of `batch`, in forwards within this context, if it has any."""
    if batch.noise is None:
        yield
        return
    draws, position_ids = batch.noise, batch.position_ids
    add = model.get_input_embeddings().register_forward_hook(
        lambda _, __, embedded: embedded + noise(draws, position_ids, embedded.shape[-1], alpha).to(embedded.dtype)
    )
    try:
        yield
    finally:
        add.remove()


@torch.no_grad()
def noise(draws: torch.Tensor, position_ids: torch.Tensor, width: int, alpha: float) -> torch.Tensor:
    """Return alpha / √(L·D) · u, fp32 [R, C, D]. draws: Batch.noise [R, C]. position_ids: [R, C]"""
    lengths = (draws.flatten() >> 32).float()
    tokens = _scrambled((draws.flatten() & BITS_32) + position_ids.flatten() * STEP)
    dims = torch.arange(width, device=draws.device) * STEP
    found = torch.empty(len(tokens), width, device=draws.device)
    for rows, some in zip(found.split(ROWS_AT_ONCE), tokens.split(ROWS_AT_ONCE), strict=True):
        rows.copy_(_scrambled(some[:, None] + dims)).div_(2**31).sub_(1)
    return found.mul_((alpha / (lengths * width).sqrt())[:, None]).view(*draws.shape, width)


def _scrambled(x: torch.Tensor) -> torch.Tensor:
    """Return 32 bits of which each depends on all lower 32 bits of x: the last steps of MurmurHash3 (A. Appleby)."""
    x = x & BITS_32
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = ((x ^ (x >> shift)) * factor) & BITS_32
    return x
