"""Checkpoints that also see train as the language model inside them; everything else stays as it was, bit for bit."""

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3ForCausalLM,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    Qwen3_5ForCausalLM,
    T5Config,
)

import sft
from sft.errors import InputError
from sft.model import lora
from sft.model.attention import Choice
from sft.model.load import build_skeleton, decoder_layers, load_weights
from sft.model.pretrained import load_config
from sft.model.text_part import model_class, parts_beside_text
from sft.model.write.proof import loading_report, prove_export
from sft.model.write.weights import write_weights
from sft.parallel.fsdp import Sharding, shard
from sft.parallel.mesh import build_mesh
from tests.assets import tiny_tokenizer, write_jsonl

TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
HEADS = {"head_dim": 8}
LINEAR_ATTENTION = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
QWEN_VISION = {
    "hidden_size": 16, "intermediate_size": 32, "depth": 1, "num_heads": 2, "out_hidden_size": 32,
    "num_position_embeddings": 16,
}  # fmt: skip
SIGLIP = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
QWEN_TOKENS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
KINDS = {
    "gemma3": {
        "text_config": TEXT | HEADS | {"model_type": "gemma3_text"},
        "vision_config": SIGLIP,
        "image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7, "mm_tokens_per_image": 4,
    },
    "qwen3_5": {
        "text_config": TEXT | HEADS | LINEAR_ATTENTION | {"model_type": "qwen3_5_text"},
        "vision_config": QWEN_VISION,
    } | QWEN_TOKENS,
    "qwen3_vl": {
        "text_config": TEXT | HEADS | {"model_type": "qwen3_vl_text", "rope_parameters": SECTIONS},
        "vision_config": QWEN_VISION | {"deepstack_visual_indexes": [0]},
    } | QWEN_TOKENS,
    "qwen2_5_vl": {
        "text_config": TEXT | {"model_type": "qwen2_5_vl_text", "rope_parameters": SECTIONS},
        "vision_config": {name: size for name, size in QWEN_VISION.items() if name != "num_position_embeddings"},
    } | QWEN_TOKENS,
    "mistral3": {
        "text_config": TEXT | HEADS | {"model_type": "mistral"},
        "vision_config": SIGLIP | {"model_type": "pixtral", "head_dim": 8},
        "image_token_index": 5,
    },
}  # fmt: skip
TEXT_CLASSES = {
    "gemma3": Gemma3ForCausalLM,
    "qwen3_5": Qwen3_5ForCausalLM,
    "qwen2_5_vl": Qwen2ForCausalLM,
    "mistral3": MistralForCausalLM,
}


@pytest.fixture(scope="module", params=KINDS)
def source(request, tmp_path_factory):
    """A directory as transformers writes it, in bf16."""
    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **KINDS[request.param])
    AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).save_pretrained(path)
    return path


def skeleton(directory):
    config = load_config(directory, trust_remote_code=False)
    return build_skeleton(
        config, attention=Choice("sdpa", None, False, ""), dtype=torch.float32, trust_remote_code=False
    )


def loaded(directory):
    model = skeleton(directory)
    apart = list(parts_beside_text(model).values())
    shard(model, decoder_layers(model), build_mesh(1, "cpu").fsdp, Sharding(torch.float32), apart=apart)
    load_weights(model, directory, torch.device("cpu"))
    return model


def logits(model):
    ids = torch.arange(9, 21)[None]
    return model(input_ids=ids, position_ids=torch.arange(12)[None], use_cache=False).logits


def test_the_class_is_the_one_that_the_directory_names(source):
    model = skeleton(source)
    (named,) = model.config.architectures
    assert type(model).__name__ == named
    assert {type(layer).__name__ for layer in decoder_layers(model)} & {"SiglipEncoderLayer"} == set()
    assert len(decoder_layers(model)) == 2


def test_it_says_what_the_text_class_says_on_the_same_weights(source, world_of_one):
    ours = loaded(source).train()
    kind = ours.config.model_type
    if kind not in TEXT_CLASSES:
        theirs = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    else:
        theirs = TEXT_CLASSES[kind](TEXT_CLASSES[kind].config_class(**ours.config.get_text_config().to_dict()))
        whole = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32).state_dict()
        text = {n.replace("model.language_model.", "model."): w for n, w in whole.items() if "language_model" in n}
        report = theirs.load_state_dict(text | {"lm_head.weight": whole["lm_head.weight"]}, strict=False)
        assert not report.missing_keys and not report.unexpected_keys
    torch.testing.assert_close(logits(ours), logits(theirs.eval()), rtol=1e-5, atol=1e-5)


def test_only_the_language_model_trains_and_the_rest_is_copied(source, tmp_path, world_of_one):
    prove_export(skeleton(source), source)
    model = loaded(source)
    logits(model).square().sum().backward()
    beside = parts_beside_text(model)
    assert beside and all(isinstance(part, FSDPModule) for part in beside.values())
    for name, weight in model.named_parameters():
        outside = any(name.startswith(f"{part}.") for part in beside)
        assert (weight.grad is None) == (not weight.requires_grad) == outside, name
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 1
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    write_weights(model, source, tmp_path, write=True)
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        seeing = any(part in name for part in ("vision", "visual", "projector"))
        assert weight.dtype == after[name].dtype and torch.equal(weight, after[name]) == seeing, name
    assert loading_report(tmp_path, trust_remote_code=False) == []


def test_lora_adapts_the_language_model_only(source, tmp_path, world_of_one):
    model = skeleton(source)
    settings = {"rank": 2, "alpha": 4, "dropout": 0.0, "use_rslora": False, "use_dora": False, "modules_to_save": []}
    lora.add_adapters(model, base="org/base", targets="all-linear", dtype=torch.float32, **settings)
    prove_export(model, source)
    adapted = [name for name in lora.adapters(model)]
    assert adapted and not [name for name in adapted if any(part in name for part in ("vis", "projector"))]
    load_weights(model, source, torch.device("cpu"))
    lora.start_adapters(model, seed=0, adapter=None)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight += 0.1
    write_weights(model, source, tmp_path, write=True)
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == len(adapted) and all("language_model" in name or "model.layers" in name for name in changed)


def test_card_and_last_line_name_the_class_that_opens_it(tmp_path):
    """And a whole run passes, whose rows are text alone."""
    source, kind = tmp_path / "model", KINDS["qwen3_vl"]
    config = AutoConfig.for_model("qwen3_vl", **kind | {"text_config": kind["text_config"] | {"vocab_size": 512}})
    AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).save_pretrained(source)
    rows = [{"question": f"What is {k} + {k}?", "answer": f"{2 * k}."} for k in range(4)]
    tiny_tokenizer().save_pretrained(source)
    settings = [
        f"model.partial_pretrain={source}", f"data.train_files={write_jsonl(tmp_path / 'rows.jsonl', rows)}",
        f"data.cache_dir={tmp_path / 'cache'}", "data.train_batch_size=4", "trainer.total_training_steps=1",
        "model.lora_rank=2", f"trainer.default_local_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    sft.run(sft.load_config(settings))
    card, log = ((tmp_path / "run" / name).read_text() for name in ("README.md", "training.log"))
    assert "from transformers import AutoModelForImageTextToText, AutoTokenizer" in card
    assert f"AutoModelForImageTextToText.from_pretrained('{tmp_path / 'run'}')" in log
    assert "AutoModelForCausalLM" not in card + log


def test_text_models_are_opened_as_ever(tmp_path):
    config = AutoConfig.for_model("qwen3", **TEXT)
    assert model_class(config) is AutoModelForCausalLM
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = skeleton(tmp_path)
    assert all(weight.requires_grad for weight in model.parameters()) and parts_beside_text(model) == {}


def test_what_is_no_language_model_is_refused_in_a_sentence():
    config = T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, architectures=["T5ForConditionalGeneration"])
    with pytest.raises(InputError, match=r"cannot build T5ForConditionalGeneration \(it is no language model"):
        build_skeleton(config, attention=Choice("sdpa", None, False, ""), dtype=torch.float32, trust_remote_code=False)


def test_what_an_architecture_raises_is_told_with_its_name():
    config = AutoConfig.for_model("qwen3", **TEXT, architectures=["Qwen3ForCausalLM"])
    config.hidden_act = "no such function"
    with pytest.raises(InputError, match=r"cannot build Qwen3ForCausalLM \(KeyError: .*no such function"):
        build_skeleton(config, attention=Choice("sdpa", None, False, ""), dtype=torch.float32, trust_remote_code=False)
