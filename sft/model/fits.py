"""Whether samples fit the model: its embeddings have a row for every id, and its positions reach to every end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from sft.errors import InputError
from sft.parallel.fsdp import class_name
from sft.parallel.world import log

SPARE_POSITIONS = 8  # that some tables of learned positions have beyond what config.json says (OPT: 2)


class Tokens(Protocol):
    """A sample, of which only the ids count here."""

    @property
    def input_ids(self) -> np.ndarray: ...


class Samples(Protocol):
    """Samples with their lengths, and where each came from."""

    @property
    def lengths(self) -> np.ndarray: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Tokens: ...
    def where(self, index: int) -> str: ...


def refuse_misfit_samples(
    model: PreTrainedModel, samples: Sequence[Samples], *, vocabulary: Iterable[int], max_length: int
) -> None:
    """Raise InputError for a sample that `model` would fail on, before the first step.

    vocabulary: every id of the tokenizer; only if one is too large are the samples looked through. Says where samples
    may be longer than what the model was made for, which rotary positions allow.
    """
    embedding = model.get_input_embeddings()
    assert isinstance(embedding.weight, torch.Tensor)
    rows = len(embedding.weight)
    if max(vocabulary, default=0) >= rows:
        for each in samples:
            _refuse_ids_beyond(rows, each, class_name(model))
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int):
        return
    longest = max((int(each.lengths.max()) for each in samples if len(each)), default=0)
    if longest > positions and _has_table_of(positions, model):
        raise InputError(
            f"data.max_length={max_length}: the longest sample has {longest} tokens, and {class_name(model)} has a "
            f"table of {positions} positions (max_position_embeddings); set data.max_length={positions}."
        )
    if max_length > positions:
        log.warning(
            "data.max_length=%d is beyond the %d positions that %s was made for (max_position_embeddings); the longest "
            "sample has %d tokens.",
            max_length,
            positions,
            class_name(model),
            longest,
        )


def _refuse_ids_beyond(rows: int, samples: Samples, name: str) -> None:
    for index in range(len(samples)):
        if (largest := int(samples[index].input_ids.max())) >= rows:
            raise InputError(
                f"{samples.where(index)}: the tokenizer makes the id {largest} of it, and the embeddings of {name} "
                f"have {rows} rows. It belongs to another model, or to one whose embeddings were never resized; "
                "take the tokenizer of this model, or save the model again after resize_token_embeddings()."
            )


def _has_table_of(positions: int, model: PreTrainedModel) -> bool:
    """Return True if the model looks positions up in a table, learned or computed, that ends."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    learned = [each for each in model.modules() if isinstance(each, torch.nn.Embedding) and each not in ends]
    tables = [each.num_embeddings for each in learned]
    tables += [len(buffer) for name, buffer in model.named_buffers() if name.endswith("embed_positions")]
    return any(positions <= rows <= positions + SPARE_POSITIONS for rows in tables)
