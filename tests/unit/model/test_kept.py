"""What the skeleton says that layers keep, against what autograd really keeps, and against the widths of the layers."""

import logging

import pytest
import torch

from sft.model.attention import Available, choose_attention
from sft.model.kept import Results, by_widths, kept_for_backward
from sft.model.load import build_skeleton, decoder_layers
from sft.model.lora import add_adapters
from tests.flash_on_cpu import flash_attention_on_cpu
from tests.models import FAMILIES, config_of

H100 = Available("cuda", (9, 0))
WIDE = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 8, "head_dim": 32}


def skeleton_of(family, *, packed=True, wanted="auto", dtype=torch.float32, **sizes):
    config = config_of(family, **sizes)
    attention = choose_attention(config, wanted=wanted, packed=packed, half=True, here=H100)
    return build_skeleton(config, attention=attention, dtype=dtype, trust_remote_code=False)


def really_kept(model, tokens=512):
    """Bytes per token that the layers of a model in memory save for backward, by storage, weights excepted."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.Tensor] = {}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor  # kept alive: no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        ids, ends = torch.arange(tokens)[None] % 100, torch.tensor([0, tokens], dtype=torch.int32)
        row = {"sample_lengths": (tokens,), "cu_seqlens": ends, "max_seqlen": tokens}
        model.base_model(input_ids=ids, position_ids=ids, use_cache=False, **row)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) / tokens


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_the_skeleton_keeps_what_the_model_keeps(family):
    """With torch's own varlen_attn. What is not of the layers - rotary tables, the last norm - is a few per cent."""
    sizes = WIDE | {"num_hidden_layers": 4, "use_sliding_window": False}
    skeleton = skeleton_of(family, **sizes)
    measured = kept_for_backward(skeleton, decoder_layers(skeleton), torch.bfloat16)
    model = skeleton_of(family, wanted="varlen", dtype=torch.bfloat16, **sizes).to_empty(device="cpu")
    with flash_attention_on_cpu():
        # torch 2.11 has no shared heads in varlen_attn: keys and values are repeated, and kept so.
        assert measured.layers == pytest.approx(really_kept(model), rel=0.1)
    assert measured.layer == pytest.approx(measured.layers / 4, rel=0.05)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_measured_and_stays_as_it_was(family, packed, caplog):
    skeleton = skeleton_of(family, packed=packed)
    before = {name: (weight.dtype, weight.device) for name, weight in skeleton.named_parameters()}
    attention = skeleton.config._attn_implementation
    with caplog.at_level(logging.INFO, "sft"):
        kept = kept_for_backward(skeleton, decoder_layers(skeleton), torch.bfloat16)
    assert "by their widths" not in caplog.text
    assert kept.layers > kept.results > 0 and kept.layers >= kept.layer > 0
    assert skeleton.config._attn_implementation == attention
    assert {name: (weight.dtype, weight.device) for name, weight in skeleton.named_parameters()} == before
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in decoder_layers(skeleton))


def test_the_dtype_that_computes_decides():
    skeleton = skeleton_of("llama", **WIDE)
    half, full = (kept_for_backward(skeleton, decoder_layers(skeleton), d) for d in (torch.bfloat16, torch.float32))
    assert half.results == pytest.approx(full.results / 2, rel=0.02)  # the sums of attention are fp32 anyway
    assert half.layers < full.layers


def test_adapters_add_what_they_keep():
    plain, adapted = skeleton_of("llama", **WIDE), skeleton_of("llama", **WIDE)
    add_adapters(
        adapted, base="x", rank=8, alpha=16, targets="all-linear", dropout=0.0, use_rslora=False, use_dora=False,
        modules_to_save=(), dtype=torch.float32,
    )  # fmt: skip
    without, with_them = (kept_for_backward(m, decoder_layers(m), torch.bfloat16) for m in (plain, adapted))
    assert with_them.results > without.results
    assert with_them.layers != without.layers


def test_a_model_that_looks_at_values_is_estimated_by_its_widths(caplog):
    skeleton = skeleton_of("llama", **WIDE)
    layers = decoder_layers(skeleton)
    layers[0].forward = lambda hidden, **_: hidden if hidden.sum() > 0 else -hidden
    with caplog.at_level(logging.INFO, "sft"):
        kept = kept_for_backward(skeleton, layers, torch.bfloat16)
    assert kept == by_widths(skeleton.config, 2, len(layers))
    assert "LlamaForCausalLM cannot run without values" in caplog.text
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


def test_the_widths_say_about_the_same_of_a_plain_layer():
    skeleton = skeleton_of("llama", **WIDE)
    layers = decoder_layers(skeleton)
    measured, estimated = kept_for_backward(skeleton, layers, torch.bfloat16), by_widths(skeleton.config, 2, 2)
    assert estimated.layers == pytest.approx(measured.layers, rel=0.05)
    assert estimated.results == pytest.approx(measured.results, rel=0.05)


def test_results_are_counted_once():
    with Results() as results:
        (torch.ones(3, 4) @ torch.ones(4, 5)).relu()
    assert results.bytes == 3 * 5 * 4
