"""Names of TRL, axolotl, LLaMA-Factory and open-r1: an alias, a translation, or a sentence; and guesses at typos."""

from __future__ import annotations

from dataclasses import fields
from functools import reduce
from pathlib import Path

import pytest
from transformers import TrainingArguments

from sft.config import ConfigError, SftConfig, load_config
from sft.config.expectations import expectations
from sft.config.foreign import ALIASES, FOREIGN, LIMITS_OF_A_TURN, PER_DEVICE, SHARD_GROUP
from sft.config.names import ACCUMULATION, foreign
from sft.config.secrets import is_secret

KEYS = {
    trainer: keys
    for trainer, _, keys in (
        section.partition("\n")
        for section in (Path(__file__).parent / "keys_of_trainers.txt").read_text().removeprefix("# ").split("\n# ")
    )
}
"""The keys of the newest releases of other trainers, read off their packages."""


def load(*overrides: str) -> tuple[SftConfig, list[str]]:
    warnings: list[str] = []
    return load_config(overrides, warn=warnings.append), warnings


def value(config: SftConfig, key: str) -> object:
    return reduce(getattr, key.split("."), config)


def problem_of(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides, warn=lambda text: None)
    (problem,) = caught.value.problems
    return problem


def test_every_argument_of_transformers_trainer_means_something() -> None:
    known = {*ALIASES, *ACCUMULATION, *PER_DEVICE, "optim", "hub_token"}  # a group; a secret
    assert not [
        field.name for field in fields(TrainingArguments) if field.name not in known and not foreign(field.name)
    ]


@pytest.mark.parametrize("trainer", KEYS)
def test_every_key_of_the_other_trainers_means_something(trainer: str, here: Path) -> None:
    """Names without a value of their own here are refused with a sentence that says what to do."""
    composed = {*ALIASES, *ACCUMULATION, *PER_DEVICE, *LIMITS_OF_A_TURN, SHARD_GROUP, "optim", *expectations()}
    names = KEYS[trainer].split()
    assert len(names) > 40
    unread = [name for name in names if name not in composed and not foreign(name)]
    assert not [name for name in unread if not is_secret(name) and name not in DERIVED]


DERIVED = {"cache_dir", "compute_dtype"}
"""Of LLaMA-Factory: where models are downloaded to, and what its program sets. A guess answers: data.cache_dir?"""


def test_data_sets_as_axolotl_lists_them(here: Path, runnable: list[str]) -> None:
    config, _ = load(runnable[0], "datasets=[{path: rows.jsonl, type: alpaca}]", "test_datasets=[{path: rows.jsonl}]")
    assert config.data.train_files == config.data.val_files == ("rows.jsonl",)


def test_the_tables_agree_with_the_schema_and_with_each_other() -> None:
    known = set(expectations())
    assert not set(ALIASES) & set(FOREIGN)
    assert not set(PER_DEVICE) & (set(ALIASES) | set(FOREIGN))
    assert len(FOREIGN) > 500
    for name, entry in FOREIGN.items():
        for given in ("something", "epoch", True, False, 3, 0.5, None, [], {}):
            reading = entry.reads(given)
            if reading is None or not (reading.sets or reading.fills):
                assert entry.reason, (name, given)
            else:
                assert {*reading.sets, *reading.fills} <= known, name


@pytest.mark.parametrize(
    ("overrides", "key", "expected"),
    [
        (["output_dir=out"], "trainer.default_local_dir", "out"),
        (["num_train_epochs=2"], "trainer.total_epochs", 2),
        (["max_grad_norm=0.3"], "optim.clip_grad", 0.3),
        (["report_to=[wandb,tensorboard]"], "trainer.logger", ("wandb", "tensorboard")),
        (["report_to=none"], "trainer.logger", ("console",)),
        (["use_wandb=true"], "trainer.logger", ("console", "wandb")),
        (["lr_scheduler_type=cosine_with_min_lr"], "optim.lr_scheduler", "cosine"),
        (["save_strategy=epoch"], "trainer.save_freq", "epoch"),
        (["save_strategy=no"], "trainer.save_freq", -1),
        (["save_strategy=steps", "save_steps=5"], "trainer.save_freq", 5),
        (["save_steps=0.25"], "trainer.save_freq", 0.25),
        (["eval_strategy=no"], "trainer.test_freq", 0),
        (["evals_per_epoch=1"], "trainer.test_freq", -1),
        (["warmup_steps=12"], "optim.warmup_steps", 12),
        (["warmup_steps=0.2"], "optim.warmup_steps_ratio", 0.2),
        (["packing=true"], "use_remove_padding", True),
        (["sample_packing=false"], "use_remove_padding", False),
        (["train_on_inputs=true"], "data.train_on", "all"),
        (["mask_history=true"], "data.train_on", "last_assistant"),
        (["torch_dtype=bfloat16"], "model.fsdp_config.compute_dtype", "bf16"),
        (["bf16=false"], "model.fsdp_config.compute_dtype", "fp32"),
        (["flash_attn=fa2"], "model.attn_implementation", "flash_attention_2"),
        (["disable_gradient_checkpointing=false"], "model.enable_gradient_checkpointing", True),
        (["resume_from_checkpoint=true"], "trainer.resume_mode", "auto"),
        (["overwrite_output_dir=true"], "trainer.resume_mode", "disable"),
        (["cutoff_len=99"], "data.max_length", 99),
        (["adapter=lora", "lora_r=8"], "model.lora_rank", 8),
        (["adapter=qlora", "lora_r=8"], "model.base_dtype", "nf4"),
        (["load_in_4bit=true", "lora_r=8", "bnb_4bit_quant_type=nf4"], "model.base_dtype", "nf4"),
        (["quantization_bit=4", "lora_r=8"], "model.base_dtype", "nf4"),
        (["optimizer=adamw_bnb_8bit"], "optim.name", "adamw_8bit"),
        (["optimizer=lion"], "optim.name", "lion"),
        (["neftune_noise_alpha=5"], "model.neftune_alpha", 5),
        (["activation_offloading=true"], "model.activation_offload", True),
        (["fsdp_config={transformer_layer_cls_to_wrap: X}"], "model.strategy", "fsdp2"),
        (["deepspeed=null", "fp16=false", "push_to_hub=false", "optim=adamw_torch"], "optim.lr", 1e-5),
        (["model.revision=null"], "model.revision", None),
        (["label_smoothing_factor=0.1"], "optim.label_smoothing", 0.1),
        (["loss_type=dft"], "optim.loss", "dft"),
        (["loss_type=nll"], "optim.loss", "ce"),
        (["use_eaft=true"], "optim.loss", "eaft"),
        (["val_set_size=0.05", "data.val_files=null"], "data.val_fraction", 0.05),
        (["val_size=3", "data.val_files=null"], "data.val_fraction", 3),
        (["val_set_size=0"], "data.val_fraction", 0),
        (["truncation_mode=keep_start"], "data.truncation", "right"),
        (["data.enable_thinking_default=false"], "data.apply_chat_template_kwargs", {"enable_thinking": False}),
        (["model.lora.rank=8"], "model.lora_rank", 8),
    ],
)
def test_what_a_name_means(overrides: list[str], key: str, expected: object, runnable: list[str]) -> None:
    config, warnings = load(*runnable, *overrides)
    assert value(config, key) == expected
    assert warnings or overrides[0].startswith("model.")


def test_a_step_of_other_trainers_is_micro_batch_times_accumulation_times_ranks(
    runnable: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    config, warnings = load(*runnable, "per_device_train_batch_size=4", "gradient_accumulation_steps=8")
    assert (config.data.train_batch_size, config.data.micro_batch_size_per_gpu) == (64, 4)
    assert any("data.train_batch_size=64: micro-batch x accumulation 8 x dp=2" in text for text in warnings)
    assert load(*runnable, "micro_batch_size=4")[0].data.train_batch_size == 8
    assert load(*runnable, "micro_batch_size=4", "batch_size=16")[0].data.train_batch_size == 16


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("save_strategy=sometimes", ['save_strategy="sometimes" is not possible here', "trainer.save_freq says when"]),
        ("fp16=true", ["fp16=true is not possible here", "bf16 or fp32"]),
        ("rl=dpo", ['rl="dpo" is not possible here', "docs/rl.md"]),
        ("label_smoothing_factor=7", ["optim.label_smoothing=7 must be"]),
        ("loss_type=mse", ['loss_type="mse" is not possible here', "optim.loss=dft", "optim.label_smoothing"]),
        ("dataset_mixture={datasets: [a]}", ["data.mixture mixes files"]),
        ("datasets=[{path: a.jsonl, field_messages: x}]", ["datasets=", "data.mixture takes entries"]),
        ("optimizer=came_pytorch", ['optimizer="came_pytorch"', "optim.name"]),
        ("optim=adamw_8bit", ["optim=adamw_8bit does not exist", "adamw"]),
        ("model.revision=v1", ['model.revision="v1" would be ignored', "is a directory"]),
        # guesses
        ("optim.learning_rate=1", ["optim.learning_rate is not a key", "did you mean optim.lr?"]),
        ("trainer.output_dir=x", ["did you mean trainer.default_local_dir?"]),
        ("trainer.save_strategy=epoch", ["is not a key; of save_strategy: trainer.save_freq says when"]),
        ("trainer.profile=true", ["of profile: trainer.profile_steps"]),
        ("trainer.zzz=1", ["trainer.zzz is not a key; --help lists all"]),
        ("optim.learn=1", ["optim.learn is not a key; --help lists all"]),
        # secrets
        ("hub_token=hf_abcdefgh", ["hub_token looks like a secret"]),
        ("wandb_api_key=x", ["wandb_api_key looks like a secret"]),
        ("data.max_token=100", ["data.max_token is not a key"]),
        ("data.sep_token='<sep>'", ["data.sep_token is not a key"]),
    ],
)
def test_what_cannot_be_read_says_why(override: str, fragments: list[str], runnable: list[str]) -> None:
    problem = problem_of(*runnable, override)
    for fragment in fragments:
        assert fragment in problem
    assert "hf_abcdefgh" not in problem
