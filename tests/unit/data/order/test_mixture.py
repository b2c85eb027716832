"""What an epoch holds, and in which order: a function of (sources, seed, epoch) and of nothing else."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sft.data.order import plan
from sft.data.order.mixture import Mixture, Source, epoch_order, refuse_empty
from sft.errors import InputError

SEEDS = st.integers(0, 5)
SIZES = st.integers(1, 60)


def mixture_of(*sources, **more):
    """Sources of (samples, weight or None, fraction or None)."""
    return Mixture(
        tuple(
            Source(str(n), samples, weight or 1.0, fraction) for n, (samples, weight, fraction) in enumerate(sources)
        ),
        **more,
    )


@st.composite
def mixtures(draw):
    """One to four sources; some with a fraction, and then one without, or all of them with fractions of sum 1."""
    shares = draw(st.lists(st.integers(1, 10), min_size=1, max_size=4))
    fractions = [share / sum(shares) for share in shares]
    fractioned = draw(st.lists(st.booleans(), min_size=len(shares), max_size=len(shares)))
    weights = st.sampled_from([0.1, 0.5, 1.0, 1.5, 2.0, 3.0])
    mixture = mixture_of(
        *(
            (draw(SIZES), None, fraction) if has_fraction else (draw(SIZES), draw(weights), None)
            for fraction, has_fraction in zip(fractions, fractioned, strict=True)
        )
    )
    assume(all(mixture.counts))  # others are refused
    return mixture


def steps_of(mixture, number, batch_size=8, seed=1, first=1):
    return [
        plan.Plan(mixture, batch_size, seed, total_steps=0).samples(step).tolist()
        for step in range(first, first + number)
    ]


def test_the_order_of_plain_files_never_changes_between_versions():
    """A resumed run must see the order it started with, also after an update of ours."""
    assert epoch_order(mixture_of((10, None, None)), 1, 0).tolist() == [6, 0, 7, 9, 4, 1, 8, 5, 2, 3]
    assert epoch_order(mixture_of((4, None, None), (6, None, None)), 1, 0).tolist() == [6, 0, 7, 9, 4, 1, 8, 5, 2, 3]


def test_the_order_of_a_mixture_never_changes_between_versions():
    mixture = mixture_of((4, 1.5, None), (3, 0.5, None), (5, None, 0.4))
    assert [epoch_order(mixture, 1, epoch).tolist() for epoch in (0, 1)] == GOLDEN_EPOCHS
    assert steps_of(mixture, 3, batch_size=5) == GOLDEN_STEPS


def test_order_depends_on_seed_and_epoch_and_nothing_else():
    mixture = mixture_of((100, None, None))
    first = epoch_order(mixture, 1, 0).tolist()
    epoch_order.cache_clear()
    np.random.seed(123)  # the global generator must not matter
    assert epoch_order(mixture_of((100, None, None)), 1, 0).tolist() == first
    assert epoch_order(mixture, 2, 0).tolist() != first
    assert epoch_order(mixture, 1, 1).tolist() != first


@settings(deadline=None)
@given(mixture=mixtures(), seed=SEEDS)
def test_every_epoch_holds_what_its_counts_say_and_passes_end_before_they_begin_again(mixture, seed):
    """After any number of epochs no sample of a source was seen more than once more often than another."""
    seen = Counter()
    for epoch in range(4):
        order = epoch_order(mixture, seed, epoch)
        assert tuple(mixture.count(order).values()) == mixture.counts
        seen.update(order.tolist())
        for ids in mixture.ids.values():
            times = [seen[sample] for sample in ids.tolist()]
            assert max(times) - min(times) <= 1


def test_weights_say_how_often_an_epoch_sees_a_sample():
    mixture = mixture_of((6, 2.0, None), (6, 0.5, None), (6, None, None))
    assert mixture.counts == (12, 3, 6)
    epochs = [Counter(epoch_order(mixture, 1, epoch).tolist()) for epoch in (0, 1)]
    for epoch in epochs:
        assert [epoch[sample] for sample in range(6)] == [2] * 6
        assert [epoch[sample] for sample in range(12, 18)] == [1] * 6
    assert [epochs[0][sample] + epochs[1][sample] for sample in range(6, 12)] == [1] * 6
    assert epochs[0] != epochs[1]


def test_fractions_count_from_what_the_others_hold():
    assert mixture_of((850, None, None), (5, None, 0.15)).counts == (850, 150)
    assert mixture_of((100, 3.0, None), (1000, None, 0.25)).counts == (300, 100)
    assert mixture_of((90, None, 0.7), (10, None, 0.2), (100, None, 0.1)).counts == (140, 40, 20)  # Σ = 0.999...


def test_a_share_of_less_than_one_sample_is_refused():
    with pytest.raises(InputError) as caught:
        refuse_empty(mixture_of((40, 1e-9, None), (40, None, 1e-5)).sources)
    assert str(caught.value) == (
        "data.mixture: an epoch of 0 samples would hold less than one of 0 (weight=1e-09 of 40 samples comes to 4e-08) "
        "and 1 (fraction=1e-05 comes to 0); give it a larger share, or take it out."
    )
    with pytest.raises(InputError, match=r"an epoch of 40 samples .* one of 1 \(fraction=0.01 comes to 0.4\); give"):
        refuse_empty(mixture_of((40, None, None), (40, None, 0.01)).sources)
    refuse_empty(mixture_of((40, None, None), (1, None, 0.02)).sources)  # 0.8 of a sample is one


@pytest.mark.parametrize("batch_size", [8, 20, 64])
@pytest.mark.parametrize("fraction", [0.1, 0.15, 0.5])
def test_every_step_has_its_fraction(batch_size, fraction):
    mixture = mixture_of((3000, None, None), (77, None, fraction))
    steps = steps_of(mixture, 200, batch_size)
    of_text = np.array([sum(sample >= 3000 for sample in step) for step in steps])
    full = np.array([len(step) == batch_size for step in steps])
    assert (np.abs(of_text[full] - fraction * batch_size) < 1 + 1e-2).all()  # counts are rounded once per epoch
    assert of_text.sum() / sum(map(len, steps)) == pytest.approx(fraction, abs=0.005)


@settings(deadline=None)
@given(mixture=mixtures(), seed=SEEDS, batch_size=st.integers(1, 20))
def test_a_source_with_a_fraction_keeps_its_pace_in_every_window(mixture, seed, batch_size):
    order, streams = epoch_order(mixture, seed, 0), len(mixture.streams)
    for source, ids, count in zip(mixture.sources, mixture.ids.values(), mixture.counts, strict=True):
        share = count / len(mixture)
        if source.fraction is not None and streams > 1:
            cumulative = np.cumsum([0, *np.isin(order, ids)])
            windows = cumulative[batch_size:] - cumulative[:-batch_size]
            assert (np.abs(windows - share * batch_size) <= 1 + share * (streams - 2) + 1e-9).all()


def test_ranks_do_not_get_one_source_each():
    """At a pace of one to one and two ranks, dealing in turn would give all text to one of them."""
    steps = steps_of(mixture_of((64, None, None), (64, None, 0.5)), 8, batch_size=16)
    of_first_rank = [sum(sample >= 64 for sample in step[::2]) for step in steps]
    assert all(0 < number < 8 for number in of_first_rank)


@settings(deadline=None)
@given(mixture=mixtures(), seed=SEEDS, first=st.integers(1, 30))
def test_any_step_can_be_worked_out_without_those_before_it(mixture, seed, first):
    straight = steps_of(mixture, 40, seed=seed)
    epoch_order.cache_clear()
    assert steps_of(mixture, 41 - first, seed=seed, first=first) == straight[first - 1 :]


def test_a_curriculum_begins_with_the_easy_ones_and_shuffles_equals():
    difficulty = np.array([3, 1, 2] * 20, float)
    mixture = mixture_of((60, None, None), difficulty=difficulty, curriculum_epochs=2)
    epochs = [epoch_order(mixture, 1, epoch) for epoch in range(3)]
    for order in epochs[:2]:
        assert (np.diff(difficulty[order]) >= 0).all()
    assert (np.diff(difficulty[epochs[2]]) < 0).any()
    easiest = [order[:20].tolist() for order in epochs[:2]]
    assert easiest[0] != easiest[1] and sorted(easiest[0]) == sorted(easiest[1]) != easiest[0]
    assert epochs[2].tolist() == epoch_order(mixture_of((60, None, None)), 1, 2).tolist()


def test_a_curriculum_of_a_mixture_is_one_of_each_stream():
    difficulty = np.random.default_rng(0).random(120)
    mixture = mixture_of((40, None, None), (40, 0.5, None), (40, None, 0.5), difficulty=difficulty, curriculum_epochs=1)
    order = epoch_order(mixture, 1, 0)
    for ids in (order[order < 80], order[order >= 80]):
        assert (np.diff(difficulty[ids]) >= 0).all()


GOLDEN_EPOCHS = [[0, 8, 3, 9, 2, 0, 7, 1, 4, 11, 1, 10, 5], [2, 11, 2, 7, 5, 6, 9, 1, 3, 10, 0, 8, 3]]
GOLDEN_STEPS = [[8, 3, 0, 9, 2], [7, 4, 1, 11, 0], [1, 10, 5]]
