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

from sft.data import collate
from sft.loss import token_ce_sum, token_ce_sum_and_hits
from sft.model import Available, build_skeleton, choose_attention, decoder_layers, learn_logit_form
from sft.model.attention import flex
from sft.model.attention.kernels import Samples
from sft.optim import scale_gradients, squared_norm_of_gradients
from sft.parallel import checkpoint_activations
from sft.types import Sample
from tests.unit.model.attention.families import FAMILIES, config_of

H100 = Available("cuda", (9, 0))
LAYOUTS = {"packed": True, "padded": False}


class Travels(TorchDispatchMode):
    """The operations whose tensors lie on two devices. A number in CPU memory may go along: its value is known."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, made)) if isinstance(x, torch.Tensor)]
        if len({x.device for x in tensors}) > 1 or (tensors and all(x.device.type == "cpu" for x in tensors)):
            self.seen.append(str(function))
        return made


def model_on_meta(family, *, packed, wanted="auto", half=True, here=H100):
    config = config_of(family)
    attention = choose_attention(config, wanted=wanted, packed=packed, half=half, here=here)
    model = build_skeleton(config, attention=attention, dtype=torch.bfloat16, trust_remote_code=False)
    learn_logit_form(model)
    return model


def batch_on_meta(*, packed):
    random = np.random.default_rng(0)
    samples = [Sample(random.integers(3, 128, n).astype(np.int32), np.ones(n, np.float32)) for n in (9, 1, 17)]
    batch = collate(samples, packed=packed, pad_id=0, sources=[0, 1, 0])
    return replace(batch, **{name: tensor.to("meta") for name, tensor in batch._travels().items()})


@pytest.mark.parametrize("half", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_reads_nothing_from_the_device(family, layout, half):
    model, batch = model_on_meta(family, packed=LAYOUTS[layout], half=half), batch_on_meta(packed=LAYOUTS[layout])
    with Travels() as travels:
        ce, ce_of_sources = token_ce_sum(model, batch, sources=2)
        (ce / 7.0).backward()
        norm = squared_norm_of_gradients(model)
        scale_gradients(model, 0.5)
        token_ce_sum_and_hits(model, batch)
    assert not travels.seen
    assert {tensor.device.type for tensor in (ce, ce_of_sources, norm)} == {"meta"}


@pytest.mark.parametrize("selective", [True, False])
def test_computing_activations_again_reads_nothing_either(selective):
    model, batch = model_on_meta("qwen3", packed=True), batch_on_meta(packed=True)
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


def test_what_waits_is_noticed():
    """transformers' attention on padded rows: if this passes one day, ours is no longer needed there."""
    model = model_on_meta("llama", packed=False, wanted="sdpa")
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
        token_ce_sum(model, batch_on_meta(packed=False))
    with Travels() as travels:
        torch.ones(3).to("meta")
    assert travels.seen
