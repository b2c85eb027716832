"""The loss against the definition, written out; and gradients, parameter by parameter, across layouts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from sft.data import collate
from sft.loss import CHUNK, token_ce_sum, token_ce_sum_and_hits
from sft.types import Sample
from tests.assets import tiny_model_dir
from tests.unit.model.test_load import load_sharded


@pytest.fixture(scope="module")
def samples():
    random = np.random.default_rng(0)
    made = []
    for length in (5, 17, 9, 30):
        weights = random.choice([0.0, 0.5, 1.0], size=length).astype(np.float32)
        weights[-1] = 1.0
        made.append(Sample(random.integers(3, 400, length).astype(np.int32), weights))
    return made


def by_definition(model, samples):
    """Σ over samples and positions of w[t+1] · CE(logits[t], ids[t+1])."""
    total = torch.zeros(())
    for sample in samples:
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))
        logits = model(ids[None], position_ids=torch.arange(len(ids))[None], use_cache=False).logits[0]
        ce = F.cross_entropy(logits[:-1].float(), ids[1:], reduction="none")
        total = total + (ce * torch.from_numpy(sample.loss_weights[1:])).sum()
    return total


@pytest.mark.parametrize("packed", [True, False])
def test_sum_and_every_gradient_equal_the_definition(tmp_path, world_of_one, samples, packed):
    directory = tiny_model_dir(tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(directory)  # unsharded: our gradient scale must be torch's own
    expected = by_definition(reference, samples)
    expected.backward()

    model = load_sharded(directory, packed=packed)
    found = token_ce_sum(model, collate(samples, packed=packed, pad_id=0))
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), theirs[name].grad, rtol=1e-5, atol=1e-5, msg=name)


def test_fractional_weights_against_numbers_by_hand():
    """Two turns of two tokens, weights 0.25 and 2: Σ w·CE / Σ w, with the CE of every token known beforehand."""
    likely = {5: 0.5, 6: 0.25, 7: 0.125, 8: 0.0625}  # probability that the model gives to each trained token

    class Model(torch.nn.Module):
        def forward(self, input_ids, logits_to_keep, **_):
            targets = input_ids.roll(-1)[:, logits_to_keep]
            logits = torch.zeros(*targets.shape, 10)
            for column, target in enumerate(targets[0].tolist()):
                share = likely[target]
                logits[0, column] = torch.tensor((1 - share) / 9).log()
                logits[0, column, target] = torch.tensor(share).log()
            return SimpleNamespace(logits=logits)

    sample = Sample(np.array([3, 3, 5, 6, 3, 7, 8, 4], np.int32), np.array([0, 0, 0.25, 0.25, 0, 2, 2, 0], np.float32))
    batch = collate([sample], packed=True, pad_id=0)
    loss = token_ce_sum(Model(), batch).item() / batch.weight_sum
    assert batch.weight_sum == 4.5
    bits = 0.25 * (1 + 2) + 2 * (3 + 4)  # -log2 of the probabilities
    assert loss == pytest.approx(bits * np.log(2) / 4.5, rel=1e-6)


def test_more_rows_than_a_chunk(tmp_path, world_of_one, monkeypatch):
    model = load_sharded(tiny_model_dir(tmp_path))
    ids = (np.arange(50) % 400 + 3).astype(np.int32)
    batch = collate([Sample(ids, np.ones(50, np.float32))], packed=True, pad_id=0)
    whole = token_ce_sum(model, batch).item()
    monkeypatch.setattr("sft.loss.CHUNK", 7)
    assert CHUNK > 50
    assert token_ce_sum(model, batch).item() == pytest.approx(whole, rel=1e-6)


def test_a_batch_without_labels_is_a_zero_that_reaches_every_parameter(tmp_path, world_of_one):
    model = load_sharded(tiny_model_dir(tmp_path))
    loss = token_ce_sum(model, collate([], packed=True, pad_id=0))
    loss.backward()
    assert loss.item() == 0
    assert all(not parameter.grad.full_tensor().any() for parameter in model.parameters())


def test_hits_count_supervised_tokens_only(tmp_path, world_of_one, samples):
    model = load_sharded(tiny_model_dir(tmp_path), packed=False)
    expected = 0
    for sample in samples:
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))
        guesses = model(ids[None], position_ids=torch.arange(len(ids))[None], use_cache=False).logits[0].argmax(-1)
        expected += int(((guesses[:-1] == ids[1:]) & torch.from_numpy(sample.loss_weights[1:] > 0)).sum())
    ce_sum, hits = token_ce_sum_and_hits(model, collate(samples, packed=False, pad_id=0))
    assert hits.item() == expected
    assert ce_sum.item() == pytest.approx(by_definition(model, samples).item(), rel=1e-6)
