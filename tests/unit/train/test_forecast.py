"""Steps, micro-batches and padding, counted before training."""

import numpy as np
import pytest

from sft.data.dataset import Dataset
from sft.data.order.mixture import Mixture, Source
from sft.data.order.plan import Plan
from sft.train.forecast import forecast, sentence


class Lengths:
    """As much of FittedSamples as planning looks at."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths, np.int32)

    def __len__(self):
        return len(self.lengths)


def dataset(lengths, *, packed, max_tokens=None, micro_batch_size=2):
    return Dataset(
        samples=Lengths(lengths),  # pyright: ignore
        files=(),
        fitting=None,  # pyright: ignore
        mixture=Mixture((Source("rows", len(lengths)),)),
        fingerprint="",
        tokens="",
        micro_batch_size=micro_batch_size,
        max_tokens=max_tokens,
        balanced=False,
        packed=packed,
        pad_id=0,
    )


def look(data, *, batch_size=4, **options):
    plan = Plan(data.mixture, batch_size, seed=1, total_steps=6)
    return forecast(data, plan, **{"steps": range(1, 2), "dp_size": 1, "sp_size": 1} | options)


def test_padding_is_what_is_not_a_token():
    view = look(dataset([10, 10, 10, 30], packed=False, micro_batch_size=4))
    assert (view.micro_batches, view.samples, view.most_positions) == (1, 4, 120)
    assert view.padding_frac == pytest.approx(0.5)
    assert look(dataset([10, 10, 10, 30], packed=True, micro_batch_size=4)).padding_frac == 0.0


def test_rows_that_ranks_share_are_filled_to_a_multiple_of_them():
    view = look(dataset([10, 11], packed=True), batch_size=2, sp_size=4)
    assert (view.most_positions, view.padding_frac) == (24, pytest.approx(3 / 24))


def test_all_steps_and_ranks_count():
    lengths = [10] * 12 + [50] * 4
    view = look(dataset(lengths, packed=True), steps=range(1, 5), dp_size=2)
    assert view.micro_batches == 1 and view.most_positions >= 60
    assert view.steps_per_epoch == 4


def test_the_head_meets_the_trained_tokens_of_a_packed_row_and_more_of_a_padded_one():
    trained = np.array([3, 4, 5, 6])
    options = {"supervised_tokens": trained}
    assert look(dataset([10] * 4, packed=True, micro_batch_size=4), **options).most_logits == 18
    assert look(dataset([10] * 4, packed=False, micro_batch_size=4), **options).most_logits == 40
    assert look(dataset([10] * 4, packed=False, micro_batch_size=4)).most_logits == 0


def test_the_sentence():
    data = dataset([10, 10, 10, 30], packed=False)
    assert sentence(look(data, sp_size=1), data, 4) == (
        "step = 1 dp x 2 micro-batches of 2 samples = 4 samples, about 60 tokens, 25.0% padding; "
        "6 steps = 6.00 epochs of 1"
    )
    few = dataset([10, 10, 10], packed=False, micro_batch_size=4)
    assert sentence(look(few), few, 4).startswith("step = 1 dp x 1 micro-batch of up to 4 samples = 3 samples, about")
    one = dataset([10], packed=False, micro_batch_size=1)
    assert sentence(look(one), one, 1).startswith("step = 1 dp x 1 micro-batch of 1 sample = 1 sample, about 10 tokens")
    assert "warning: that is all, fewer than data.train_batch_size=8" in sentence(look(data, batch_size=8), data, 8)
