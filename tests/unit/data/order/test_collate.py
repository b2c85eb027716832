"""Labels are shifted once, never across samples; both layouts carry the same."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sft.data.dataset import Dataset
from sft.data.order.collate import collate
from sft.types import IGNORE_INDEX, Counts, Sample


def sample(ids, weights):
    return Sample(np.array(ids, np.int32), np.array(weights, np.float32))


FIRST = sample([5, 6, 7, 8], [0, 0, 1, 1])
SECOND = sample([9, 10, 11], [0, 0.5, 0])


def test_packed_row():
    batch = collate([FIRST, SECOND], packed=True, pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, 11]]
    assert batch.labels.tolist() == [[-100, 7, 8, -100, 10, -100, -100]]
    assert batch.loss_weights.tolist() == [[0, 1, 1, 0, 0.5, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch.cu_seqlens is not None and batch.cu_seqlens.tolist() == [0, 4, 7]
    assert batch.sample_lengths == (4, 3)
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.max_seqlen == 4
    assert batch.supervised_columns.tolist() == [1, 2, 4]


def test_padded_rows():
    batch = collate([FIRST, SECOND], packed=False, pad_id=3)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 10, 11, 3]]
    assert batch.labels.tolist() == [[-100, 7, 8, -100], [10, -100, -100, -100]]
    assert batch.loss_weights.tolist() == [[0, 1, 1, 0], [0.5, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert batch.cu_seqlens is None
    assert batch.supervised_columns.tolist() == [0, 1, 2]


@pytest.mark.parametrize("packed", [True, False])
def test_both_layouts_count_alike(packed):
    batch = collate([FIRST, SECOND], packed=packed, pad_id=0)
    positions = 7 if packed else 8
    assert batch.counts == Counts(samples=2, tokens=7, supervised_tokens=3, positions=positions, weight_sum=2.5)
    assert batch.counts.padding == positions - 7


@pytest.mark.parametrize("packed", [True, False])
def test_the_first_token_of_a_sample_is_nobodys_label(packed):
    """Even where every token is trained: the end of one sample must not predict the start of the next."""
    batch = collate([sample([1, 2], [1, 1]), sample([3, 4], [1, 1])], packed=packed, pad_id=0)
    assert batch.labels.flatten().tolist() == [2, IGNORE_INDEX, 4, IGNORE_INDEX]


@pytest.mark.parametrize("packed", [True, False])
def test_a_rank_without_samples_computes_something_that_teaches_nothing(packed):
    batch = collate([], packed=packed, pad_id=0)
    assert batch.input_ids.shape == (1, 1)
    assert batch.counts == Counts(positions=1)
    assert (batch.labels == IGNORE_INDEX).all()


def test_the_weights_of_a_long_batch_are_summed_as_in_fp64():
    """As the batch counts them, and as the step knows them before: the two are compared (refuse_other_data)."""
    weights = np.random.default_rng(0).random(500_000).astype(np.float32)
    long = Sample(np.ones(500_000, np.int32), weights)
    exact = weights[1:].astype(np.float64).sum()
    assert collate([long], packed=True, pad_id=0).counts.weight_sum == pytest.approx(exact, rel=1e-12)
    mixture = SimpleNamespace(sources=["a"], source_of=lambda ids: np.zeros(len(ids), int))
    dataset = SimpleNamespace(samples=[long], mixture=mixture)
    found = Dataset.weight_sums(dataset, np.array([0, 0]))  # pyright: ignore[reportArgumentType]
    assert found == pytest.approx([2 * exact], rel=1e-12)
