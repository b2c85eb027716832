"""A base in 4 bits: what is packed, what stays, and that packing a part is a part of packing the whole."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import AutoModelForCausalLM

from sft.errors import InputError
from sft.model import lora, lora_targets
from sft.model.kept import kept_for_backward
from sft.model.load import build_skeleton, decoder_layers, load_weights
from sft.model.memory import model_size
from sft.model.names import named_weights
from sft.model.pretrained import load_config
from sft.model.quantised import as_whole, choose, is_packed, pack, quantise, unpack
from sft.model.write.proof import prove_export
from sft.parallel.activation import checkpoint_activations, compile_layers
from tests.assets import attention_on_cpu, tiny_model_dir
from tests.models import ADAPTERS, IDS, config_of

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.usefixtures("world_of_one")

MOE = {"hidden_size": 64, "moe_intermediate_size": 64, "intermediate_size": 128, "head_dim": 16}


def quantised(source, *, load=True, dtype=torch.float32, recompute_experts=True, **settings):
    """As place.py builds it, of one process."""
    config = load_config(source, trust_remote_code=False)
    attention = attention_on_cpu(config, packed=False)
    model = build_skeleton(config, attention=attention, dtype=dtype, trust_remote_code=False)
    chosen = choose(model, decoder_layers(model), lora_targets.plain_linear(model))
    lora.add_adapters(model, **ADAPTERS | settings)
    quantise(model, chosen, recompute_experts=recompute_experts)
    if load:
        load_weights(model, source, torch.device("cpu"))
        lora.start_adapters(model, seed=1, adapter=None)
    return model


def rounded(source):
    """transformers' own model of the directory, with the weights that packing leaves of them."""
    model, packed = AutoModelForCausalLM.from_pretrained(source), quantised(source, load=False)
    names = {name for name, weight in named_weights(packed).items() if is_packed(weight)}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in names:
                rows = weight.reshape(-1, weight.shape[-1])
                weight.copy_(unpack(pack(rows), rows.shape[-1], weight.dtype).view(weight.shape))
    return model


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("dense"), kind="qwen2", tie=False)  # with biases


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    path = tmp_path_factory.mktemp("sparse")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config_of("qwen3_moe", **MOE), dtype=torch.float32).save_pretrained(path)
    return path


def test_packing_rows_is_a_part_of_packing_all_of_them_bit_for_bit():
    """Uneven parts, as ranks hold them; bf16 numbers and a row of zeros among them."""
    rows = torch.randn(37, 192, generator=torch.Generator().manual_seed(0)).bfloat16()
    rows[5] = 0
    whole = pack(rows)
    assert whole.shape == (37, 192 // 2 + 192 // 16)
    assert torch.equal(torch.cat([pack(part) for part in rows.tensor_split([13, 26])]), whole)
    assert torch.equal(unpack(whole[13:26], 192, torch.float32), unpack(whole, 192, torch.float32)[13:26])
    back = unpack(whole, 192, torch.float32)
    assert torch.equal(back[5], torch.zeros(192))
    farthest = rows.float().abs().view(37, 3, 64).amax(-1).repeat_interleave(64, 1)
    assert ((back - rows.float()).abs() <= 0.16 * farthest).all()  # half of the widest gap between two codes
    assert torch.equal(unpack(pack(back), 192, torch.float32), back), "what was rounded once is rounded no more"


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_the_packed_model_computes_what_the_rounded_one_does_and_so_do_its_gradients(kind, request):
    source = request.getfixturevalue(kind)
    model, reference = quantised(source), rounded(source)
    inputs = reference.get_input_embeddings()(IDS).detach()
    found = []
    for each in (model, reference):
        x = inputs.clone().requires_grad_()
        logits = each(inputs_embeds=x).logits
        logits.square().sum().backward()
        found.append((logits.detach(), x.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(source)(IDS).logits
    assert (found[0][0] - plain).abs().max() > 1e-3


def test_experts_are_recomputed_by_themselves_or_with_their_layer(sparse):
    found = []
    for by_themselves in (True, False):
        model = quantised(sparse, recompute_experts=by_themselves)
        if not by_themselves:
            checkpoint_activations(decoder_layers(model), selective=False)
        model(IDS).logits.square().sum().backward()
        found.append([weight.grad for weight in model.parameters() if weight.requires_grad])
    assert all(map(torch.equal, *found))


def test_a_compiled_layer_computes_the_same(tmp_path, monkeypatch):
    """With the compiler's front end alone, as tests/unit/parallel/test_activation.py."""
    config = config_of("qwen3_moe", **MOE | {"num_hidden_layers": 1})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward, **how: compile_(forward, backend="aot_eager", **how))
    found = []
    for compiled in (False, True):
        model = quantised(tmp_path)
        if compiled:
            compile_layers(decoder_layers(model))
        model(IDS).logits.square().sum().backward()
        found.append([weight.grad for weight in model.parameters() if weight.requires_grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_what_is_packed_and_what_is_not(sparse, caplog):
    with caplog.at_level(logging.INFO, logger="sft"):
        model = quantised(sparse, load=False, modules_to_save=["layers.1.self_attn.v_proj"], targets=["q_proj"])
    packed = {name for name, weight in named_weights(model).items() if is_packed(weight)}
    layers = [f"model.layers.{number}" for number in range(2)]
    attention = {f"{layer}.self_attn.{name}_proj.weight" for layer in layers for name in "qkvo"}
    experts = {f"{layer}.mlp.experts.{name}" for layer in layers for name in ("gate_up_proj", "down_proj")}
    assert packed == (attention | experts) - {"model.layers.1.self_attn.v_proj.weight"}
    assert "model.base_dtype=nf4: 11 frozen weights" in caplog.text
    prove_export(model, sparse)

    size, plain = model_size(model, decoder_layers(model)), quantised(sparse, load=False, targets=["q_proj"])
    whole = AutoModelForCausalLM.from_pretrained(sparse)
    adapters = sum(weight.numel() for name, weight in plain.named_parameters() if ".lora_" in name)
    assert size.trainable + size.frozen == sum(weight.numel() for weight in whole.parameters()) + adapters
    weights = {name: weight for name, weight in named_weights(model).items() if is_packed(weight)}
    assert size.packed == sum(as_whole(weight).numel() for weight in weights.values())
    assert sum(weight.nbytes for weight in weights.values()) == size.packed * 9 / 16
    assert 9 / 16 < 0.2825 * 2, "at most 0.2825 of bf16"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_bytes_in_the_compute_dtype_are_the_same_bytes(dtype):
    """FSDP2 of torch 2.11 gathers them so."""
    packed = pack(torch.randn(50, 256))
    assert len(packed.unique()) == 256, "every byte is there"
    assert torch.equal(unpack(packed.to(dtype), 256, torch.float32), unpack(packed, 256, torch.float32))


def test_rows_that_are_no_multiple_of_64_stay_and_are_counted(tmp_path, caplog):
    source = tiny_model_dir(tmp_path / "odd", intermediate_size=96)
    with caplog.at_level(logging.INFO, logger="sft"):
        model = quantised(source, load=False)
    assert not is_packed(named_weights(model)["model.layers.0.mlp.down_proj.weight"])
    assert "2 are kept as they are: their rows are no multiple of 64" in caplog.text
    odd = tiny_model_dir(tmp_path / "none", intermediate_size=96, hidden_size=48, head_dim=8)
    with pytest.raises(InputError, match=r"no frozen weight of Qwen3ForCausalLM .* have 32, 48, 96\. Leave"):
        quantised(odd, load=False)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_what_a_packed_skeleton_keeps_for_backward_is_measured(kind, request, caplog):
    """Unpacked weights are not among it: about as much as with a base in bf16."""
    source, config = request.getfixturevalue(kind), load_config(request.getfixturevalue(kind), trust_remote_code=False)
    with caplog.at_level(logging.INFO, logger="sft"):
        packed = quantised(source, load=False, dtype=torch.bfloat16)
        plain = build_skeleton(
            config, attention=attention_on_cpu(config, packed=False), dtype=torch.bfloat16, trust_remote_code=False
        )
        lora.add_adapters(plain, **ADAPTERS)
        kept = [kept_for_backward(model, decoder_layers(model), torch.bfloat16).layer for model in (packed, plain)]
    assert "cannot run without values" not in caplog.text
    assert kept[0] <= 1.05 * kept[1]
