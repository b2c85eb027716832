"""Activations that wait elsewhere: the same gradients, each tensor once, no weights, nothing left behind."""

import gc

import pytest
import torch

from sft.parallel.activation import checkpoint_activations
from sft.parallel.offload import OnHost, offload_activations
from tests.models import causal_model

IDS = torch.arange(24).view(2, 12) % 100


class Elsewhere:
    """As OnHost, in other memory of the CPU, with a note of what happened."""

    alive, moved, log = 0, [], []

    def __init__(self, tensor):
        self.copy = tensor.detach().clone()
        Elsewhere.alive += 1
        Elsewhere.moved.append(tensor)
        self.fetched = False

    def __del__(self):
        Elsewhere.alive -= 1

    @staticmethod
    def takes(tensor):
        return tensor.is_floating_point()

    def fetch(self):
        self.fetched = True

    def take(self):
        Elsewhere.log.append(self.fetched)
        return self.copy


@pytest.fixture(autouse=True)
def fresh():
    Elsewhere.alive, Elsewhere.moved, Elsewhere.log = 0, [], []


def gradients(model):
    for weight in model.parameters():
        weight.grad = None
    model(input_ids=IDS, use_cache=False).logits.square().sum().backward()
    return [weight.grad for weight in model.parameters()]


@pytest.mark.parametrize("checkpointing", [None, "full", "selective"])
def test_gradients_are_equal_bit_for_bit(checkpointing):
    expected = gradients(causal_model(0))
    model = causal_model(0)
    if checkpointing:
        checkpoint_activations(model.model.layers, selective=checkpointing == "selective")
    offload_activations(model.model.layers, Elsewhere)
    for _ in range(2):  # the second step finds nothing of the first one
        assert all(map(torch.equal, gradients(model), expected))
        gc.collect()
        assert Elsewhere.alive == 0
    assert Elsewhere.log
    if checkpointing == "full":
        assert len(Elsewhere.moved) < 2 * 2 * 4, "of a layer that is computed again, only its inputs are kept"


def test_one_input_of_three_projections_is_moved_once_and_weights_never():
    model = causal_model(0)
    offload_activations(model.model.layers, Elsewhere)
    loss = model(input_ids=IDS, use_cache=False).logits.square().sum()
    places = [(t.data_ptr(), t.numel(), t._version) for t in Elsewhere.moved]
    of_both_layers = 2  # cosines and sines of the positions
    assert len(places) == len(set(places)) + of_both_layers == Elsewhere.alive
    weights = {weight.data_ptr() for weight in model.parameters()}
    assert weights.isdisjoint(tensor.data_ptr() for tensor in Elsewhere.moved)
    loss.backward()
    first_of_each = Elsewhere.log[0], Elsewhere.log[-1]
    assert first_of_each == (False, True), "when backward is in the second layer, the first one is fetched"


def test_without_gradients_nothing_is_kept():
    model = causal_model(0)
    offload_activations(model.model.layers, Elsewhere)
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    assert not Elsewhere.moved


def test_a_cpu_copies_nothing():
    assert not OnHost.takes(torch.zeros(2**20))
