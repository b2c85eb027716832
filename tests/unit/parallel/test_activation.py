"""Activation checkpointing: the same numbers to the last bit, less memory, and what it costs in compute."""

import gc
from collections import namedtuple

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from sft.model.kept import kept_for_backward
from sft.parallel.activation import checkpoint_activations, compile_layers
from tests.assets import tiny_model_dir

IDS = torch.arange(512)[None] % 400
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_attention_heads": 8,
    "head_dim": 32,
    "num_hidden_layers": 4,
}
Measured = namedtuple("Measured", "loss gradients kept_bytes flops")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    directory = tiny_model_dir(
        tmp_path_factory.mktemp("model"),
        **SIZES,
    )
    return {kind: measure(directory, kind) for kind in ("none", "selective", "full")}


@pytest.mark.parametrize("kind", ["none", "full"])
def test_compiled_layers_compute_the_same(tmp_path, monkeypatch, kind):
    """With the compiler's front end alone: its back end takes minutes, and is not ours."""
    torch._dynamo.reset()
    compile_, graphs = torch.compile, []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda forward, **options: compile_(forward, backend=count, **options))
    plain, compiled = (
        AutoModelForCausalLM.from_pretrained(tiny_model_dir(tmp_path), attn_implementation="sdpa").train()
        for _ in range(2)
    )
    if kind == "full":
        checkpoint_activations(compiled.model.layers, selective=False)
    compile_layers(compiled.model.layers)
    for length in (64, 80, 96):
        losses = [
            model(input_ids=IDS[:, :length], use_cache=False).logits.square().sum() for model in (plain, compiled)
        ]
        for loss in losses:
            loss.backward()
        assert losses[0].item() == losses[1].item()
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)
    assert 0 < len(graphs) <= 2, "two layers, each compiled for any length"


def measure(directory, kind):
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="sdpa").train()
    if kind != "none":
        checkpoint_activations(model.model.layers, selective=kind == "selective")
    before = storages()
    kept = []  # what autograd saves is invisible to Python unless it is asked for
    with FlopCounterMode(display=False) as flops:
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (kept.append(tensor), tensor)[1], lambda x: x):
            loss = model.model(input_ids=IDS, use_cache=False).last_hidden_state.square().sum()
        kept_bytes = sum(size for address, size in storages().items() if address not in before)
        kept.clear()
        loss.backward()
    gradients = [weight.grad for weight in model.parameters()]
    return Measured(loss.item(), gradients, kept_bytes, flops.get_total_flops())


def storages():
    """Bytes of every piece of memory that a tensor known to Python lives in, by address."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_loss_and_gradients_are_equal_to_the_last_bit(measured, kind):
    assert measured[kind].loss == measured["none"].loss
    for ours, plain in zip(measured[kind].gradients, measured["none"].gradients, strict=True):
        assert torch.equal(ours, plain)


def test_selective_keeps_less_than_all_and_full_keeps_the_least(measured):
    none, selective, full = (measured[kind].kept_bytes for kind in ("none", "selective", "full"))
    inputs = 4 * IDS.numel() * 256 * 4  # one of [T, D] in fp32 for each of the layers
    assert selective < 0.6 * none
    assert inputs < full < 0.15 * none
    assert full < selective


def test_the_estimate_of_memory_knows_what_selective_keeps(measured, tmp_path):
    """The layers' part of it; the rest of what is alive - rotary tables, the last norm - is small."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir(tmp_path, **SIZES))
    layers = list(model.model.layers)
    kept = kept_for_backward(model, layers, torch.float32)
    inputs = 4 * model.config.hidden_size * len(layers)
    assert IDS.numel() * (kept.results + inputs) == pytest.approx(measured["selective"].kept_bytes, rel=0.15)


def test_selective_computes_no_matmul_and_no_attention_twice(measured):
    assert measured["selective"].flops == measured["none"].flops
    # A third more, but for the last matmul of a layer, whose result nothing in its backward needs.
    assert 1.2 < measured["full"].flops / measured["none"].flops < 4 / 3
