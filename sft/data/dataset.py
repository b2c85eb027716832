"""What the data rooms hand out: samples that fit, and the batches of any step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sft.data import plan
from sft.data.cache import CachedRows
from sft.data.collate import collate
from sft.data.fit import FitReport, FittedSamples
from sft.data.mixture import Mixture, describe
from sft.types import Batch


@dataclass(frozen=True)
class Dataset:
    """Tokenised samples that fit max_length, and the recipe that turns them into batches."""

    samples: FittedSamples
    files: tuple[CachedRows, ...]  # where the samples come from
    fitting: FitReport
    mixture: Mixture  # their sources, an entry of data.train_files each, and what an epoch holds of them
    fingerprint: str  # of the rows, tokenizer, template, columns, truncation and mixture: equal means equal epochs
    micro_batch_size: int
    max_tokens: int | None  # of a micro-batch; replaces micro_batch_size
    balanced: bool
    packed: bool
    pad_id: int

    def __len__(self) -> int:
        return len(self.samples)

    def describe_epoch(self) -> str:
        """What an epoch holds, a line for each source."""
        return describe(self.mixture, self.samples.lengths)

    def batches(self, sample_ids: np.ndarray, *, dp_size: int, dp_rank: int) -> Iterator[Batch]:
        """The micro-batches in which one data-parallel rank computes its part of `sample_ids`."""
        for ids in self.micro_batches(sample_ids, dp_size=dp_size, dp_rank=dp_rank):
            sources = self.mixture.source_of(ids) if len(self.mixture.sources) > 1 else None
            yield collate([self.samples[i] for i in ids], packed=self.packed, pad_id=self.pad_id, sources=sources)

    def weight_sums(self, sample_ids: np.ndarray) -> list[float]:
        """Σ loss_weights of all tokens that are predicted in `sample_ids`, of each source, whichever ranks compute."""
        weights = [self.samples[i].loss_weights[1:].sum(dtype=np.float64) for i in sample_ids]
        sources = self.mixture.source_of(sample_ids)
        return np.bincount(sources, weights=weights, minlength=len(self.mixture.sources)).tolist()

    def supervised_tokens(self, sample_id: int) -> int:
        """How many tokens of a sample carry loss."""
        return int((self.samples[sample_id].loss_weights[1:] > 0).sum())

    def micro_batches(self, sample_ids: np.ndarray, *, dp_size: int, dp_rank: int) -> list[np.ndarray]:
        """The sample ids of these micro-batches."""
        return plan.micro_batches(
            sample_ids,
            self.samples.lengths[sample_ids],
            dp_size=dp_size,
            dp_rank=dp_rank,
            micro_batch_size=self.micro_batch_size,
            max_tokens=self.max_tokens,
            balanced=self.balanced,
            packed=self.packed,
        )
