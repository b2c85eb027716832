"""Aliases, retired keys and warnings."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import pytest

from sft.config import ConfigError, SftConfig, load_config
from sft.config.compose import compose
from sft.config.door import checked
from sft.config.expectations import expectations
from sft.config.foreign import ALIASES, FOREIGN
from sft.config.names import Names
from sft.config.problems import Report

GOOD_VALUES: dict[str, tuple[object, object]] = {
    "data.chat_template": ("chatml", "alpaca"),
    "data.multiturn.enable_thinking_key": ("think", "thought"),
    "data.multiturn.tools_key": ("functions", "actions"),
    "model.activation_offload": (True, False),
    "model.fsdp_config.compute_dtype": ("fp32", "bf16"),
    "model.fsdp_config.model_dtype": ("bf16", "fp32"),
    "model.fsdp_config.reshard_after_forward": (False, True),
    "model.fsdp_config.wrap_policy.min_num_params": (7, 8),
    "model.strategy": ("fsdp2", "fsdp"),
    "trainer.async_save": (False, True),
    "use_remove_padding": (True, False),
    "data.micro_batch_size_per_gpu": (8, 2),
    "data.max_length": (77, 78),
    "data.max_tokens_per_gpu": (2048, 4096),
    "data.train_batch_size": (64, 32),
    "data.train_files": (("other.jsonl",), ("rows.jsonl",)),
    "model.partial_pretrain": ("org/a", "org/b"),
    "model.enable_gradient_checkpointing": (True, False),
    "model.lora_rank": (8, 16),
    "model.lora_alpha": (8, 32),
    "model.lora_dropout": (0.5, 0.25),
    "model.lora_adapter_path": (".", ".."),
    "model.target_modules": ("q_proj", "k_proj"),
    "optim.lr": (0.5, 0.25),
    "optim.lr_scheduler": ("wsd", "linear"),
    "optim.warmup_steps_ratio": (0.5, 0.25),
    "optim.weight_decay": (0.5, 0.25),
    "trainer.default_local_dir": ("a", "b"),
    "trainer.early_stop_patience": (7, 8),
    "trainer.save_freq": (7, 8),
    "trainer.test_freq": (7, 8),
    "trainer.total_epochs": (7, 8),
    "trainer.total_training_steps": (7, 8),
    "trainer.seed": (7, 8),
}


def load(*overrides: str) -> tuple[SftConfig, list[str]]:
    warnings: list[str] = []
    return load_config(overrides, warn=warnings.append), warnings


def problems_of(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    return caught.value.problems


def value_at(config: SftConfig, key: str) -> object:
    return reduce(getattr, key.split("."), config)


def typed(value: object) -> str:
    return value[0] if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize(
    "alias", {ALIASES[alias]: alias for alias in ALIASES if ALIASES[alias] in GOOD_VALUES}.values()
)
def test_an_alias_lands_on_its_key_with_one_warning(alias: str, here: Path, runnable: list[str]) -> None:
    (here / "other.jsonl").touch()
    key = ALIASES[alias]
    value, other = GOOD_VALUES[key]
    needed = ["model.lora_rank=8"] if key in ("model.lora_dropout", "model.lora_adapter_path") else []
    without = [override for override in runnable if not override.startswith(f"{key}=")] + needed
    config, warnings = load(*without, f"{alias}={typed(value)}")
    assert value_at(config, key) == value
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{alias}=")
    assert f"is read as {key}=" in warnings[0]

    problems = problems_of(*without, f"{alias}={typed(value)}", f"{key}={typed(other)}")
    assert len(problems) == 1
    assert f"{alias}=" in problems[0]
    assert f"{key}=" in problems[0]
    assert "disagree" in problems[0]

    load(*without, f"{alias}={typed(value)}", f"{key}={typed(value)}")  # saying it twice is no contradiction


def test_names_of_other_trainers_land_on_their_keys() -> None:
    values: dict[str, object] = {alias: f"value of {alias}" for alias in ALIASES}
    for alias, key in ALIASES.items():
        warnings: list[str] = []
        one = {alias: values[alias]}
        names = Names(one, {alias}, dict, Report(warnings.append))
        names.settle()
        names.divide(1, 1)
        assert one == {key: values[alias]}
        assert warnings == [f'{alias}="value of {alias}" is read as {key}="value of {alias}".']


def test_two_aliases_of_one_key_that_disagree() -> None:
    problems = problems_of("max_steps=5", "sft_max_steps=6")
    assert any("sft_max_steps=6 and max_steps=5 disagree" in problem for problem in problems)


def test_an_explicit_default_still_contradicts(runnable: list[str]) -> None:
    assert "disagree" in problems_of(*runnable, "data.micro_batch_size=8", "data.micro_batch_size_per_gpu=4")[0]


def test_an_alias_on_the_command_line_beats_a_preset(runnable: list[str]) -> None:
    config, _ = load("+experiment=quickstart", *runnable, "max_steps=5", "data.micro_batch_size=32")
    assert config.trainer.total_training_steps == 5
    assert config.data.micro_batch_size_per_gpu == 32


def test_an_alias_in_yaml_beats_a_default_but_not_the_command_line(runnable: list[str]) -> None:
    values = compose(runnable) | {"epochs": 9}
    ignored: list[str] = []
    assert checked(values, runnable, ignored.append).trainer.total_epochs == 9

    overrides = [*runnable, "trainer.total_epochs=2"]
    assert checked(compose(overrides) | {"epochs": 9}, overrides, ignored.append).trainer.total_epochs == 2


def test_an_alias_in_yaml_contradicts_a_key_in_yaml(runnable: list[str]) -> None:
    values = compose([*runnable, "trainer.total_epochs=2"]) | {"epochs": 9}
    with pytest.raises(ConfigError, match=r"epochs=9 and trainer\.total_epochs=2 disagree"):
        checked(values, runnable, print)


@pytest.mark.parametrize("name", ["grad_accum", "gradient_accumulation_steps"])
def test_accumulation_steps_become_a_micro_batch(
    name: str, runnable: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    config, warnings = load(*runnable, f"{name}=4", "batch_size=64")
    assert config.data.micro_batch_size_per_gpu == 8
    told = "data.micro_batch_size_per_gpu=8; a step stays data.train_batch_size=64 samples."
    assert f"{name}=4 is read as {told}" in warnings
    assert "disagree" in problems_of(*runnable, f"{name}=4", "batch_size=64", "data.micro_batch_size_per_gpu=4")[0]


@pytest.mark.parametrize(
    "override",
    [
        "trainer.default_hdfs_dir=null",
        "trainer.nnodes=1",
        "trainer.n_gpus_per_node=8",
        "trainer.device=cuda",
        "trainer.checkpoint.save_contents=[model,optimizer,extra]",
        "data.use_shm=false",
        "data.pad_mode=right",
        "+model.use_shm=False",
        "engine.use_orig_params=true",
        "data.ignore_input_ids_mismatch=true",
        "model.fused_kernel_options={impl_backend: triton}",
        "optim.num_cycles=0.5",
        "optim.lr_warmup_steps=-1",
        "optim.override_optimizer_config=null",
    ],
)
def test_a_foreign_key_passes_with_a_warning_that_says_why(override: str, runnable: list[str]) -> None:
    _, warnings = load(*runnable, override)
    assert len(warnings) == 1
    assert "has no effect" in warnings[0]


@pytest.mark.parametrize(
    ("name", "betas", "warned"),
    [
        ("adafactor", "[0.8,0.95]", "adafactor keeps no mean of gradients"),
        ("sgd", "[0.9,0.8]", "the second of optim.betas, 0.8, has no effect"),
        ("sgd", "[0.8,0.95]", None),
        ("adamw", "[0.8,0.8]", None),
    ],
)
def test_betas_that_an_optimizer_does_not_have_are_said(runnable: list[str], name, betas, warned) -> None:
    _, warnings = load(*runnable, f"optim.name={name}", f"optim.betas={betas}")
    assert [warned in line for line in warnings] == [True] * bool(warned)


def test_a_quiet_configuration_warns_of_nothing(runnable: list[str]) -> None:
    assert load(*runnable)[1] == []


def test_notes(runnable: list[str]) -> None:
    assert load(*runnable, "model.strategy=fsdp")[1] == ["model.strategy=fsdp: the same as fsdp2."]
    assert "same as cpu_offload" in load(*runnable, "model.fsdp_config.offload_params=true")[1][0]
    assert load(*runnable, "model.fsdp_config.offload_params=true", "model.fsdp_config.cpu_offload=true")[1] == []
    assert "no effect" in load(*runnable, "model.gradient_checkpointing_kind=selective")[1][0]
    assert "no effect" in load(*runnable, "data.val_files=null", "trainer.test_freq=10")[1][0]
    assert "no effect" in load(*runnable, "data.balance_dp_token=true", "data.max_tokens_per_gpu=2048")[1][0]


def test_the_tables_do_not_overlap() -> None:
    known = set(expectations())
    assert set(ALIASES.values()) <= known
    assert not known & (set(ALIASES) | set(FOREIGN))
    assert not set(ALIASES) & set(FOREIGN)
    assert set(GOOD_VALUES) <= set(ALIASES.values())
