"""Commands of verl's trainers: what each key comes to, and that whole commands compose."""

from __future__ import annotations

import json
import re
from functools import reduce
from pathlib import Path

import pytest

from sft.config import ConfigError, SftConfig, load_config

TODAYS = ["engine=fsdp", "optim=fsdp", "model=hf_model"]


@pytest.fixture
def rows(runnable: list[str]) -> list[str]:
    return [text for text in runnable if not text.startswith("model.")]


def load(*overrides: str, warnings: list[str] | None = None) -> SftConfig:
    return load_config(overrides, warn=(warnings if warnings is not None else []).append)


def values(config: SftConfig, *keys: str) -> list[object]:
    return [reduce(getattr, key.split("."), config) for key in keys]


def test_a_whole_command_of_todays_trainer(rows: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    config = load(
        *rows, *TODAYS, "model.path=./model", "model.use_remove_padding=True", "data.messages_key=chat",
        "data.use_dynamic_bsz=True", "data.max_token_len_per_gpu=4096", "data.pad_mode=no_padding",
        "optim.lr_warmup_steps=20", "optim.warmup_style=constant", "engine.ulysses_sequence_parallel_size=2",
        "engine.fsdp_size=4", "engine.strategy=fsdp2", "engine.param_offload=True", "engine.optimizer_offload=False",
        "engine.model_dtype=bfloat16", "engine.dtype=float32", "trainer.test_freq=after_each_epoch",
        "trainer.logger=[console,file]", "checkpoint.save_contents=[model,optimizer,extra]",
        "optim.total_training_steps=-1", "trainer.device=cuda", "trainer.default_hdfs_dir=null",
    )  # fmt: skip
    assert values(
        config, "model.partial_pretrain", "use_remove_padding", "data.multiturn.messages_key", "data.multiturn.enable",
        "data.max_tokens_per_gpu", "optim.warmup_steps", "optim.lr_scheduler", "ulysses_sequence_parallel_size",
        "model.fsdp_config.dp_replicate", "model.strategy", "model.fsdp_config.cpu_offload",
        "model.fsdp_config.model_dtype", "model.fsdp_config.compute_dtype", "trainer.test_freq", "trainer.logger",
        "trainer.total_training_steps",
    ) == [
        "./model", True, "chat", True, 4096, 20, "constant", 2, 2, "fsdp2", True, "bf16", "fp32", -1,
        ("console", "jsonl"), None,
    ]  # fmt: skip


def test_defaults_that_differ_are_said_in_one_line(runnable: list[str]) -> None:
    warnings: list[str] = []
    load(*runnable, *TODAYS, "optim.warmup_style=cosine", "optim.betas=[0.9,0.95]", warnings=warnings)
    (line,) = [text for text in warnings if text.startswith("Defaults that are others")]
    assert "optim.lr=1e-05 (there 0.001)" in line
    assert "model.enable_gradient_checkpointing=false (there true)" in line
    assert "lr_scheduler" not in line and "betas" not in line  # the command sets them

    load(*runnable, warnings=(quiet := []))
    assert quiet == []


@pytest.mark.parametrize(
    ("world_size", "shard_group", "sp", "copies"),
    [(8, 8, 1, 1), (8, -1, 1, 1), (8, 16, 1, 1), (8, 1, 2, 4), (8, 2, 1, 4)],
)
def test_the_shard_group_becomes_copies(
    world_size: int, shard_group: int, sp: int, copies: int, runnable: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    config = load(*runnable, f"engine.fsdp_size={shard_group}", f"engine.ulysses_sequence_parallel_size={sp}")
    assert config.model.fsdp_config.dp_replicate == copies
    assert config.use_remove_padding == (sp > 1)  # which splits rows of samples that lie end to end


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["data.max_prompt_length=100", "data.max_response_length=200"], "data.max_length", 300),
        (["data.use_dynamic_bsz=true"], "data.max_tokens_per_gpu", 8192),
        (["data.use_dynamic_bsz=false", "data.max_token_len_per_gpu=4096"], "data.max_tokens_per_gpu", None),
        (["data.max_tokens_per_gpu=-1"], "data.max_tokens_per_gpu", None),
        (["optim.lr_warmup_steps=0"], "optim.warmup_steps", None),
        (["optim.total_training_steps=7"], "trainer.total_training_steps", 7),
        (["trainer.total_training_steps=-1"], "trainer.total_training_steps", None),
        (["max_steps=-1"], "trainer.total_training_steps", None),
        (["trainer.logger=[console,tracking]"], "trainer.logger", ("console", "wandb")),
        (["trainer.max_ckpt_to_keep=-1"], "trainer.max_ckpt_to_keep", None),
        (["trainer.resume_path=null"], "trainer.resume_mode", "auto"),
        (["trainer.resume_path=model"], "trainer.resume_mode", "resume_path"),
        (["trainer.save_freq=epoch"], "trainer.save_freq", "epoch"),
        (["trainer.save_freq=0.1"], "trainer.save_freq", 0.1),
        (["data.messages_key=chat", "data.multiturn.enable=false"], "data.multiturn.enable", False),
    ],
)
def test_single_keys(overrides: list[str], key: str, value: object, runnable: list[str]) -> None:
    assert values(load(*runnable, *overrides), key) == [value]


def test_another_name_and_the_key_itself_may_not_disagree(runnable: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"engine\.ulysses_sequence_parallel_size=1 and ulysses_sequence.*disagree"):
        load(*runnable, "engine.ulysses_sequence_parallel_size=1", "ulysses_sequence_parallel_size=2")
    with pytest.raises(ConfigError, match=r"data\.micro_batch_size=4 and grad_accum=4 disagree"):
        load(*runnable, "data.micro_batch_size=4", "grad_accum=4")


@pytest.mark.shared_data
def test_commands_of_three_years_compose_or_explain_themselves(
    shared: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explained = 0
    for line in (shared / "cases" / "verl_commands.jsonl").read_text().splitlines():
        command = json.loads(line)
        monkeypatch.setenv("WORLD_SIZE", command["ranks"] or "8")
        overrides = [
            re.sub(r"(data\.\w+_files)=.*", r"\1=rows.jsonl", text).replace("$MODEL", "./model").replace("$HOME", ".")
            for text in command["overrides"]
        ]
        try:
            load(*overrides)
        except ConfigError as error:
            explained += 1
            for problem in error.problems:  # what is not offered, and nothing of a mere name
                assert re.match(r"trainer\.(default_hdfs_dir|device)=.* is not possible here: ", problem), problem
    assert explained <= 8
