"""The order is a function of (seed, epoch, size); ranks and micro-batches only decide who computes what."""

import numpy as np
import pytest

from sft.data import plan

SIZES = [(1, 8), (3, 8), (8, 8), (10, 4), (40, 16)]


@pytest.mark.parametrize(("num_samples", "batch_size"), SIZES)
def test_an_epoch_trains_every_sample_once_and_keeps_the_last_partial_batch(num_samples, batch_size):
    steps = plan.steps_per_epoch(num_samples, batch_size)
    for epoch in range(3):
        trained = [
            plan.step_samples(epoch * steps + k, num_samples=num_samples, batch_size=batch_size, seed=7)
            for k in range(1, steps + 1)
        ]
        assert sorted(np.concatenate(trained)) == list(range(num_samples))


def test_order_depends_on_seed_and_epoch_and_nothing_else():
    first = plan.epoch_order(100, 1, 0).tolist()
    plan.epoch_order.cache_clear()
    np.random.seed(123)
    assert plan.epoch_order(100, 1, 0).tolist() == first
    assert plan.epoch_order(100, 2, 0).tolist() != first
    assert plan.epoch_order(100, 1, 1).tolist() != first


def test_order_never_changes_between_versions():
    """A resumed run must see the order it started with, also after an update of ours."""
    assert plan.epoch_order(10, 1, 0).tolist() == GOLDEN_ORDER


@pytest.mark.parametrize("dp_size", [1, 2, 3, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
@pytest.mark.parametrize("num_samples", [1, 2, 5, 8, 13])
def test_ranks_share_a_step_without_overlap_in_equally_many_micro_batches(dp_size, micro_batch_size, num_samples):
    ids = np.arange(100, 100 + num_samples)
    shares = [
        plan.micro_batches(ids, dp_size=dp_size, dp_rank=rank, micro_batch_size=micro_batch_size)
        for rank in range(dp_size)
    ]
    assert len({len(share) for share in shares}) == 1
    assert all(len(micro) <= micro_batch_size for share in shares for micro in share)
    assert sorted(np.concatenate([micro for share in shares for micro in share])) == ids.tolist()


def test_position_counts_epochs_from_zero_and_steps_from_one():
    assert [plan.position(step, 10, 4) for step in (1, 3, 4, 7)] == [(0, 0), (0, 2), (1, 0), (2, 0)]


GOLDEN_ORDER = [6, 0, 7, 9, 4, 1, 8, 5, 2, 3]
