"""Score how well a model predicts a data set: loss, perplexity, token accuracy, equal on any number of ranks.

The same numbers in training and after it: both call `score`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from transformers import PreTrainedModel

from sft.data.dataset import Dataset
from sft.parallel.mesh import Mesh
from sft.parallel.ulysses import split_tokens
from sft.parallel.world import ALL_RANKS, sum_by_name
from sft.train.loss import token_ce_sum_and_hits
from sft.types import Batch, Counts

Tagged = tuple[str, Batch]

ASK_EVERY = 8
"""Forwards between two questions whether to stop: each makes all ranks, and the host, wait."""


@dataclass(frozen=True)
class Score:
    """Sums over every sample of one entry of data.val_files, or of all of them."""

    ce_sum: float  # Σ w·CE
    hits: float  # supervised tokens whose most likely prediction is right
    weight_sum: float  # Σ w
    supervised_tokens: float

    @property
    def loss(self) -> float:
        return self.ce_sum / self.weight_sum

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))  # e^700 is the last one a float holds

    @property
    def token_accuracy(self) -> float:
        return self.hits / self.supervised_tokens

    def numbers(self, prefix: str = "") -> dict[str, float]:
        """Return loss, perplexity and token_accuracy by these names, behind a prefix."""
        names = ("loss", "perplexity", "token_accuracy")
        return {f"{prefix}{name}": getattr(self, name) for name in names}

    def __add__(self, other: Score) -> Score:
        return Score(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


def my_batches(
    dataset: Dataset, sample_ids: np.ndarray, mesh: Mesh, noise: tuple[int, ...] | None = None
) -> Iterator[Batch]:
    """Yield the micro-batches of this rank's part of `sample_ids`: its samples, its tokens of them."""
    for batch in dataset.batches(sample_ids, dp_size=mesh.dp_size, dp_rank=mesh.dp_rank, noise=noise):
        yield split_tokens(batch, part=mesh.sp_rank, parts=mesh.sp_size)


@torch.no_grad()
def score(
    model: PreTrainedModel,
    dataset: Dataset,
    mesh: Mesh,
    device: torch.device,
    *,
    progress: Callable[[Iterable[Tagged], str, int], Iterable[Tagged]] = lambda batches, what, total: batches,
    must_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Score] | None:
    """Score every source of `dataset`, by name; None if must_stop said so. Every rank calls it.

    must_stop is asked after every few forwards, and must answer alike on all ranks. The model is left in its mode.
    """
    was_training = model.training
    model.eval()
    ids_of = dataset.mixture.ids
    counts = dict.fromkeys(ids_of, Counts())
    forwards = [len(dataset.micro_batches(i, dp_size=mesh.dp_size, dp_rank=mesh.dp_rank)) for i in ids_of.values()]
    batches = ((name, batch) for name, ids in ids_of.items() for batch in my_batches(dataset, ids, mesh))
    on_device = {name: torch.zeros(2, dtype=torch.float64, device=device) for name in ids_of}  # Σ w·CE, hits
    for number, (name, batch) in enumerate(progress(batches, "validation", sum(forwards)), start=1):
        on_device[name] += torch.stack(token_ce_sum_and_hits(model, batch.to(device)))
        counts[name] += batch.counts
        if number % ASK_EVERY == 0 and must_stop():
            break
    model.train(was_training)
    if must_stop():
        return None
    mine = {}
    for name, (ce_sum, hits) in ((name, both.tolist()) for name, both in on_device.items()):
        weight_sum, supervised_tokens = counts[name].weight_sum, counts[name].supervised_tokens
        part = Score(ce_sum=ce_sum, hits=hits, weight_sum=weight_sum, supervised_tokens=supervised_tokens)
        mine |= {(name, key): value for key, value in asdict(part).items()}
    sums = sum_by_name(ALL_RANKS, mine)
    return {name: Score(**{each.name: sums[name, each.name] for each in fields(Score)}) for name in ids_of}
