"""Noise on embeddings: its size, that it looks random, and what it depends on."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sft.data.dataset import Dataset
from sft.data.order.collate import collate
from sft.model.noise import noise, noisy_embeddings
from sft.parallel.ulysses import split_tokens
from sft.types import Sample

WIDTH = 64
SAMPLES = [Sample(np.arange(length, dtype=np.int32), np.ones(length, np.float32)) for length in (7, 100, 12)]
DRAWS = [5, 2**32 - 1, 6]


def noise_of(batch, alpha=5.0):
    return noise(batch.noise, batch.position_ids, WIDTH, alpha)


@pytest.fixture
def packed():
    return noise_of(collate(SAMPLES, packed=True, pad_id=0, draws=DRAWS))[0]


def test_it_is_uniform_and_smaller_in_longer_samples(packed):
    ends = np.cumsum([len(sample) for sample in SAMPLES])[:-1]
    for sample, found in zip(SAMPLES, packed.tensor_split(tuple(ends)), strict=True):
        found = found / (5 / (len(sample) * WIDTH) ** 0.5)
        assert -1 <= found.min() < -0.97 and 0.97 < found.max() < 1
        assert abs(float(found.mean())) < 4 * 3**-0.5 / found.numel() ** 0.5
        assert float(found.std()) == pytest.approx(3**-0.5, rel=0.08)
    tokens = packed[7:107] / packed[7:107].std()
    assert (tokens @ tokens.T / WIDTH - torch.eye(100)).abs().max() < 0.7, "tokens have noise of their own"
    assert len(packed.unique()) > 0.99 * packed.numel()


def test_it_belongs_to_a_sample_wherever_that_lies(packed):
    padded = noise_of(collate(SAMPLES[::-1], packed=False, pad_id=0, draws=DRAWS[::-1]))
    for row, sample, found in zip(padded, SAMPLES[::-1], packed.split([7, 100, 12])[::-1], strict=True):
        assert torch.equal(row[: len(sample)], found)
    whole = collate(SAMPLES, packed=True, pad_id=0, draws=DRAWS)
    parts = [noise_of(split_tokens(whole, part=part, parts=2))[0] for part in range(2)]
    assert torch.equal(torch.cat(parts)[: len(packed)], packed)
    others = noise_of(collate(SAMPLES, packed=True, pad_id=0, draws=[draw ^ 1 for draw in DRAWS]))[0]
    assert (others != packed).float().mean() > 0.99


def test_only_batches_that_drew_and_only_within_the_context():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings = torch.nn.Embedding(128, WIDTH, dtype=torch.bfloat16)

        def get_input_embeddings(self):
            return self.embeddings

    model = Model()
    drew, plain = (collate(SAMPLES, packed=True, pad_id=0, draws=draws) for draws in (DRAWS, None))
    expected = model.embeddings(drew.input_ids)
    with noisy_embeddings(model, drew, 5.0):
        found = model.embeddings(drew.input_ids)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected + noise_of(drew).bfloat16())
    with noisy_embeddings(model, plain, 5.0):
        assert torch.equal(model.embeddings(plain.input_ids), expected)
    assert torch.equal(model.embeddings(drew.input_ids), expected)


def test_a_sample_draws_by_seed_and_step_whoever_computes_it():
    class Samples(list):
        lengths = np.array([len(sample) for sample in SAMPLES])

    one_source = SimpleNamespace(sources=[None])
    dataset = Dataset.__new__(Dataset)
    settings = {"packed": True, "pad_id": 0, "micro_batch_size": 1, "max_tokens": None, "balanced": False}
    vars(dataset).update(samples=Samples(SAMPLES), mixture=one_source, **settings)

    def drawn(*noise, ids=(0, 1, 2)):
        batches = dataset.batches(np.array(ids), dp_size=1, dp_rank=0, noise=noise)
        return {batch.sample_lengths: int(batch.noise[0, 0]) & 0xFFFFFFFF for batch in batches}

    first = drawn(1, 1)
    assert len(set(first.values())) == 3
    assert drawn(1, 1, ids=(2, 0, 1)) == first
    for other in (drawn(1, 2), drawn(2, 1)):
        assert other.keys() == first.keys() and set(other.values()).isdisjoint(first.values())
    assert next(dataset.batches(np.array([0]), dp_size=1, dp_rank=0)).noise is None
