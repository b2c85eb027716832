"""Adapters on one rank, without sharding: which modules get them, what they compute, what merging makes of them."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, Qwen3MoeConfig

from sft.data.order.collate import collate
from sft.errors import InputError
from sft.model import lora
from sft.model.adapter import Adapter
from sft.model.load import build_skeleton, decoder_layers, load_weights
from sft.model.lora_targets import _computes_as_linear
from sft.model.memory import Load, model_size, moments
from sft.model.names import named_weights, trained_weights
from sft.model.pretrained import load_config
from sft.model.write.proof import prove_export
from sft.model.write.side_files import side_file_bytes
from sft.model.write.weights import ROOM_FOR_HEADERS, write_weights
from sft.train.loss import token_ce_sum
from sft.types import Sample
from tests.assets import attention_on_cpu, tiny_model_dir
from tests.models import ADAPTERS, IDS

pytestmark = pytest.mark.usefixtures("world_of_one")

KINDS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "modules_to_save": {"modules_to_save": ["lm_head", "norm"], "targets": ["q_proj", "down_proj"]},
    "head": {"targets": ["lm_head", "v_proj"]},
    "regex": {"targets": r".*layers\.1\..*_proj"},
}


def adapted(source: Path, *, adapter: Path | None = None, seed: int = 1, dtype=torch.float32, **settings):
    config = load_config(source, trust_remote_code=False)
    attention = attention_on_cpu(config, packed=False)
    model = build_skeleton(config, attention=attention, dtype=dtype, trust_remote_code=False)
    lora.add_adapters(model, **ADAPTERS | settings)
    load_weights(model, source, torch.device("cpu"))
    lora.start_adapters(model, seed=seed, adapter=str(adapter) if adapter else None)
    return model


def disturb(model) -> None:
    """As if trained: every trainable weight moves."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits.float()


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("untied"), tie=False)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("tied"), kind="qwen2", tie=True)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapted_model_starts_as_the_model_it_starts_from(kind: str, untied: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(untied)
    # DoRA divides a norm by itself, which may round.
    torch.testing.assert_close(
        logits(adapted(untied, **KINDS[kind])), logits(base), rtol=0, atol=1e-5 if kind == "dora" else 0
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_doras_norms_are_those_of_fp64(transposed: bool) -> None:
    rows = torch.empty(8, 14_336).uniform_(0, 1, generator=torch.Generator().manual_seed(1))
    weight = rows.T.contiguous() if transposed else rows
    exact = rows.double().norm(dim=1)
    layer = SimpleNamespace(
        lora_magnitude_vector={lora.NAME: SimpleNamespace(weight=torch.empty(8))},
        get_base_layer=lambda: SimpleNamespace(weight=weight),
        fan_in_fan_out=transposed,
    )
    lora._start_magnitude(layer)
    torch.testing.assert_close(layer.lora_magnitude_vector[lora.NAME].weight.double(), exact, rtol=1e-7, atol=0)
    nothing = Adapter(torch.zeros(1, 14_336), torch.zeros(8, 1), torch.ones(8), 1.0, transposed, experts=None)
    merged = nothing.merged_into(weight, torch.float32)
    found = (merged.T if transposed else merged).double()
    torch.testing.assert_close(found, rows.double() / exact[:, None], rtol=3e-7, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_and_adapter_compute_what_was_trained(kind: str, untied: Path, tmp_path: Path) -> None:
    """fp32, logits of order 1: 1e-5 is the rounding of adding B·A to W first, or to W·x later."""
    model = adapted(untied, **KINDS[kind])
    disturb(model)
    trained = logits(model)
    assert (trained - logits(AutoModelForCausalLM.from_pretrained(untied))).abs().max() > 0.1

    (tmp_path / "config.json").write_text((untied / "config.json").read_text())
    write_weights(model, untied, tmp_path, write=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(merged), trained, rtol=0, atol=1e-5)

    lora.save_adapter(model, tmp_path / "adapter", write=True)
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(untied), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(opened), trained, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits(opened.merge_and_unload()), trained, rtol=0, atol=1e-5)

    again = adapted(untied, adapter=tmp_path / "adapter", **KINDS[kind])
    torch.testing.assert_close(logits(again), trained, rtol=0, atol=0)


def test_only_changed_tensors_differ_from_the_source(tied: Path, tmp_path: Path) -> None:
    model = adapted(tied, targets=["q_proj"])
    disturb(model)
    write_weights(model, tied, tmp_path, write=True)
    before, after = load_file(tied / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name]) != name.endswith("q_proj.weight"), name


def test_room_is_asked_for_the_adapter_as_well(tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(tied)
    merged = sum(tensor.nbytes for tensor in load_file(tied / "model.safetensors").values())
    adapter = sum(weight.nbytes for weight in trained_weights(model).values() if weight.requires_grad)
    free = SimpleNamespace(free=merged + adapter + side_file_bytes(tied) + ROOM_FOR_HEADERS)
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    write_weights(model, tied, tmp_path, write=True)
    free.free -= 1
    with pytest.raises(InputError, match="no room for the model"):
        write_weights(model, tied, tmp_path, write=True)


def test_a_bf16_base_does_not_round_an_fp32_source(tied: Path, tmp_path: Path) -> None:
    """Frozen weights compute in bf16, yet the merged model starts from the numbers of the source."""
    model = adapted(tied, dtype=torch.bfloat16)
    assert {w.dtype for w in named_weights(model).values()} == {torch.bfloat16}
    assert {w.dtype for w in trained_weights(model).values()} == {torch.float32}
    write_weights(model, tied, tmp_path, write=True)  # B = 0: nothing was learned
    before, after = load_file(tied / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("stored", "asked"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_merged_weights_are_cast_once(stored: str, asked: str, tmp_path: Path) -> None:
    source, to = tiny_model_dir(tmp_path / "source", tie=False, dtype=stored), getattr(torch, asked)
    model = adapted(source, dtype=getattr(torch, stored))
    disturb(model)
    name = "model.layers.0.mlp.up_proj.weight"
    adapter = lora.adapters(model)[name]()
    base = load_file(source / "model.safetensors")[name].float()
    expected = (base + adapter.scaling * (adapter.b @ adapter.a)).to(to)
    write_weights(model, source, tmp_path, write=True, dtype=to)
    assert torch.equal(load_file(tmp_path / "model.safetensors")[name], expected)


def test_gradients_reach_adapters_only(untied: Path) -> None:
    model = adapted(untied)
    model(input_ids=IDS).logits.sum().backward()
    for name, weight in model.named_parameters():
        assert (weight.grad is not None) == (".lora_" in name), name


def test_the_seed_and_the_name_decide_the_start(untied: Path) -> None:
    first, again, other = (trained_weights(adapted(untied, seed=seed)) for seed in (1, 1, 2))
    drawn = {name: weight for name, weight in first.items() if "lora_A" in name}
    for name, weight in drawn.items():
        assert torch.equal(weight, again[name])
        assert not torch.equal(weight, other[name])
        assert weight.abs().max() <= weight.shape[1] ** -0.5  # kaiming_uniform_(a=√5)
    q_projs = [weight for name, weight in drawn.items() if "q_proj" in name]
    assert not torch.equal(*q_projs)


def test_a_gaussian_start_is_the_model_as_well(untied: Path) -> None:
    model = adapted(untied)
    lora.start_adapters(model, seed=1, adapter=None, start="gaussian")
    torch.testing.assert_close(logits(model), logits(AutoModelForCausalLM.from_pretrained(untied)), rtol=0, atol=0)
    drawn = torch.cat([weight.flatten() for name, weight in trained_weights(model).items() if "lora_A" in name])
    assert drawn.std().item() == pytest.approx(1 / 4, rel=0.05)  # rank 4; some 4,600 numbers: 5 standard errors


@pytest.mark.parametrize(
    ("targets", "fragments"),
    [
        (["q_prj"], ["'q_prj' is no module", "did you mean q_proj"]),
        (["q_proj", "xyz"], ["'xyz' is no module", "there are down_proj, gate_proj"]),
        ("q_proj", ["such as model.layers.0.self_attn.q_proj", "as a list: model.target_modules=[q_proj]"]),
        (["embed_tokens"], ["model.embed_tokens (Embedding)", "only linear modules"]),
        (["mlp"], ["only linear modules"]),
        (["lm_head"], ["lm_head shares its weight with the embeddings"]),
    ],
)
def test_a_target_that_cannot_be_adapted_is_named(targets, fragments: list[str], tied: Path) -> None:
    with pytest.raises(InputError) as caught:
        adapted(tied, targets=targets)
    for fragment in ["model.target_modules", *fragments]:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("modules", "fragment"),
    [
        (["lmhead"], "did you mean lm_head?"),
        (["lm_head"], "tied embeddings"),
        (["q_proj"], "out of model.target_modules"),
        (["mlp"], "out of model.target_modules"),
    ],
)
def test_a_module_that_cannot_be_saved_is_named(modules: list[str], fragment: str, tied: Path) -> None:
    with pytest.raises(InputError, match=r"model\.modules_to_save") as caught:
        adapted(tied, modules_to_save=modules)
    assert fragment in str(caught.value)


@pytest.mark.parametrize("kind", ["head", "modules_to_save"])
def test_the_loss_sees_what_trains_in_the_head(kind: str, untied: Path) -> None:
    """It asks the head for some rows only, and must not take its frozen weight for all it does."""
    model = adapted(untied, **KINDS[kind])
    disturb(model)
    weights = [[0, 0, 1, 1, 1], [0, 1, 1]]
    samples = [Sample(np.arange(len(w), dtype=np.int32), np.array(w, dtype=np.float32)) for w in weights]
    batch = collate(samples, packed=False, pad_id=0)
    found = token_ce_sum(model, batch)[0]
    expected = torch.nn.functional.cross_entropy(
        model(input_ids=batch.input_ids, position_ids=batch.position_ids).logits.flatten(0, 1),
        batch.labels.flatten(),
        reduction="sum",
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad and "lm_head" in name}
    ours, theirs = (torch.autograd.grad(loss, list(trained.values())) for loss in (found, expected))
    assert trained
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_all_linear_leaves_the_head_alone(untied: Path) -> None:
    names = set(lora.adapters(adapted(untied)))
    assert len(names) == 2 * 7
    assert "lm_head.weight" not in names


def test_the_adapter_says_what_it_is(untied: Path, tmp_path: Path) -> None:
    model = adapted(untied, use_rslora=True, dropout=0.1)
    lora.save_adapter(model, tmp_path / "adapter", write=True)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    expected = {"r": 4, "lora_alpha": 16, "use_rslora": True, "use_dora": False, "lora_dropout": 0.1, "bias": "none"}
    expected |= {"base_model_name_or_path": "org/base", "task_type": "CAUSAL_LM", "inference_mode": True}
    assert config | expected == config
    assert config["target_modules"] == sorted(name.removesuffix(".weight") for name in lora.adapters(model))


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"rank": 8}, "model.lora_rank is 4 there and 8 here"),
        ({"alpha": 8}, "model.lora_alpha is 16 there and 8 here"),
        ({"use_rslora": True}, "model.use_rslora is False there"),
        (
            {"targets": ["q_proj"]},
            "model.target_parameters and model.modules_to_save leave out its base_model.model.",
        ),
        ({"modules_to_save": ["norm"]}, "it lacks base_model.model.model.norm.weight"),
    ],
)
def test_another_adapter_than_configured_is_refused(settings, fragment: str, untied: Path, tmp_path: Path) -> None:
    lora.save_adapter(adapted(untied), tmp_path / "adapter", write=True)
    with pytest.raises(InputError) as caught:
        adapted(untied, adapter=tmp_path / "adapter", **settings)
    assert fragment in str(caught.value)


def test_an_adapter_of_another_model_is_refused_or_at_least_named(
    untied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("sft"), "propagate", True)
    lora.save_adapter(adapted(untied), tmp_path / "adapter", write=True)
    wider = tiny_model_dir(tmp_path / "wider", intermediate_size=192, tie=False)
    with pytest.raises(InputError, match="has another shape"):
        adapted(wider, adapter=tmp_path / "adapter")
    deeper = tiny_model_dir(tmp_path / "deeper", num_hidden_layers=3, tie=False)
    with pytest.raises(InputError, match=r"it lacks base_model\.model\.model\.layers\.2"):
        adapted(deeper, adapter=tmp_path / "adapter")
    caplog.clear()
    with caplog.at_level("WARNING", logger="sft"):
        adapted(untied, adapter=tmp_path / "adapter", base="elsewhere/base")
        assert not caplog.messages  # the same model in another place
        adapted(untied, adapter=tmp_path / "adapter", base="org/other")
    assert "was trained on org/base and now changes org/other" in caplog.text


def test_adapters_that_changed_their_base_are_refused(untied: Path, tmp_path: Path) -> None:
    lora.save_adapter(adapted(untied), tmp_path / "adapter", write=True)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": "pissa_niter_4"}))
    with pytest.raises(InputError, match="began as pissa_niter_4"):
        adapted(untied, adapter=tmp_path / "adapter")
    with pytest.raises(InputError, match=r"holds no adapter_model\.safetensors"):
        adapted(untied, adapter=untied)


def random_model_dir(config, path: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("kind", ["plain", "dora"])
def test_weights_stored_transposed(kind: str, tmp_path: Path) -> None:
    """GPT-2 keeps [in, out]."""
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    source = random_model_dir(config, tmp_path / "gpt2")
    model = adapted(source, **KINDS[kind])
    torch.testing.assert_close(logits(model), logits(AutoModelForCausalLM.from_pretrained(source)), rtol=0, atol=1e-5)
    disturb(model)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text((source / "config.json").read_text())
    write_weights(model, source, tmp_path / "run", write=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    torch.testing.assert_close(logits(merged), logits(model), rtol=0, atol=1e-5)


def test_experts_are_not_adapted_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
        mlp_only_layers=[1],
    )  # fmt: skip
    source = random_model_dir(config, tmp_path / "moe")
    with caplog.at_level("INFO", logger="sft"):
        model = adapted(source)
    trained, total = (sum(p.numel() for p in model.parameters() if p.requires_grad or every) for every in (False, True))
    assert f"LoRA: {trained:,} of {total:,} parameters train" in caplog.text
    assert "experts are no linear modules and get adapters by model.target_parameters; model.layers.0" in caplog.text
    assert "share a name; model.layers.1.mlp.gate_proj" in caplog.text
    with pytest.raises(InputError, match="peft takes every 'up_proj'"):
        adapted(source, targets=["q_proj", "up_proj"])
    disturb(model)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text((source / "config.json").read_text())
    write_weights(model, source, tmp_path / "run", write=True)
    lora.save_adapter(model, tmp_path / "adapter", write=True)
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(opened), logits(model), rtol=0, atol=1e-6)
    # peft notes an empty set of experts' weights, and reads an empty list.
    torch.testing.assert_close(logits(adapted(source, adapter=tmp_path / "adapter")), logits(model), rtol=0, atol=1e-6)
    assert load_file(source / "model.safetensors").keys() == load_file(tmp_path / "run" / "model.safetensors").keys()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    torch.testing.assert_close(logits(merged), logits(model), rtol=0, atol=1e-5)


EXPERTS = {
    "qwen3_moe": {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    "mixtral": {"target_parameters": ["gate_up_proj", "down_proj"], "targets": [], "use_rslora": True},
    "gpt_oss": {"target_parameters": ["model.layers.1.mlp.experts.down_proj"]},  # kept as [E, I, O]
    "granitemoe": {"target_parameters": ["experts.down_proj"]},
}


def sparse_model_dir(kind: str, directory: Path) -> Path:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    sizes = ODD | HEADS | experts | {"head_dim": 8, "initializer_range": 0.2}
    known = AutoConfig.for_model(kind).to_dict() | {"head_dim": 8}
    return random_model_dir(AutoConfig.for_model(kind, **{k: v for k, v in sizes.items() if k in known}), directory)


@pytest.mark.parametrize("kind", EXPERTS)
def test_experts_get_adapters_that_peft_opens_and_that_merge(kind: str, tmp_path: Path) -> None:
    source, settings = sparse_model_dir(kind, tmp_path / "base"), EXPERTS[kind]
    model = adapted(source, **settings)
    base = AutoModelForCausalLM.from_pretrained(source)
    torch.testing.assert_close(logits(model), logits(base), rtol=0, atol=0)
    prove_export(model, source)
    disturb(model)
    trained = logits(model)
    assert (trained - logits(base)).abs().max() > 0.05
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "config.json").write_text((source / "config.json").read_text())
    write_weights(model, source, tmp_path / "merged", write=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), trained, rtol=0, atol=1e-5)
    assert load_file(source / "model.safetensors").keys() == load_file(tmp_path / "merged/model.safetensors").keys()

    lora.save_adapter(model, tmp_path / "adapter", write=True)
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(opened), trained, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits(opened.merge_and_unload()), trained, rtol=0, atol=1e-5)
    again = adapted(source, adapter=tmp_path / "adapter", **settings)
    torch.testing.assert_close(logits(again), trained, rtol=0, atol=0)
    with pytest.raises(InputError, match="is another adapter than the one configured"):
        adapted(source, adapter=tmp_path / "adapter", **settings | {"target_parameters": [], "targets": ["q_proj"]})


def test_the_estimate_counts_experts_that_adapters_are_added_to(tmp_path: Path) -> None:
    """As large as the experts themselves, for all layers or, where they compute again, for one."""
    source = sparse_model_dir("qwen3_moe", tmp_path)
    model = adapted(source, target_parameters=["experts.down_proj"])
    size = model_size(model, decoder_layers(model))
    experts = model.get_parameter("model.layers.0.mlp.experts.base_layer.down_proj").numel()
    assert (size.adapted, size.adapted_layer) == (2 * experts, experts)
    load = Load(1, tokens=8, logits=1, master_bytes=4, compute_bytes=2, optimizer_bytes=lambda master: 2 * master)
    without = replace(size, adapted=0, adapted_layer=0)
    for checkpointing, more in ((None, 3), ("full", 2)):
        fullest = [moments(each, replace(load, checkpointing=checkpointing))[2] for each in (size, without)]
        assert fullest[0].activations - fullest[1].activations == more * 2 * experts


def test_parameters_that_are_no_experts_are_refused(tmp_path: Path, untied: Path) -> None:
    source = sparse_model_dir("qwen3_moe", tmp_path)
    for target, fragment in {
        "gate.weight": "means model.layers.0.mlp.gate.weight, .* which is no parameter of experts; there are experts.d",
        "experts.up_proj": "'experts.up_proj' is no parameter of the model; there are experts.down_proj, experts.gate_",
    }.items():
        with pytest.raises(InputError, match=rf"model\.target_parameters: .*{fragment}"):
            adapted(source, target_parameters=[target])
    with pytest.raises(InputError, match="has none of experts, leave it out"):
        adapted(untied, target_parameters=["gate_up_proj"])


def test_a_gaussian_start_goes_by_the_rank_of_one_expert(tmp_path: Path) -> None:
    source = sparse_model_dir("qwen3_moe", tmp_path)
    model = adapted(source, target_parameters=["experts.gate_up_proj"], rank=4)
    lora.start_adapters(model, seed=1, adapter=None, start="gaussian")
    drawn = model.get_parameter("model.layers.0.mlp.experts.lora_A.default.weight")
    assert drawn.shape == (4 * 4, 32)
    assert drawn.std().item() == pytest.approx(1 / 4, rel=0.1)


ODD = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
ROUTED = {"num_local_experts": 2, "num_experts_per_tok": 1}
NOT_ADAPTED = {
    "llama4_text": (ODD | HEADS | ROUTED | {"head_dim": 8, "intermediate_size_mlp": 32}, "router", "a Llama4Router"),
    "phimoe": (ODD | HEADS | ROUTED, "router", "a PhimoeTopKRouter"),
    "jamba": (
        ODD | HEADS | {"num_experts": 2, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
        "dt_proj",
        "read by what is around it",
    ),
    "falcon_h1": (ODD | HEADS | MAMBA | {"head_dim": 8}, "mamba.out_proj", "read by what is around it"),
    "mamba": (ODD | {"state_size": 4}, "out_proj", "read by what is around it"),
}


@pytest.mark.parametrize("kind", NOT_ADAPTED)
def test_all_linear_skips_what_an_adapter_would_not_reach_and_says_so(kind, tmp_path, caplog):
    sizes, left_out, reason = NOT_ADAPTED[kind]
    source = random_model_dir(AutoConfig.for_model(kind, **sizes), tmp_path / kind)
    with caplog.at_level("INFO", logger="sft"):
        model = adapted(source)
    assert reason in caplog.text
    names = list(lora.adapters(model))
    assert names and not [name for name in names if left_out in name]
    torch.testing.assert_close(logits(model), logits(AutoModelForCausalLM.from_pretrained(source)), rtol=0, atol=1e-5)
    disturb(model)
    prove_export(model, source)
    lora.save_adapter(model, tmp_path / "adapter", write=True)
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(opened), logits(model), rtol=0, atol=1e-5)
    if kind == "mamba":
        with pytest.raises(InputError, match=r"out_proj, which has its weight read by what is around it.*leave it out"):
            adapted(source, targets=["out_proj"])


def test_gpt2_keeps_all_that_lora_freezes(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    source = random_model_dir(config, tmp_path / "gpt2")
    model = adapted(source)
    disturb(model)
    (tmp_path / "run").mkdir()
    write_weights(model, source, tmp_path / "run", write=True)
    before, after = (load_file(each / "model.safetensors") for each in (source, tmp_path / "run"))
    assert before.keys() == after.keys() and "transformer.h.0.attn.c_attn.bias" in after


def test_subclasses_of_linear_get_adapters_where_they_compute_the_same():
    """Falcon has a linear layer of its own; routers of others are subclasses that answer with more than a product."""
    from transformers.models.falcon.modeling_falcon import FalconLinear
    from transformers.models.llama4.modeling_llama4 import Llama4Router
    from transformers.models.phimoe.modeling_phimoe import PhimoeTopKRouter

    assert [_computes_as_linear(kind) for kind in (FalconLinear, Llama4Router, PhimoeTopKRouter)] == [
        True,
        False,
        False,
    ]


def test_peft_finds_every_adapter_where_it_renames_what_it_reads():
    """Its pattern for laguna's old shared_expert also matches shared_experts, and made shared_experts. of it."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "intermediate_size": 48}
    shared = {"shared_expert_intermediate_size": 16, "head_dim": 16}
    config = AutoConfig.for_model("laguna", vocab_size=64, **sizes, **experts, **shared)
    attention = attention_on_cpu(config, packed=False)
    model = build_skeleton(config, attention=attention, dtype=torch.float32, trust_remote_code=False)
    lora.add_adapters(model, **ADAPTERS)
    keys = {key: torch.empty(0, device="meta") for key in lora._adapter_tensors(model)}
    assert [key for key in keys if ".shared_expert." in key] and not [key for key in keys if ".shared_experts." in key]
    read = convert_peft_adapter_state_dict_for_transformers(model, model.peft_config["default"], keys)
    ours = {f"base_model.model.{name}" for name, weight in model.named_parameters() if weight.requires_grad}
    assert {key.replace(".weight", ".default.weight") if ".default." not in key else key for key in read} == ours
