"""Define what flows between the rooms: Sample, Batch, StepStats, TrainState.

Shapes: L tokens of one sample, S samples, T tokens of one micro-batch (packed layout: every token of the
micro-batch in one row), R x C the padded layout (one row per sample, padded to the longest).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # the data rooms must stay importable without paying for torch
    import torch

IGNORE_INDEX = -100
"""Label of a position that carries no loss (PyTorch's and Hugging Face's convention)."""


@dataclass(frozen=True)
class Sample:
    """One tokenised conversation, not shifted.

    input_ids:    int32 [L]
    loss_weights: float32 [L], weight of the loss for predicting *this* token; 0 = not trained. That of the first is
                  never used (see `targets`).
    """

    input_ids: np.ndarray
    loss_weights: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def targets(self) -> np.ndarray:
        """The tokens that something predicts, int32 [L - 1]: all but the first, before which nothing stands."""
        return self.input_ids[1:]

    @property
    def target_weights(self) -> np.ndarray:
        """The weights of `targets`, float32 [L - 1]."""
        return self.loss_weights[1:]


@dataclass(frozen=True)
class Counts:
    """What is counted of a micro-batch, of a step over all ranks, of several steps. They add up field by field.

    A new count is a field here and a line of `of_tokens`; it is summed over the ranks under its own name.
    """

    samples: int = 0
    tokens: int = 0  # real tokens, padding excluded
    supervised_tokens: int = 0
    positions: int = 0  # tokens and padding
    weight_sum: float = 0.0  # Σ loss_weights

    @classmethod
    def of_tokens(
        cls, *, labels: torch.Tensor, loss_weights: torch.Tensor, position_ids: torch.Tensor, is_token: torch.Tensor
    ) -> Counts:
        """Count the tokens of a batch, or of a part of one: a sample counts where it begins. Shapes: as in Batch."""
        return cls(
            samples=int((is_token & (position_ids == 0)).sum()),
            tokens=int(is_token.sum()),
            supervised_tokens=int((labels != IGNORE_INDEX).sum()),
            positions=is_token.numel(),
            weight_sum=float(loss_weights.double().sum()),
        )

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def of(self, sums: Mapping[str, float]) -> Counts:
        """Return the counts that `sums` holds under their names, in the types of these."""
        return Counts(**{name: type(value)(sums[name]) for name, value in asdict(self).items()})

    @property
    def padding(self) -> int:
        return self.positions - self.tokens


@dataclass(frozen=True)
class Batch:
    """One micro-batch, labels already shifted: position t predicts labels[t].

    Packed layout: R = 1 and C = T; cu_seqlens marks where each sample starts and ends.
    Padded layout: R = S samples and C = the longest of them; cu_seqlens is None, padding sits on the right,
    where a causal model never looks.
    Part of a packed batch (parallel/ulysses.py): C of the row's tokens with their counts; cu_seqlens, sample_lengths
    and max_seqlen are of the whole row.
    """

    input_ids: torch.Tensor  # int64 [R, C]
    labels: torch.Tensor  # int64 [R, C], IGNORE_INDEX = no loss
    loss_weights: torch.Tensor  # float32 [R, C], aligned with labels
    position_ids: torch.Tensor  # int64 [R, C], restarts at 0 with every sample
    is_token: torch.Tensor  # bool [R, C], False for padding
    supervised_columns: torch.Tensor  # int64 [K], columns where any row has a label: all the LM head meets
    cu_seqlens: torch.Tensor | None  # int32 [S + 1]
    sample_lengths: tuple[int, ...] | None  # their differences, which the host can read without waiting for the device
    sources: torch.Tensor | None  # int64 [R, C], the source of the mixture that each position is of; None: there is one
    max_seqlen: int
    counts: Counts
    noise: torch.Tensor | None = None  # int64 [R, C], length of the sample << 32 | what it drew: model/noise.py

    def to(self, device: torch.device) -> Batch:
        """Copy the batch to `device`."""
        if device.type == "cpu":
            return self
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in self._travels().items()})

    def pinned(self) -> Batch:
        """Copy the batch to page-locked memory, from where `to` copies while the host goes on."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self._travels().items()})

    def _travels(self) -> dict[str, torch.Tensor]:
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: value for name, value in values.items() if hasattr(value, "to")}  # tensors

    @property
    def boundaries(self) -> dict[str, Any]:
        """Return where the samples of a packed row end, as the keyword arguments that a model's attention takes.

        {} for padded rows, each of which is one sample.
        """
        if self.cu_seqlens is None:
            return {}
        return {"sample_lengths": self.sample_lengths, "cu_seqlens": self.cu_seqlens, "max_seqlen": self.max_seqlen}


@dataclass(frozen=True)
class StepStats:
    """What one optimizer step did, summed over every rank of the run."""

    loss: float  # Σ w·CE / Σ w over all tokens of the step
    losses: tuple[float, ...]  # the same over the tokens of each source of the mixture; nan: none in this step
    grad_norm: float  # before clipping
    lr: float
    counts: Counts
    skipped: bool  # loss or gradient was not finite: nothing was updated
    router_aux_loss: float | None = None  # load balancing of experts, before its coefficient; None: no part of the loss
    largest_expert_share: float | None = None  # of the tokens, that one expert of one layer had; None: no experts
    wishes: Mapping[str, float] = field(default_factory=dict)  # what ranks were asked meanwhile (train/requests.py)


@dataclass
class Course:
    """How the losses of a run went, for sft/train/course.py; the same on all ranks, JSON values only."""

    first_loss: float | None = None  # of the first step
    last_loss: float | None = None  # of the last one
    stretches: list[float] = field(default_factory=list)  # mean training loss of each stretch of the run
    in_stretch: list[float] = field(default_factory=lambda: [0.0, 0])  # [sum, steps] of the one under way
    since_validation: list[float] = field(default_factory=lambda: [0.0, 0])  # the same, since the last validation
    validations: list[list[float]] = field(default_factory=list)  # the last ones: [val/loss, training loss before it]
    last_val: dict[str, float] = field(default_factory=dict)  # all metrics of the last validation
    metric: str = "val/loss"  # by which validations are compared
    best_step: int = -1  # of the validation that was best; -1: none yet
    best_value: float | None = None
    stale: int = 0  # validations since then
    warned: dict[str, str] = field(default_factory=dict)  # kind of warning -> what was said

    @property
    def last_metrics(self) -> dict[str, float]:
        """Return the loss of the last step and the numbers of the last validation, as far as there were any."""
        return ({} if self.last_loss is None else {"train/loss": self.last_loss}) | self.last_val


@dataclass
class TrainState:
    """Where the run stands; with weights and optimizer it is all that resuming needs."""

    step: int = 0  # finished optimizer steps, skipped ones included
    samples_seen: int = 0
    tokens_seen: int = 0
    skipped_in_a_row: int = 0
    skipped_total: int = 0
    validated: int = -1  # the last step that was validated; 0: before the first
    updates: int = 0  # optimizer and schedule moved this often: step - skipped_total
    course: Course = field(default_factory=Course)

    @classmethod
    def of(cls, stored: dict[str, Any]) -> TrainState:
        """Rebuild the state from its dataclasses.asdict; checkpoints of earlier versions lack the course."""
        counts = {name: value for name, value in stored.items() if name != "course"}
        return cls(**counts, course=Course(**stored.get("course", {})))
