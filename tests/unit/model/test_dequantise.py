"""Weights that were published quantised are read as transformers widens them, and the trained model is in bf16."""

import json
from functools import cache
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DeepseekV3Config, FineGrainedFP8Config
from transformers.utils.quantization_config import Mxfp4Config

import sft
from sft.errors import InputError
from sft.model.dequantise import stored_weights
from tests.assets import tiny_model_dir, tiny_tokenizer, write_jsonl

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
LATENT = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
    "first_k_dense_replace": 1, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
}  # fmt: skip


def quantised(directory, settings, tensors):
    """Put other tensors and the settings of their quantisation into a model directory."""
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return directory


def in_mxfp4(directory):
    """A tiny gpt-oss whose experts are random nibbles, with scales about one 64th."""
    tiny_model_dir(directory, kind="gpt_oss", dtype="bfloat16", num_local_experts=4, num_experts_per_tok=2)
    random, tensors = torch.Generator().manual_seed(0), {}
    for name, weight in load_file(directory / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            tensors[name] = weight
            continue
        experts, inputs, outputs = weight.shape
        grid = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*grid, 16), generator=random, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(119, 123, grid, generator=random, dtype=torch.uint8)
    return quantised(directory, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, tensors)


def in_fp8(directory, **sizes):
    """A tiny DeepSeek-V3 whose linear layers and experts are fp8 in blocks of 16 x 16."""
    torch.manual_seed(0)
    settings: dict[str, Any] = LATENT | sizes
    config = DeepseekV3Config(**settings, eos_token_id=1, pad_token_id=0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    tensors = {}
    for name, weight in load_file(directory / "model.safetensors").items():
        if weight.ndim != 2 or "embed" in name or "lm_head" in name or name.endswith("gate.weight"):
            tensors[name] = weight
            continue
        grid = [-(-size // 16) for size in weight.shape]
        tensors[f"{name}_scale_inv"] = 0.01 + torch.rand(grid) / 100
        tensors[name] = (weight.float() * 50).to(torch.float8_e4m3fn)
    return quantised(directory, FP8, tensors)


def by_transformers(directory, settings):
    """Every weight as transformers widens it, by the names that it saves a bf16 model with."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, quantization_config=settings)
    return dict(model.state_dict())


def test_mxfp4_is_widened_as_transformers_does(tmp_path):
    source = in_mxfp4(tmp_path)
    expected, stored = by_transformers(source, Mxfp4Config(dequantize=True)), stored_weights(source)
    for name in stored.parts:
        assert stored.shape(name) == tuple(expected[name].shape), name
        assert torch.equal(stored.read(name), expected[name]), name
    experts = [name for name in stored.parts if name.endswith("gate_up_proj")]
    assert len(experts) == 2 and {stored.dtypes[name] for name in experts} == {"BF16"}


def test_fp8_blocks_are_widened_as_transformers_does(tmp_path):
    """Names that transformers keeps; the experts, which it joins, are compared by what the model says, below."""
    source = in_fp8(tmp_path, qk_rope_head_dim=16)  # whole blocks: transformers takes no others
    expected, stored = by_transformers(source, FineGrainedFP8Config(dequantize=True)), stored_weights(source)
    same = [name for name in stored.parts if name in expected]
    assert any(name.endswith("down_proj.weight") for name in same) and len(same) > 20
    assert not [name for name in stored.parts if "scale" in name]
    for name in same:
        assert torch.equal(stored.read(name), expected[name]), name


def test_blocks_at_the_end_may_be_parts_of_blocks_and_slices_may_begin_anywhere(tmp_path):
    """DeepSeek-V3's kv_a_proj_with_mqa has 576 rows: four and a half blocks."""
    source = in_fp8(tmp_path)
    name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    files, stored = load_file(source / "model.safetensors"), stored_weights(source)
    values, scales = files[name], files[f"{name}_scale_inv"]
    assert values.shape[0] == 24 and scales.shape[0] == 2
    each = scales.repeat_interleave(16, dim=0)[:24].repeat_interleave(16, dim=1)
    expected = (values.float() * each).bfloat16()
    assert torch.equal(stored.read(name), expected)
    opened = cache(lambda file: safe_open(file, "pt"))
    for rows in (slice(3, 20), slice(17, 24), slice(0, 1)):
        for columns in (slice(0, 64), slice(5, 40)):
            piece = stored._piece(stored.parts[name][0], (rows, columns), opened)
            assert torch.equal(piece, expected[rows, columns]), (rows, columns)


@pytest.mark.parametrize("kind", [in_mxfp4, in_fp8], ids=["mxfp4", "fp8"])
def test_a_run_ends_in_bf16(kind, tmp_path):
    """A whole run: what it does not train it writes as it was widened, and from_pretrained opens it as any model."""
    source = kind(tmp_path / "model")
    rows = [{"question": f"What is {k} + {k}?", "answer": f"{2 * k}."} for k in range(4)]
    settings = [
        f"model.partial_pretrain={source}", f"data.train_files={write_jsonl(tmp_path / 'rows.jsonl', rows)}",
        f"data.cache_dir={tmp_path / 'cache'}", "data.train_batch_size=4", "trainer.total_training_steps=1",
        "model.train_only=[norm]", "optim.lr=0.1", "optim.warmup_steps_ratio=0",
        f"trainer.default_local_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"is quantised \((mxfp4|fp8)\); set model\.dequantise=true"):
        sft.load_config(settings)
    sft.run(sft.load_config([*settings, "model.dequantise=true"]))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "quantization_config" not in config and config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    written, stored = load_file(tmp_path / "run" / "model.safetensors"), stored_weights(source)
    assert written.keys() == stored.parts.keys()
    for name, tensor in written.items():
        assert str(tensor.dtype) == {"BF16": "torch.bfloat16", "F32": "torch.float32"}[stored.dtypes[name]]
        assert torch.equal(tensor, stored.read(name)) == ("norm" not in name), name
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not any(opened[1].values())


@pytest.mark.parametrize("settings", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "fp8"}])
def test_what_cannot_be_widened_is_refused_with_what_to_do(settings, tmp_path):
    tiny_model_dir(tmp_path / "model")
    quantised(tmp_path / "model", settings, load_file(tmp_path / "model" / "model.safetensors"))
    asked = [f"model.partial_pretrain={tmp_path / 'model'}", "model.dequantise=true", "data.train_files=none.jsonl"]
    with pytest.raises(InputError, match=rf"is quantised \({settings['quant_method']}.*take the model it was made of"):
        sft.load_config(asked)


def test_values_without_scales_are_refused(tmp_path):
    source = in_fp8(tmp_path)
    tensors = load_file(source / "model.safetensors")
    lost = "model.layers.0.mlp.up_proj.weight"
    quantised(source, FP8, {name: tensor for name, tensor in tensors.items() if name != f"{lost}_scale_inv"})
    with pytest.raises(InputError, match=rf"has {lost} in F8_E4M3 without scales"):
        stored_weights(source)
