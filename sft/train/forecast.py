"""Foretell what training will look like: steps, micro-batches, padding, the largest forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sft.config import SftConfig
from sft.data.dataset import Dataset
from sft.data.order.plan import Plan, steps_per_epoch

MAX_RANKS = 8  # looked at: the plan deals evenly, and filling rows by tokens takes milliseconds per rank


@dataclass(frozen=True)
class Forecast:
    """A run on dp_size data-parallel ranks (each of sp_size ranks); what varies is of the steps that were looked at."""

    dp_size: int
    sp_size: int
    total_steps: int
    steps_per_epoch: int
    samples: int  # of the first step looked at
    tokens_per_sample: float  # of the first epoch, on average
    micro_batches: int  # of every rank in that step
    padding_frac: float  # padding / (padding + tokens), as perf/padding_frac
    most_positions: int  # tokens and padding of the largest micro-batch
    most_logits: int  # positions that the LM head meets in one micro-batch, about; 0 where nobody counted


def plan_of(config: SftConfig, dataset: Dataset) -> Plan:
    """Return which samples the steps of the configured run train."""
    batch_size, trainer = config.data.train_batch_size, config.trainer
    total_steps = trainer.total_training_steps or trainer.total_epochs * steps_per_epoch(
        len(dataset.mixture), batch_size
    )
    return Plan(dataset.mixture, batch_size, trainer.seed, total_steps)


def forecast(
    dataset: Dataset,
    plan: Plan,
    *,
    steps: Sequence[int],
    dp_size: int,
    sp_size: int,
    supervised_tokens: np.ndarray | None = None,
) -> Forecast:
    """Deal out the samples of `steps` (counted from 1) as training will. supervised_tokens: of each sample."""
    lengths = dataset.samples.lengths
    micro_batches = samples = tokens = positions = most_positions = most_logits = 0
    for step in steps:
        ids = plan.samples(step)
        for rank in range(min(dp_size, MAX_RANKS)):
            dealt = dataset.micro_batches(ids, dp_size=dp_size, dp_rank=rank)
            if step == steps[0]:
                micro_batches, samples = len(dealt), len(ids)
            for members in dealt:
                size = _positions(lengths[members], packed=dataset.packed, sp_size=sp_size)
                tokens += int(lengths[members].sum())
                positions += size
                most_positions = max(most_positions, size)
                if supervised_tokens is not None:
                    trained = int(supervised_tokens[members].sum())
                    # Padded, the head meets every column that has a label in any row.
                    most_logits = max(most_logits, trained if dataset.packed else min(size, trained * len(members)))
    return Forecast(
        dp_size=dp_size,
        sp_size=sp_size,
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
        samples=samples,
        tokens_per_sample=float(lengths[plan.order(0)].mean()),
        micro_batches=micro_batches,
        padding_frac=1 - tokens / positions,
        most_positions=most_positions,
        most_logits=most_logits,
    )


def sentence(view: Forecast, dataset: Dataset, batch_size: int) -> str:
    """Write the arithmetic of a step as one sentence."""
    ranks = f"{view.dp_size} dp" + (f" (of {view.sp_size} sp ranks each)" if view.sp_size > 1 else "")
    full = view.dp_size * view.micro_batches * dataset.micro_batch_size == view.samples
    size = "up to " * (not full) + _number(dataset.micro_batch_size, "sample")
    if dataset.max_tokens:
        size = f"up to {dataset.max_tokens:,} tokens"
    few = len(dataset.mixture) < batch_size
    small = f"; warning: that is all, fewer than data.train_batch_size={batch_size}" if few else ""
    return (
        f"step = {ranks} x {_number(view.micro_batches, 'micro-batch', 'es')} of {size} = "
        f"{_number(view.samples, 'sample')}, about "
        f"{view.tokens_per_sample * view.samples:,.0f} tokens, {view.padding_frac:.1%} padding; "
        f"{view.total_steps:,} steps = {view.total_steps / view.steps_per_epoch:.2f} epochs of "
        f"{view.steps_per_epoch:,}{small}"
    )


def _number(count: int, what: str, plural: str = "s") -> str:
    return f"{count} {what}{plural * (count != 1)}"


def _positions(lengths: np.ndarray, *, packed: bool, sp_size: int) -> int:
    """Tokens and padding of one micro-batch."""
    if not len(lengths):
        return 1  # what a rank without samples computes
    if not packed:
        return int(lengths.max()) * len(lengths)
    return -(-int(lengths.sum()) // sp_size) * sp_size
