"""A step is a cut of the epoch's order (test_mixture.py); ranks and micro-batches only decide who computes what."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sft.data.order import plan
from sft.data.order.mixture import Mixture, Source

LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=40).map(lambda lengths: np.array(lengths, np.int32))
RANKS = st.integers(1, 5)
SIZES = [(1, 8), (3, 8), (8, 8), (10, 4), (40, 16)]


@pytest.mark.parametrize(("num_samples", "batch_size"), SIZES)
def test_an_epoch_trains_every_sample_once_and_keeps_the_last_partial_batch(num_samples, batch_size):
    steps, plain = plan.steps_per_epoch(num_samples, batch_size), Mixture((Source("rows", num_samples),))
    for epoch in range(3):
        trained = [plan.Plan(plain, batch_size, 7, 3 * steps).samples(epoch * steps + k) for k in range(1, steps + 1)]
        assert sorted(np.concatenate(trained)) == list(range(num_samples))


@pytest.mark.parametrize("dp_size", [1, 2, 3, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
@pytest.mark.parametrize("num_samples", [1, 2, 5, 8, 13])
def test_ranks_share_a_step_without_overlap_in_equally_many_micro_batches(dp_size, micro_batch_size, num_samples):
    ids = np.arange(100, 100 + num_samples)
    shares = shared(ids, np.ones(num_samples, np.int32), dp_size, micro_batch_size=micro_batch_size)
    assert len({len(share) for share in shares}) == 1
    assert all(len(micro) <= micro_batch_size for share in shares for micro in share)
    assert sorted(np.concatenate([micro for share in shares for micro in share])) == ids.tolist()


def test_position_counts_epochs_from_zero_and_steps_from_one():
    assert [plan.position(step, 10, 4) for step in (1, 3, 4, 7)] == [(0, 0), (0, 2), (1, 0), (2, 0)]


@given(lengths=LENGTHS, dp_size=RANKS, max_tokens=st.integers(64, 200), packed=st.booleans())
@example(lengths=np.array([64], np.int32), dp_size=3, max_tokens=64, packed=True)  # fewer samples than ranks
def test_a_token_budget_is_kept_in_equally_many_micro_batches(lengths, dp_size, max_tokens, packed):
    ids = np.arange(100, 100 + len(lengths))
    shares = shared(ids, lengths, dp_size, micro_batch_size=1, max_tokens=max_tokens, packed=packed)
    assert len({len(share) for share in shares}) == 1
    assert sorted(np.concatenate([micro for share in shares for micro in share])) == ids.tolist()
    for micro in (micro for share in shares for micro in share):
        own = lengths[micro - 100]
        assert (own.sum() if packed else own.max(initial=0) * len(own)) <= max_tokens


@given(cuts=st.lists(st.sets(st.integers(1, 63), max_size=5), min_size=1, max_size=8), multiple_of=RANKS)
def test_a_token_budget_wastes_few_forwards(cuts, multiple_of):
    """Full bins of 64 tokens cut to pieces and mixed: best fit decreasing needs at most 11/9 of them, and one."""
    lengths = np.concatenate([np.diff([0, *sorted(inner), 64]) for inner in cuts])
    number = len(plan.fill_bins(lengths, 64, packed=True, multiple_of=1))
    assert number <= 11 / 9 * len(cuts) + 1
    assert (
        len(plan.fill_bins(lengths, 64, packed=True, multiple_of=multiple_of))
        == -(-number // multiple_of) * multiple_of
    )


@pytest.mark.parametrize("packed", [True, False])
def test_a_token_budget_levels_its_micro_batches(packed):
    """9 samples of 10 tokens and a budget of 50: two bins of 5 and 4; for 4 ranks three of 3 and an empty one."""
    lengths = np.full(9, 10, np.int32)
    sizes = [
        sorted(len(members) for members in plan.fill_bins(lengths, 50, packed=packed, multiple_of=multiple_of))
        for multiple_of in (1, 2, 4)
    ]
    assert sizes[0] == sizes[1] == [4, 5]
    assert sizes[2] == [0, 3, 3, 3]


@given(lengths=LENGTHS, dp_size=RANKS, micro_batch_size=st.integers(1, 4))
def test_balancing_keeps_the_number_of_samples_and_evens_out_the_tokens(lengths, dp_size, micro_batch_size):
    ids = np.arange(len(lengths))
    shares = shared(ids, lengths, dp_size, micro_batch_size=micro_batch_size, balanced=True)
    plain = shared(ids, lengths, dp_size, micro_batch_size=micro_batch_size)
    assert sorted(np.concatenate([micro for share in shares for micro in share])) == ids.tolist()
    assert sorted(sum(map(len, share)) for share in shares) == sorted(sum(map(len, share)) for share in plain)
    assert [len(share) for share in shares] == [len(share) for share in plain]
    totals = [lengths[np.concatenate(share)].sum() for share in shares]
    assert max(totals) - min(totals) <= lengths.max()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dp_size", [2, 8])
def test_ranks_wait_less_for_each_other_than_when_samples_are_dealt_in_order(seed, dp_size):
    """All ranks wait for the slowest in every micro-batch, so Σ of the most tokens counts."""
    lengths = np.random.default_rng(seed).lognormal(5.5, 0.8, 256).clip(8, 2048).astype(np.int32)
    total = lengths.sum()

    def waited(**options):
        shares = shared(np.arange(256), lengths, dp_size, **options)
        slowest = [max(lengths[micro].sum() for micro in side_by_side) for side_by_side in zip(*shares, strict=True)]
        return sum(slowest) * dp_size / total - 1

    in_order = waited(micro_batch_size=4)
    assert in_order > 0.1
    assert waited(micro_batch_size=4, balanced=True) < in_order / 4
    assert waited(micro_batch_size=4, max_tokens=4096) < in_order / 4


def shared(ids, lengths, dp_size, **options):
    """The micro-batches of every rank."""
    return [plan.micro_batches(ids, lengths, dp_size=dp_size, dp_rank=rank, **options) for rank in range(dp_size)]
