"""A row cut in parts: nothing is lost at the cuts, nothing is counted twice."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sft.data.order.collate import collate
from sft.parallel.ulysses import split_tokens
from sft.types import IGNORE_INDEX, Counts, Sample


def sample(length, first_id=1):
    """Every second token trained, with weights that differ, so that a shift by one would show."""
    weights = np.arange(length) % 2 * (1 + np.arange(length) / 8)
    return Sample(np.arange(first_id, first_id + length, dtype=np.int32), weights.astype(np.float32))


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), parts=st.integers(2, 5))
def test_the_parts_end_to_end_are_the_row_and_padding_that_teaches_nothing(lengths, parts):
    whole = collate([sample(length, 10 * k) for k, length in enumerate(lengths)], packed=True, pad_id=0)
    pieces = [split_tokens(whole, part=part, parts=parts) for part in range(parts)]
    total = sum(lengths)
    padding = -total % parts
    for name in ("input_ids", "labels", "loss_weights", "position_ids", "is_token"):
        joined = torch.cat([getattr(piece, name) for piece in pieces], dim=1)
        assert joined.shape == (1, total + padding)
        assert joined[:, :total].equal(getattr(whole, name))
        assert joined.dtype == getattr(whole, name).dtype
        if name in ("labels", "loss_weights"):
            assert (joined[:, total:] == (IGNORE_INDEX if name == "labels" else 0)).all()
    assert len({piece.input_ids.shape for piece in pieces}) == 1

    joined = asdict(sum((piece.counts for piece in pieces), Counts()))
    assert joined == pytest.approx(asdict(replace(whole.counts, positions=total + padding)))
    for piece in pieces:
        columns = piece.supervised_columns
        assert columns.tolist() == [c for c, label in enumerate(piece.labels[0]) if label != IGNORE_INDEX]
        boundaries = [0, *np.cumsum(lengths), *([total + padding] if padding else [])]
        assert piece.cu_seqlens.tolist() == boundaries
        assert piece.cu_seqlens.dtype == torch.int32
        assert piece.sample_lengths == tuple(np.diff(boundaries))
        assert piece.max_seqlen == max(np.diff(boundaries))


def test_the_rows_of_these_tests_have_something_of_every_count():
    """Or a count that is not filled where a row is cut would go unnoticed above: all its parts would say 0, rightly."""
    counts = collate([sample(9), sample(9)], packed=True, pad_id=0).counts
    assert [name for name, count in asdict(counts).items() if not count] == []


def test_a_batch_without_samples_still_gives_every_rank_a_token():
    empty = collate([], packed=True, pad_id=0)
    pieces = [split_tokens(empty, part=part, parts=4) for part in range(4)]
    assert [piece.input_ids.shape for piece in pieces] == [(1, 1)] * 4
    assert [piece.counts for piece in pieces] == [Counts(positions=1)] * 4


@pytest.mark.parametrize("packed", [True, False])
def test_one_part_is_the_batch_itself(packed):
    batch = collate([sample(3), sample(5)], packed=packed, pad_id=0)
    assert split_tokens(batch, part=0, parts=1) is batch
