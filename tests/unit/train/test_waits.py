"""A training step queues its work and goes on: until its one sum over the ranks, nothing makes the host wait.

Tensors of the meta device have no values. So whatever would read one from a device - `.item()`, an `if` on a tensor,
boolean indexing - fails on them; and what copies from one device to another, and waits, is seen as it passes.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sft.data.order.collate import collate
from sft.model.attention import Available, choose_attention, flex
from sft.model.attention.kernels import Samples
from sft.model.load import build_skeleton, decoder_layers
from sft.model.logits import learn_logit_form
from sft.parallel.activation import checkpoint_activations, compile_layers
from sft.train.loss import token_ce_sum, token_ce_sum_and_hits
from sft.train.optim import scale_gradients, squared_norm_of_gradients
from sft.types import Sample
from tests.models import FAMILIES, config_of

H100 = Available("cuda", (9, 0))
LAYOUTS = {"packed": True, "padded": False}


class Travels(TorchDispatchMode):
    """The operations whose tensors lie on two devices. A number in CPU memory may go along: its value is known."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        found = (x for x in tree_leaves((args, kwargs, made)) if isinstance(x, torch.Tensor))
        tensors = [x for x in found if x.numel()]  # what is empty has nothing to bring (torch 2.11 makes some)
        if len({x.device for x in tensors}) > 1 or (tensors and all(x.device.type == "cpu" for x in tensors)):
            self.seen.append(str(function))
        return made


def model_on_meta(family, *, packed, wanted="auto", half=True, here=H100):
    config = config_of(family)
    attention = choose_attention(config, wanted=wanted, packed=packed, half=half, here=here)
    model = build_skeleton(config, attention=attention, dtype=torch.bfloat16, trust_remote_code=False)
    learn_logit_form(model)
    return model.to("meta")  # its buffers as well: meta stands for the device here


def batch_on_meta(*lengths, packed):
    samples = [Sample(np.full(n, 3, np.int32), np.ones(n, np.float32)) for n in lengths]
    batch = collate(samples, packed=packed, pad_id=0, sources=[n % 2 for n in range(len(lengths))])
    return replace(batch, **{name: tensor.to("meta") for name, tensor in batch._travels().items()})


@pytest.mark.parametrize("half", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_reads_nothing_from_the_device(family, layout, half):
    model, batch = (
        model_on_meta(family, packed=LAYOUTS[layout], half=half),
        batch_on_meta(9, 1, 17, packed=LAYOUTS[layout]),
    )
    with Travels() as travels:
        ce, ce_of_sources = token_ce_sum(model, batch, sources=2)
        (ce / 7.0).backward()
        norm = squared_norm_of_gradients(model)
        scale_gradients(model, 0.5)
        token_ce_sum_and_hits(model, batch)
    assert not travels.seen
    assert {tensor.device.type for tensor in (ce, ce_of_sources, norm)} == {"meta"}


@pytest.mark.parametrize("selective", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_computing_activations_again_reads_nothing_either(family, selective):
    model, batch = model_on_meta(family, packed=True), batch_on_meta(9, 1, 17, packed=True)
    checkpoint_activations(decoder_layers(model), selective=selective)
    with Travels() as travels:
        token_ce_sum(model, batch)[0].backward()
    assert not travels.seen


@pytest.mark.parametrize("window", [None, 100])
def test_the_mask_of_flex_is_made_on_the_device(window):
    """A tensor of its own for every batch, as from there: the masks of one are kept."""
    ends = torch.tensor([0, 200, 300], dtype=torch.int32).to("meta")
    mask = flex._mask_of(Samples((), ends, 200), window, 300)
    assert mask.kv_num_blocks.device.type == "meta"


TWELVE = (
    *((9, 1, 17), (5, 6, 7, 8), (30, 2), (4,) * 6, (11,), (12,), (3, 3), (40, 1, 1, 1, 1), (2,) * 9, (21, 8)),
    *((64,), (7, 5, 3)),
)
"""Lengths of samples of twelve micro-batches: many and one, long and short."""


@pytest.fixture
def graphs(monkeypatch):
    """What was compiled so far, without breaks: fullgraph raises an error at one. The front end alone compiles."""
    torch._dynamo.reset()
    compile_, graphs = torch.compile, []

    def note(graph, _):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(
        torch, "compile", lambda forward, **options: compile_(forward, backend=note, fullgraph=True, **options)
    )
    return graphs


@pytest.mark.parametrize(("family", "checkpointing"), [("gemma3", None), ("llama", "selective"), ("llama", "full")])
def test_compiled_layers_are_compiled_once_for_training_and_once_for_validation(family, checkpointing, graphs):
    """Of packed rows; a layer with a window is another graph."""
    model = model_on_meta(family, packed=True)
    assert model.config._attn_implementation == "packed_varlen"
    if checkpointing:
        checkpoint_activations(decoder_layers(model), selective=checkpointing == "selective")
    compile_layers(decoder_layers(model))
    kinds = 2 if family == "gemma3" else 1
    for lengths in TWELVE:
        token_ce_sum(model, batch_on_meta(*lengths, packed=True))[0].backward()
        assert len(graphs) == kinds, lengths
    model.eval()
    for lengths in TWELVE:
        token_ce_sum_and_hits(model, batch_on_meta(*lengths, packed=True))
        assert len(graphs) == 2 * kinds, lengths


@pytest.mark.parametrize(
    ("family", "packed", "checkpointing"),
    [("gemma3", True, None), ("llama", True, "selective"), ("llama", True, "full"), ("llama", False, None)],
)
def test_flex_is_part_of_compiled_layers(family, packed, checkpointing, graphs, monkeypatch):
    """Its masks are made before them. A mask of a single block of 128 tokens is another graph."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)  # it knows no meta
    model = model_on_meta(family, packed=packed, wanted="flex", here=replace(H100, triton=""))
    if checkpointing:
        checkpoint_activations(decoder_layers(model), selective=checkpointing == "selective")
    compile_layers(decoder_layers(model))
    for lengths in (*TWELVE[:: 1 if packed else 4], (200, 40), (129, 1, 1)):
        token_ce_sum(model, batch_on_meta(*lengths, packed=packed))[0].backward()
    assert 0 < len(graphs) <= (2 if packed else 4) * (2 if family == "gemma3" else 1)


def test_of_padded_rows_a_single_one_is_compiled_by_itself(graphs):
    model = model_on_meta("llama", packed=False)
    compile_layers(decoder_layers(model))
    for lengths in TWELVE:
        token_ce_sum(model, batch_on_meta(*lengths, packed=False))[0].backward()
    assert len(graphs) == 2


def test_what_waits_is_noticed():
    """transformers' attention on padded rows: if this passes one day, ours is no longer needed there."""
    model = model_on_meta("llama", packed=False, wanted="sdpa")
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
        token_ce_sum(model, batch_on_meta(9, 1, 17, packed=False))
    with Travels() as travels:
        torch.ones(3).to("meta")
    assert travels.seen
