"""Defaults, presets and what the door does to good values."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from sft.config import SftConfig, SourceConfig, config_to_yaml, load_config
from sft.config.compose import CONFIG_DIR, compose
from sft.config.door import changed_keys, flatten
from sft.config.expectations import expectations
from sft.config.reference import reference
from sft.config.schema import OptimConfig

DOCUMENTED = """
data.train_batch_size: 256
data.micro_batch_size_per_gpu: 4
data.max_tokens_per_gpu: null
data.train_max_samples: -1
data.val_max_samples: -1
data.prompt_key: question
data.response_key: answer
data.prompt_dict_keys: [question]
data.response_dict_keys: [answer]
data.multiturn.enable: false
data.multiturn.messages_key: messages
data.multiturn.tools_key: tools
data.multiturn.enable_thinking_key: enable_thinking
data.max_length: 1024
data.truncation: error
data.balance_dp_token: false
data.chat_template: null
data.custom_cls.path: null
data.custom_cls.name: null
data.apply_chat_template_kwargs: {}
model.strategy: fsdp2
model.fsdp_config.wrap_policy.min_num_params: 0
model.fsdp_config.cpu_offload: false
model.fsdp_config.offload_params: false
model.fsdp_config.reshard_after_forward: true
model.fsdp_config.reduce_gradients: auto
model.fsdp_config.dp_replicate: 1
model.fsdp_config.model_dtype: fp32
model.fsdp_config.compute_dtype: bf16
model.external_lib: null
model.enable_gradient_checkpointing: false
model.gradient_checkpointing_kind: full
model.compile: false
model.trust_remote_code: false
model.lora_rank: 0
model.lora_alpha: 16
model.target_modules: all-linear
model.lora_dropout: 0.0
model.use_rslora: false
model.use_dora: false
model.modules_to_save: null
model.lora_adapter_path: null
model.use_liger: false
model.loss_kernel: auto
optim.lr: 0.00001
optim.betas: [0.9, 0.95]
optim.weight_decay: 0.01
optim.warmup_steps_ratio: 0.1
optim.clip_grad: 1.0
optim.lr_scheduler: cosine
optim.min_lr_ratio: 0.0
data.train_files: null
data.val_files: null
trainer.default_local_dir: null
trainer.project_name: null
trainer.experiment_name: null
trainer.total_epochs: 4
trainer.total_training_steps: null
trainer.logger: [console]
trainer.seed: 1
trainer.save_freq: -1
trainer.test_freq: -1
trainer.log_freq: 1
trainer.max_ckpt_to_keep: null
trainer.resume_mode: auto
trainer.resume_from_path: null
trainer.init_from_checkpoint: null
ulysses_sequence_parallel_size: 1
use_remove_padding: false
"""
DOCUMENTED_PRESETS = """
quickstart:
  data.train_batch_size: 128
  optim.lr: 0.003
  trainer.total_training_steps: 400
  use_remove_padding: true
gsm8k_qwen:
  data.prompt_key: extra_info
  data.response_key: extra_info
  data.prompt_dict_keys: [question]
  data.response_dict_keys: [answer]
  model.partial_pretrain: Qwen/Qwen2.5-0.5B-Instruct
  model.lora_rank: 0
lora:
  data.prompt_key: extra_info
  model.partial_pretrain: Qwen/Qwen2.5-0.5B-Instruct
  model.lora_rank: 32
  model.lora_alpha: 16
  model.target_modules: all-linear
  optim.lr: 0.0001
multiturn:
  data.multiturn.enable: true
  data.multiturn.messages_key: messages
open_r1_distill:
  data.train_files: open-r1/Mixture-of-Thoughts/all:train
  data.train_batch_size: 128
  data.micro_batch_size_per_gpu: 2
  data.max_length: 32768
  model.partial_pretrain: open-r1/Qwen2.5-Math-7B-RoPE-300k
  model.enable_gradient_checkpointing: true
  model.fsdp_config.compute_dtype: bf16
  optim.lr: 0.00004
  optim.clip_grad: 0.2
  optim.lr_scheduler: cosine
  optim.warmup_steps_ratio: 0.03
  optim.min_lr_ratio: 0.1
  trainer.total_epochs: 5
  trainer.seed: 42
modern_llm_local:
  data.train_files: tatsu-lab/alpaca
  data.train_batch_size: 32
  data.micro_batch_size_per_gpu: 2
  data.max_length: 1024
  data.chat_template: instruction_response
  optim.lr: 0.00001
  optim.lr_scheduler: cosine
  optim.warmup_steps_ratio: 0.0
  optim.weight_decay: 0.01
  trainer.total_training_steps: 5000
  trainer.log_freq: 100
  trainer.save_freq: 2000
  trainer.seed: 42
modern_llm_gpu:
  data.mixture: [tatsu-lab/alpaca, databricks/databricks-dolly-15k, Open-Orca/OpenOrca:50000]
  data.train_batch_size: 64
  data.micro_batch_size_per_gpu: 8
  data.max_length: 1024
  optim.lr: 0.00001
  optim.warmup_steps_ratio: 0.0
  trainer.total_training_steps: 10000
  trainer.seed: 42
"""
PRESETS = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))


def value_at(config: SftConfig, key: str) -> object:
    value: object = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def test_the_documented_defaults() -> None:
    composed = flatten(compose([]))
    for key, documented in yaml.safe_load(DOCUMENTED).items():
        assert composed[key] == documented, key


def test_yaml_and_schema_hold_the_same_keys_in_the_same_sections() -> None:
    assert set(flatten(compose([]))) == set(expectations())


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_passes_the_door(preset: str, runnable: list[str]) -> None:
    config = load_config([f"+experiment={preset}", "data.mixture=null", *runnable])
    assert config.data.train_files == ("rows.jsonl",)


def test_presets_never_share_a_run_directory(runnable: list[str]) -> None:
    rows = [text for text in runnable if "_files=" in text]
    configs = [
        load_config([f"+experiment={preset}", "data.mixture=null", "model.partial_pretrain=./model", *rows])
        for preset in PRESETS
    ]
    directories = [config.trainer.default_local_dir for config in configs]
    assert len(set(directories)) == len(PRESETS), directories


@pytest.mark.parametrize("preset", yaml.safe_load(DOCUMENTED_PRESETS))
def test_the_documented_values_of_presets(preset: str) -> None:
    composed = flatten(compose([f"+experiment={preset}"]))
    for key, documented in yaml.safe_load(DOCUMENTED_PRESETS)[preset].items():
        assert composed[key] == documented, key


@pytest.mark.parametrize(
    ("preset", "ranks"), [("open_r1_distill", 8), ("modern_llm_local", 1), ("modern_llm_gpu", 1), ("modern_llm_gpu", 8)]
)
def test_presets_with_data_of_the_hub_run_as_they_are(
    preset: str, ranks: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    assert load_config([f"+experiment={preset}"], warn=pytest.fail).trainer.seed == 42


def test_modern_llms_schedule_at_known_steps() -> None:
    from sft.train.optim import lr_at

    settings = OptimConfig(**compose(["+experiment=modern_llm_local"])["optim"])
    rates = [lr_at(step, 5000, settings) for step in (1000, 2000, 3000, 4000, 5000)]
    assert rates == pytest.approx([9.045e-06, 6.545e-06, 3.455e-06, 9.549e-07, 0], rel=1e-3, abs=1e-12)


def test_presets_say_what_they_promise(runnable: list[str]) -> None:
    assert set(PRESETS) == set(yaml.safe_load(DOCUMENTED_PRESETS))
    assert load_config(["+experiment=multiturn", *runnable]).data.multiturn.enable
    gsm8k = load_config(["+experiment=gsm8k_qwen", *runnable])
    assert (gsm8k.data.prompt_key, gsm8k.data.prompt_dict_keys) == ("extra_info", ("question",))
    quickstart = load_config(["+experiment=quickstart", *runnable, "optim.lr=0.5"])
    assert quickstart.use_remove_padding
    assert quickstart.optim.lr == 0.5  # the command line beats the preset


def test_a_key_that_exists_may_be_added(runnable: list[str]) -> None:
    config = load_config([*runnable, "+data.response_dict_keys=['answer']", "++optim.lr=1e-4"])
    assert config.data.response_dict_keys == ("answer",)
    assert config.optim.lr == 1e-4


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optim.lr=1", "optim.lr", 1.0),
        ("optim.betas=[0,0.9]", "optim.betas", (0.0, 0.9)),
        ("trainer.logger=console", "trainer.logger", ("console",)),
        ('trainer.logger=["console","wandb"]', "trainer.logger", ("console", "wandb")),
        ("data.val_files=null", "data.val_files", None),
        ("data.train_files=[rows.jsonl,'*.jsonl','.']", "data.train_files", ("rows.jsonl", "*.jsonl", ".")),
        ("data.prompt_dict_keys=null", "data.prompt_dict_keys", ()),
        ("data.response_dict_keys=answer", "data.response_dict_keys", ("answer",)),
        ("model.target_modules='.*attn[.][qv]_proj'", "model.target_modules", ".*attn[.][qv]_proj"),
        ("model.target_modules=[q_proj,v_proj]", "model.target_modules", ("q_proj", "v_proj")),
        ("model.partial_pretrain=Qwen/Qwen2.5-0.5B", "model.partial_pretrain", "Qwen/Qwen2.5-0.5B"),
        ("model.external_lib=json", "model.external_lib", "json"),
        ("trainer.experiment_name=7", "trainer.experiment_name", "7"),
        ("data.apply_chat_template_kwargs={think: false}", "data.apply_chat_template_kwargs", {"think": False}),
        ("model.fsdp_config={compute_dtype: fp32}", "model.fsdp_config.compute_dtype", "fp32"),
    ],
)  # fmt: skip
def test_good_values_arrive(override: str, key: str, value: object, runnable: list[str]) -> None:
    assert value_at(load_config([*runnable, override]), key) == value


def test_sources_of_a_mixture(here: Path, runnable: list[str]) -> None:
    (here / "odd:5").touch()
    runnable = [text for text in runnable if not text.startswith("data.train_files=")]
    sources = "[rows.jsonl,rows.jsonl:500,'odd:5',org/name:train:7,{path: rows.jsonl, format: text, fraction: 0.15}]"
    config = load_config([*runnable, f"data.mixture={sources}"])
    assert config.data.mixture == (
        SourceConfig(path="rows.jsonl"),
        SourceConfig(path="rows.jsonl", rows=500),
        SourceConfig(path="odd:5"),
        SourceConfig(path="org/name:train", rows=7),
        SourceConfig(path="rows.jsonl", format="text", fraction=0.15),
    )
    assert config.data.train_files is None  # its default gives way
    saved = yaml.safe_load(config_to_yaml(config))["data"]["mixture"]
    assert tuple(SourceConfig(**source) for source in saved) == config.data.mixture
    assert load_config([*runnable, "data.mixture=rows.jsonl:3"]).data.mixture == (SourceConfig("rows.jsonl", rows=3),)


def test_home_is_expanded_everywhere_a_path_may_stand(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    config = load_config(
        [
            "model.partial_pretrain=~/model",
            "data.train_files=[~/rows.jsonl]",
            "data.val_files=~/*.jsonl",
            "trainer.default_local_dir=~/run",
        ]
    )
    assert config.model.partial_pretrain == f"{here}/model"
    assert config.data.train_files == (f"{here}/rows.jsonl",)
    assert config.data.val_files == (f"{here}/*.jsonl",)
    assert config.data.cache_dir == f"{here}/.cache/sft"
    assert config.trainer.default_local_dir == f"{here}/run"


def test_paths_and_names_in_other_scripts_need_no_quotes(here: Path, runnable: list[str]) -> None:
    for name in ("行 1.jsonl", "été.jsonl"):
        (here / name).write_text('{"question": "a", "answer": "b"}\n')
    given = ["data.train_files=[été.jsonl, rows.jsonl,行 1.jsonl]", "data.val_files=行 1.jsonl"]
    config = load_config([*runnable, *given, "trainer.experiment_name=实验", 'trainer.project_name="é"'])
    assert config.data.train_files == ("été.jsonl", "rows.jsonl", "行 1.jsonl")
    assert config.data.val_files == ("行 1.jsonl",)
    assert (config.trainer.experiment_name, config.trainer.project_name) == ("实验", "é")


def test_the_configuration_is_frozen(runnable: list[str]) -> None:
    config = load_config(runnable)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.data.train_batch_size = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_saved_configuration_reads_back_and_hides_secrets(runnable: list[str]) -> None:
    secrets = "data.apply_chat_template_kwargs={hub_token: hf_abc, nested: {API_KEY: k}, style: plain}"
    saved = yaml.safe_load(config_to_yaml(load_config([*runnable, secrets])))
    assert saved["data"]["apply_chat_template_kwargs"] == {
        "hub_token": "***",
        "nested": {"API_KEY": "***"},
        "style": "plain",
    }
    assert saved["data"]["balance_dp_token"] is False  # no secret, though the name says token
    assert saved["optim"]["betas"] == [0.9, 0.95]
    assert set(flatten(saved)) == set(expectations())


def test_the_keys_that_are_not_at_their_default(runnable: list[str]) -> None:
    config = load_config([*runnable, "optim.lr=0.5", "optim.betas=[0.9,0.95]", "data.val_files=null"])
    own = {"trainer.default_local_dir", "trainer.project_name", "trainer.experiment_name"}
    assert changed_keys(config) == {"optim.lr", "data.train_files", "model.partial_pretrain"} | own


def test_loading_works_inside_a_program_that_uses_hydra(runnable: list[str]) -> None:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    with hydra.initialize_config_dir(str(Path.cwd()), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        load_config(runnable)
        assert GlobalHydra.instance().hydra is outer


def test_the_reference_page_is_current() -> None:
    page = Path(__file__).parents[3] / "docs" / "config.md"
    assert page.read_text(encoding="utf-8") == reference(), "run: python -m sft.config > docs/config.md"


def test_every_key_has_a_meaning_on_the_reference_page() -> None:
    rows = {row.split("`")[1]: row for row in reference().splitlines() if row.startswith("| `")}
    for key in expectations():
        assert not rows[key].endswith("|  |"), f"{key} has no comment in conf/"
