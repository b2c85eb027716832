"""Every tensor of a model directory finds its weight, and its way back; transformers' own loading is the measure."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from sft.errors import InputError
from sft.model.attention import Choice
from sft.model.conversion import conversion_of
from sft.model.load import build_skeleton, decoder_layers, load_weights
from sft.model.memory import model_size
from sft.model.names import named_weights
from sft.model.pretrained import load_config, weight_files
from sft.model.write.proof import loading_report, prove_export
from sft.model.write.weights import write_weights
from sft.parallel.fsdp import Sharding, shard
from sft.parallel.mesh import build_mesh
from sft.parallel.shards import StoredTensors
from sft.parallel.ulysses import refuse_impossible_split

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WIDE = SIZES | {"head_dim": 8}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
MAMBA2 = {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 8, "expand": 2}
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES = {
    "qwen3": WIDE,
    "gpt2": GPT2,
    "gpt_neox": SIZES | {"tie_word_embeddings": False},
    "gpt_neo": SIZES | {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gpt_bigcode": GPT2,
    "bloom": {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "opt": SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "qwen3_moe": WIDE | EXPERTS,
    "mixtral": WIDE | EXPERTS,
    "olmoe": SIZES | EXPERTS,
    "gpt_oss": WIDE | EXPERTS | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    "granitemoe": SIZES | EXPERTS,
    "deepseek_v3": SIZES | LATENT,
    "glm4_moe": WIDE | LATENT | {"partial_rotary_factor": 0.5},
    "ernie4_5_moe": WIDE | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 1},
    "mamba": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "mamba2": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2} | MAMBA2 | {"expand": 2},
    "rwkv": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "falcon_h1": WIDE
    | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8},
    "nemotron_h": WIDE
    | {"hybrid_override_pattern": "M*", "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 8},
}
STREAMED = ["qwen3_moe", "mixtral", "deepseek_v3", "olmoe", "gpt_oss", "glm4_moe", "ernie4_5_moe", "granitemoe"]


def written(path, kind, *, auto=AutoModelForCausalLM, dtype=torch.float32, **more):
    """Write a model of random weights, none of them zero or one, as transformers does; returns its directory."""
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(kind, **FAMILIES[kind] | more), dtype=dtype)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    model.save_pretrained(path)
    return path


def skeleton(directory):
    config = load_config(directory, trust_remote_code=False)
    return build_skeleton(
        config, attention=Choice("eager", None, False, ""), dtype=torch.float32, trust_remote_code=False
    )


def loaded(directory):
    """As in a run: sharded on the meta device, then filled."""
    model = skeleton(directory)
    shard(model, decoder_layers(model), build_mesh(1, "cpu").fsdp, Sharding(torch.float32))
    load_weights(model, directory, torch.device("cpu"))
    return model


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_loads_as_transformers_does(model, directory):
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ours, expected = named_weights(model), named_weights(theirs)
    assert ours.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(whole(ours[name]), expected[name])] == []
    computed, buffers = dict(model.named_buffers()), dict(theirs.named_buffers())
    assert computed.keys() == buffers.keys()
    assert [name for name in buffers if not torch.equal(computed[name], buffers[name])] == []


def assert_same_files(found, expected):
    found, expected = (load_file(directory / "model.safetensors") for directory in (found, expected))
    assert found.keys() == expected.keys()
    different = [n for n, each in expected.items() if found[n].dtype != each.dtype or not torch.equal(found[n], each)]
    assert different == []


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_loaded_is_what_transformers_loads_and_what_is_written_is_what_was_read(
    tmp_path, world_of_one, kind, capsys
):
    source = written(tmp_path / "source", kind)
    model = skeleton(source)
    prove_export(model, source)
    model = loaded(source)
    assert_loads_as_transformers_does(model, source)
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    write_weights(model, source, target, write=True)
    assert_same_files(target, source)
    capsys.readouterr()
    assert loading_report(target, trust_remote_code=False) == []
    assert "Loading weights" not in capsys.readouterr().err, "no bar where nothing is loaded"


@pytest.mark.parametrize("kind", ["gpt2", "bloom", "qwen3_moe", "qwen3"])
def test_files_without_the_prefix_of_the_base_model(tmp_path, world_of_one, kind):
    """As GPT-2 lies on the hub, and whatever was saved from AutoModel."""
    tied = {} if kind in ("gpt2", "bloom") else {"tie_word_embeddings": True}
    source = written(tmp_path / "source", kind, auto=AutoModel, **tied)
    names = load_file(source / "model.safetensors").keys()
    assert not any(name.startswith(("model.", "transformer.")) for name in names)
    model = loaded(source)
    assert_loads_as_transformers_does(model, source)
    prove_export(skeleton(source), source)
    (tmp_path / "target").mkdir()
    write_weights(model, source, tmp_path / "target", write=True)
    assert_same_files(tmp_path / "target", source)


def test_a_pattern_for_unexpected_names_leaves_real_weights_alone(tmp_path, world_of_one):
    """GPT-2's class ignores `attn.bias`, masks of old files; `c_attn.bias` ends like them and is a weight."""
    source = written(tmp_path / "source", "gpt2")
    weights = load_file(source / "model.safetensors")
    mask = torch.ones(1, 1, 64, 64).tril().bool()
    save_file(weights | {"transformer.h.0.attn.bias": mask}, source / "model.safetensors", metadata={"format": "pt"})
    model = loaded(source)
    conversion = conversion_of(model, StoredTensors.of_whole_tensors(weight_files(source)))
    assert conversion.unread in ([], ["transformer.h.0.attn.bias"]) and not conversion.problems
    (tmp_path / "target").mkdir()
    write_weights(model, source, tmp_path / "target", write=True)
    assert_same_files(tmp_path / "target", source)


def test_files_of_several_dtypes_keep_them(tmp_path, world_of_one):
    """A router's correction in fp32 among weights in bf16, as DeepSeek-V3 and its kin are published."""
    source = written(tmp_path / "source", "deepseek_v3", dtype=torch.bfloat16)
    weights = load_file(source / "model.safetensors")
    mixed = {
        name: weight.float() + 1e-5 if "correction" in name or name.endswith("experts.1.up_proj.weight") else weight
        for name, weight in weights.items()
    }
    assert len({weight.dtype for weight in mixed.values()}) == 2
    save_file(mixed, source / "model.safetensors", metadata={"format": "pt"})
    model = loaded(source)
    (tmp_path / "target").mkdir()
    write_weights(model, source, tmp_path / "target", write=True)
    assert_same_files(tmp_path / "target", source)


def test_a_tied_weight_may_have_its_second_name_in_the_files(tmp_path, world_of_one):
    source = written(tmp_path / "source", "qwen3", tie_word_embeddings=True)
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    model = loaded(source)
    assert_loads_as_transformers_does(model, source)
    (tmp_path / "target").mkdir()
    write_weights(model, source, tmp_path / "target", write=True)
    assert_same_files(tmp_path / "target", source)


def test_a_head_that_is_not_the_embedding_is_no_tied_head(tmp_path):
    source = written(tmp_path / "source", "qwen3", tie_word_embeddings=True)
    weights = load_file(source / "model.safetensors")
    head = weights["model.embed_tokens.weight"].clone()
    save_file(weights | {"lm_head.weight": head}, source / "model.safetensors", metadata={"format": "pt"})
    prove_export(skeleton(source), source)  # twice the same is no harm
    save_file(weights | {"lm_head.weight": head + 1}, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lm_head\.weight and model\.embed_tokens\.weight are one weight.*two diff"):
        prove_export(skeleton(source), source)


def test_parts_that_transformers_does_not_read_are_said_and_copied(tmp_path, world_of_one, caplog):
    """Layers for predicting several tokens at once come with DeepSeek-V3 and GLM-4.5."""
    source = written(tmp_path / "source", "glm4_moe")
    weights = load_file(source / "model.safetensors")
    ignored = "model.layers.92.eh_proj.weight"
    save_file(weights | {ignored: torch.ones(3)}, source / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level("INFO", logger="sft"):
        prove_export(skeleton(source), source)
    assert f"has no place for 1 tensors of {source}" in caplog.text and ignored in caplog.text
    (tmp_path / "target").mkdir()
    write_weights(loaded(source), source, tmp_path / "target", write=True)
    assert_same_files(tmp_path / "target", source)


def test_what_has_no_way_back_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    from transformers.core_model_loading import SplitModulelist

    source = written(tmp_path / "source", "qwen3_moe")
    convert = SplitModulelist.convert

    def forgetful(self, *arguments, **options):
        return dict(list(convert(self, *arguments, **options).items())[:-1])

    monkeypatch.setattr(SplitModulelist, "convert", forgetful)
    with pytest.raises(InputError, match=r"cannot be written as they were read: model\.layers\.0\.mlp\.experts\.3"):
        prove_export(skeleton(source), source)


def test_an_index_that_promises_more_than_the_model_has_is_refused(tmp_path):
    source = written(tmp_path / "source", "qwen3")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1, "layer_types": None}))
    with pytest.raises(InputError, match=r"unexpected: model\.layers\.1\.input_layernorm"):
        prove_export(skeleton(source), source)


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "rwkv", "gpt_neo", "gpt_bigcode", "falcon_h1"])
def test_models_that_could_not_be_built_without_memory_compute_what_transformers_does(tmp_path, world_of_one, kind):
    """No attention heads, masks and scales in buffers or beside them, layers that are named twice."""
    source = written(tmp_path, kind)
    model = loaded(source).eval()
    theirs = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    bare = skeleton(source)
    assert len(decoder_layers(bare)) == model_size(bare, decoder_layers(bare)).layers == 2
    refuse_impossible_split(bare.config, 1, ranks=2)
    ids = torch.arange(3, 15)[None]
    ours, expected = (each(input_ids=ids, use_cache=False).logits for each in (model, theirs))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
