"""A table of configurations that cannot run, each with what the user must be told."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft.config import ConfigError, load_config

BAD = [
    # unknown keys
    ("data.maxlength=5", ["data.maxlength is not a key", "did you mean data.max_length?"]),
    ("+data.max_len=5", ["did you mean data.max_length?"]),
    ("++optim.learning_rates=1", ["optim.learning_rates is not a key", "learning_rate"]),
    ("data.lr=1", ["did you mean optim.lr?"]),
    ("lr=1", ["did you mean optim.lr?"]),
    ("trunction=left", ["did you mean data.truncation?"]),
    ("learnin_rate=1", ["did you mean learning_rate?"]),
    ("+typo=1", ["typo is not a key", "--help"]),
    ("a.b.c=1", ["a.b.c is not a key"]),
    ("+trainer.wandb_api_key=abc", ["trainer.wandb_api_key looks like a secret", "WANDB_API_KEY"]),
    ("+hf_token=abc", ["hf_token looks like a secret", "HF_TOKEN"]),
    ("+nothing={}", ["nothing is not a key"]),
    ("model.fsdp_config.compute_dtyp=fp32", ["did you mean model.fsdp_config.compute_dtype"]),
    ("trainer.total_epoch=1", ["did you mean trainer.total_epochs"]),
    # types
    ("data.max_length=abc", ['data.max_length="abc" must be a whole number', "the default is 1024"]),
    ("data.max_length=true", ["data.max_length=true must be a whole number"]),
    ("data.max_length='12'", ['data.max_length="12" must be a whole number']),
    ("data.max_length=12.5", ["data.max_length=12.5 must be a whole number"]),
    ("data.max_length=null", ["data.max_length=null must be a whole number"]),
    ("data.max_length.tokens=5", ['data.max_length={"tokens": 5} must be']),
    ("optim.lr=fast", ['optim.lr="fast" must be a number above 0']),
    ("optim.lr=true", ["optim.lr=true must be a number"]),
    ("optim.betas=0.9", ["optim.betas=0.9 must be two numbers"]),
    ("optim.betas=[0.9]", ["optim.betas=[0.9] must be two numbers"]),
    ("use_remove_padding=1", ["use_remove_padding=1 must be true or false"]),
    ("data.multiturn.enable='true'", ['data.multiturn.enable="true" must be true or false']),
    ("data.multiturn=null", ["data.multiturn=null is a section", "enable, messages_key"]),
    ("data.prompt_key=''", ['data.prompt_key="" must be text']),
    ("data.train_files=[]", ["data.train_files=[] must be a path or a list of paths"]),
    ("data.train_files=null", ["data.train_files=null must be a path"]),
    ("data.train_files=[1]", ["data.train_files=[1] must be a path"]),
    ("data.chat_template=5", ["data.chat_template=5 must be jinja text, a file or a name or null"]),
    ("data.apply_chat_template_kwargs=[a]", ["data.apply_chat_template_kwargs", "a section of keys"]),
    ("model.target_modules=[]", ["must be all-linear, a list of names or a regular expression"]),
    ("model.modules_to_save=[]", ["model.modules_to_save=[] must be a name or a list of names or null"]),
    ("model.lora_dropout=1.0", ["model.lora_dropout=1.0 must be a number of at least 0 and below 1"]),
    ("~data.val_files", ["data.val_files is missing"]),
    # choices
    ("data.truncation=middle", ["data.truncation", "error, left, right or drop"]),
    ("model.strategy=ddp", ["model.strategy", "fsdp2 or fsdp"]),
    ("model.fsdp_config.model_dtype=fp16", ["fp32 or bf16"]),
    ("optim.lr_scheduler=step", ["cosine, wsd, linear or constant"]),
    ("model.loss_kernel=liger", ["auto, torch, torch_fp32, triton or triton_fp32"]),
    (
        "model.attn_implementation=flash",
        ["auto, sdpa, blocked, varlen, flash_attention_2, flash_attention_3 or flex"],
    ),
    ("trainer.resume_mode=newest", ["auto, disable or resume_path"]),
    ("trainer.logger=comet", ["trainer.logger", "console, jsonl, tensorboard, wandb, mlflow, swanlab, trackio"]),
    ("trainer.logger=[console,comet]", ["trainer.logger"]),
    ("trainer.logger=[]", ["trainer.logger=[] must be one or a list"]),
    # ranges
    ("optim.lr=0", ["optim.lr=0 must be a number above 0"]),
    ("optim.lr=.inf", ["optim.lr"]),
    ("optim.betas=[0.9,1.0]", ["optim.betas=[0.9, 1.0]", "below 1"]),
    ("optim.warmup_steps_ratio=1.5", ["a number from 0 to 1"]),
    ("optim.min_lr_ratio=-0.1", ["a number from 0 to 1"]),
    ("optim.clip_grad=0", ["optim.clip_grad=0 must be a number above 0"]),
    ("optim.weight_decay=-1", ["a number of at least 0"]),
    ("data.max_length=1", ["a whole number of at least 2"]),
    ("data.micro_batch_size_per_gpu=0", ["a whole number of at least 1"]),
    ("data.train_max_samples=0", ["data.train_max_samples=0 leaves no rows", "-1"]),
    ("trainer.save_freq=-2", ["a whole number of at least -1"]),
    ("trainer.test_freq=-5", ["a whole number of at least -1"]),
    ("trainer.log_freq=0", ["trainer.log_freq=0"]),
    ("trainer.total_epochs=0", ["trainer.total_epochs=0"]),
    ("trainer.total_training_steps=0", ["trainer.total_training_steps=0", "or null"]),
    ("trainer.max_ckpt_to_keep=0", ["trainer.max_ckpt_to_keep=0"]),
    ("trainer.seed=-1", ["trainer.seed=-1"]),
    # combinations
    ("data.micro_batch_size_per_gpu=5", ["256 samples per rank", "try data.micro_batch_size_per_gpu=4 or 8"]),
    ("data.max_tokens_per_gpu=512", ["data.max_tokens_per_gpu=512", "data.max_length=1024", "at least 1024"]),
    ("ulysses_sequence_parallel_size=2", ["ulysses_sequence_parallel_size=2 must divide the number of ranks, 1"]),
    ("model.fsdp_config.dp_replicate=2", ["dp_replicate=2 must divide the number of ranks, 1; try 1"]),
    ("model.fsdp_config.reduce_gradients=never", ["reduce_gradients", "auto, once or every_micro_batch"]),
    ("model.gradient_checkpointing_kind=some", ["gradient_checkpointing_kind", "full or selective"]),
    ("trainer.resume_mode=resume_path", ["trainer.resume_from_path=<run>/global_step_N"]),
    ("trainer.resume_from_path=run/global_step_3", ["would be ignored by trainer.resume_mode=auto"]),
    ("trainer.timeout_s=0", ["trainer.timeout_s=0 must be a whole number of at least 1"]),
    ("trainer.async_save=1", ["trainer.async_save=1 must be true or false"]),
    ("model.use_dora=true", ["model.use_dora=true would be ignored: model.lora_rank=0"]),
    ("model.init_lora_weights=gaussian", ['model.init_lora_weights="gaussian" would be ignored', "set the rank"]),
    ("model.lora_adapter_path=model", ['model.lora_adapter_path="model" would be ignored', "set the rank"]),
    ("trainer.default_local_dir=./model", ["would overwrite model.partial_pretrain"]),
    ("grad_accum=3", ["grad_accum=3 does not divide data.train_batch_size=256 over dp=1", "255 or 258"]),
    ("grad_accum=0", ["grad_accum=0 must be a whole number of at least 1"]),
    # judgement and hub
    ("trainer.early_stop_metric=loss", ["trainer.early_stop_metric=", "val/loss, val/perplexity, val/token_accuracy"]),
    ("trainer.early_stop_patience=0", ["trainer.early_stop_patience=0 must be a whole number of at least 1"]),
    ("trainer.load_best_at_end=true", ["trainer.load_best_at_end=true needs trainer.save_best=true"]),
    ("trainer.hub_model_id=a/b/c", ["trainer.hub_model_id=", "a hub id org/name"]),
    ("trainer.hub_model_id=me/tiny", ["trainer.hub_model_id=me/tiny needs a login", "hf auth login", "HF_TOKEN"]),
    ("trainer.hub_dry_run_dir=dry", ["trainer.hub_dry_run_dir=", "would be ignored: trainer.hub_model_id=null"]),
    ("model.load_in_8bit=true", ["model.load_in_8bit=true is not possible here", "model.base_dtype=nf4"]),
    ("model.load_in_4bit=true", ["model.base_dtype=nf4 is for what LoRA freezes", "model.lora_rank=0", "set the rank"]),
    # files and models
    ("data.train_files=nowhere.parquet", ['data.train_files="nowhere.parquet" does not exist (looked for /']),
    ("data.val_files=[rows.jsonl,gone.jsonl]", ['data.val_files="gone.jsonl" does not exist']),
    ("data.train_files='*.parquet'", ["matches no file"]),
    ("data.train_files=model", ["a directory without any *.parquet or *.jsonl"]),
    ("trainer.default_local_dir=rows.jsonl", ["trainer.default_local_dir", "is a file"]),
    ("trainer.default_local_dir=rows.jsonl/runs/7", ["trainer.default_local_dir", "rows.jsonl is a file"]),
    ("model.partial_pretrain=null", ["model.partial_pretrain is not set", "model.partial_pretrain=Qwen/"]),
    ("model.partial_pretrain=rows.jsonl", ["is a file; give the directory around it"]),
    ("model.partial_pretrain=./nowhere", ["neither a directory (looked for /", "org/name"]),
    ("model.partial_pretrain=/a/b", ["neither a directory nor a hub id"]),
    ("model.partial_pretrain=gpt2", ["org/name"]),
    ("model.partial_pretrain=.", ["has no config.json (found model, rows.jsonl)"]),
    ("trainer.early_stop_metric=val/rouge", ["trainer.early_stop_metric=val/rouge is not measured", "generate_metric"]),
    ("trainer.generate_metric=bleu", ["trainer.generate_metric", "exact_match, contains, rouge or file.py:function"]),
    ("trainer.generate_metric=mine.py:f", ["there is no file mine.py (looked for", "file.py:function"]),
    (f"trainer.generate_metric={__file__}:loss", ["val/loss is measured without it", "another name"]),
    ("model.external_lib=no_such.module", ["model.external_lib", "cannot be imported"]),
    # rows
    ("data.custom_cls.path=mine.py", ["data.custom_cls.path", "data.custom_cls.name=null", "set both"]),
    ("data.custom_cls={path: mine.py, name: Rows}", ["data.custom_cls.path=", "no python file", "give the path"]),
    ("data.format=alpacca", ["data.format", "alpacca", "alpaca"]),
    ("data.bad_rows=skip", ["data.bad_rows", "skip", "error", "drop"]),
    ("data.train_files=[org/name.jsonl]", ["data.train_files", "does not exist"]),
    # mixtures
    ("data.mixture=[]", ["data.mixture=[] must be a list of sources or null"]),
    ("data.mixture=[5]", ["data.mixture[0]=5 must be path, path:N or a section with path, format, rows"]),
    ("data.mixture=[rows.jsonl,{rows: 5}]", ["data.mixture[1].path is missing; set it to a path"]),
    ("data.mixture=[{path: rows.jsonl, weigth: 2}]", ["data.mixture[0].weigth is not a key", "did you mean weight?"]),
    ("data.mixture=[{path: rows.jsonl, xyz: 2}]", ["data.mixture[0].xyz is not a key", "has path, format, rows"]),
    ("data.mixture=[{path: rows.jsonl, weight: -1}]", ["data.mixture[0].weight=-1 must be a number above 0"]),
    ("data.mixture=[{path: rows.jsonl, rows: 0}]", ["data.mixture[0].rows=0 must be a whole number of at least 1"]),
    ("data.mixture=[rows.jsonl:0]", ["data.mixture[0].rows=0 must be a whole number of at least 1"]),
    ("data.mixture=[{path: rows.jsonl, seed: 1}]", ["data.mixture[0].seed=1 would be ignored", "set rows"]),
    ("data.mixture=[{path: rows.jsonl, format: txt}]", ['data.mixture[0].format="txt" must be auto, messages', "text"]),
    ("data.mixture=[gone.jsonl:7]", ['data.mixture[0].path="gone.jsonl" does not exist (looked for /']),
    ("data.mixture=[{path: rows.jsonl, fraction: 1.1}]", ["data.mixture[0].fraction=1.1 must be", "up to 1"]),
    ("data.mixture=[{path: rows.jsonl, fraction: 0.6},{path: rows.jsonl, fraction: 0.6},rows.jsonl]",
     ["fractions of data.mixture add up to 1.2", "at most 1"]),
    ("data.mixture=[{path: rows.jsonl, fraction: 0.6},{path: rows.jsonl, fraction: 0.3}]",
     ["add up to 0.9, and every source has one", "make it 1"]),
    ("data.mixture=[{path: rows.jsonl, fraction: 1.0},rows.jsonl]", ["add up to 1", 'nothing for "rows.jsonl"']),
    ("data.mixture=[{path: rows.jsonl, fraction: 0.1, weight: 2},rows.jsonl]",
     ["data.mixture[0] has fraction=0.1 and weight=2", "keep one"]),
    ("data.curriculum=5", ["data.curriculum=5 must be text or null"]),
    ("data.curriculum_epochs=0", ["data.curriculum_epochs=0 must be a whole number of at least 1"]),
    # verl's keys without a meaning
    ("trainer.default_hdfs_dir=hdfs://x/y", ["trainer.default_hdfs_dir", "default_local_dir"]),
    ("trainer.device=cpu", ["trainer.device", "CUDA_VISIBLE_DEVICES"]),
    ("model.use_shm=true", ["model.use_shm=true is not possible here"]),
    ("trainer.nnodes=0", ["trainer.nnodes=0", "torchrun"]),
    ("engine.fsdp_size=two", ['engine.fsdp_size="two" must be a whole number of ranks']),
    ("data.max_prompt_length=99", ["data.max_prompt_length=99 bounds a part", "set data.max_length"]),
    ("trainer.save_freq=1.5", ["trainer.save_freq=1.5 must be a whole number", "a part of the run", "epoch"]),
    # what Hydra would answer with a traceback
    ("+experiment=foo", ["experiment=foo does not exist", "gsm8k_qwen, lora, modern_llm_gpu"]),
    ("data=foo", ["data=foo does not exist", "sft"]),
    ("engine=megatron", ["engine=megatron does not exist", "FSDP2", "engine=fsdp"]),
    ("model=org/name", ["model=org/name would choose a file", "write model.partial_pretrain=org/name"]),
    ("optim=null", ["'optim=null' sets a whole group"]),
    ("optim.lr=[1", ["'optim.lr=[1': a bracket is not closed", "quotes"]),
    ("quickstart", ["'quickstart' is not an override", "key=value"]),
    ("optim.lr=1e-4,1e-5", ["optim.lr=1e-4,1e-5", "--multirun"]),
    ("optim.lr=${optim.typo}", ["optim.lr: Interpolation key 'optim.typo' not found"]),
    ("optim.lr:1e-4", ["'optim.lr:1e-4' has a colon", "write optim.lr=1e-4"]),
    ("model.compile", ["'model.compile' has no value", "write model.compile=<true or false>"]),
    ("optim.lr =1", ['"optim.lr" and "1" stand apart', "write optim.lr=1, without blanks"]),
    ("optim.lr=“1”", ["typographic quotes", "type plain"]),
    ("trainer.project_name='a", ["a quote is not closed", "quotes of the other kind"]),
    ("trainer.project_name=a=b", ["cannot be read", "quotes inside the quotes"]),
    ("~nope", ["'nope' does not exist"]),
]  # fmt: skip


def problems_of(overrides: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides)
    return caught.value.problems


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, "bitsandbytes, 4 bit"),
        ({"quant_method": "gptq", "bits": 8}, "gptq, 8 bit"),
        ({"quant_method": "fp8"}, "fp8"),
    ],
)
def test_a_quantised_model_is_refused(settings: dict, told: str, here: Path, runnable: list[str]) -> None:
    (here / "model" / "config.json").write_text(json.dumps({"quantization_config": settings}))
    (problem,) = problems_of(runnable)
    assert f'model.partial_pretrain="./model" is quantised ({told})' in problem
    assert "take the model it was made of" in problem


def test_4_bits_have_no_norms_of_whole_weights(runnable: list[str]) -> None:
    (problem,) = problems_of([*runnable, "model.base_dtype=nf4", "model.lora_rank=4", "model.use_dora=true"])
    assert "model.use_dora=true needs the norms of whole weights" in problem


def test_the_loss_kernel_of_triton_does_not_know_every_loss(runnable: list[str]) -> None:
    (problem,) = problems_of([*runnable, "model.loss_kernel=triton_fp32", "optim.loss=eaft"])
    assert "model.loss_kernel=triton_fp32 does not know optim.loss=eaft" in problem
    load_config([*runnable, "model.loss_kernel=triton", "optim.loss=dft"])


@pytest.mark.parametrize(
    "override", ["model.base_dtype=nf4", "model.use_dora=true", "model.lora_dropout=0.1", "model.compile=true"]
)
def test_adapters_of_experts_go_with_few_other_things(override: str, runnable: list[str]) -> None:
    asked = [*runnable, "model.lora_rank=4", "model.target_parameters=[experts.down_proj]"]
    assert load_config(asked).model.target_parameters == ("experts.down_proj",)
    (problem,) = problems_of([*asked, override])
    assert override.partition("=")[0] in problem and "model.target_parameters" in problem


def test_an_adapter_is_no_model(here: Path, runnable: list[str]) -> None:
    model = here / "model"
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    warnings: list[str] = []
    load_config(runnable, warn=warnings.append)
    assert ["holds an adapter beside the model" in warning for warning in warnings] == [True]
    for file in model.glob("*.safetensors"):
        file.rename(model / "adapter_model.safetensors")
    (problem,) = problems_of(runnable)
    assert "is an adapter, not a model; give the model that it was trained on (org/base)" in problem


@pytest.mark.timeout(20)
def test_a_model_directory_with_a_pipe_in_it_is_refused_unread(here: Path, runnable: list[str]) -> None:
    os.mkfifo(here / "model" / "adapter_config.json")
    (here / "model" / "noise.bin").symlink_to("/dev/zero")
    (problem,) = problems_of(runnable)
    assert "holds pipes, sockets or devices" in problem and "(adapter_config.json, noise.bin); take" in problem


def test_an_adapter_needs_something_to_adapt(runnable: list[str]) -> None:
    (problem,) = problems_of([*runnable, "model.lora_rank=4", "model.target_modules=null"])
    assert "leave nothing to adapt" in problem


def test_a_format_without_messages_and_multiturn_contradict_each_other(runnable: list[str]) -> None:
    (problem,) = problems_of([*runnable, "data.format=alpaca", "data.multiturn.enable=true"])
    assert "data.format=alpaca" in problem and "data.multiturn.enable=false" in problem


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_judgement_needs_validations(runnable: list[str]) -> None:
    judged = [*runnable, "trainer.early_stop_metric=val/loss", "trainer.save_best=true"]
    (problem,) = problems_of([*judged, "data.val_files=null"])
    assert "trainer.early_stop_metric=val/loss and trainer.save_best=true needs validations" in problem
    (problem,) = problems_of([*judged, "trainer.test_freq=0"])
    assert "trainer.test_freq=0 makes none" in problem


def test_places_that_this_user_may_not_look_into_are_said(
    here: Path, runnable: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, exists, iterdir = here / "closed", Path.exists, Path.iterdir
    closed.mkdir()

    def refuse(act: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def acted(path: Path) -> Any:
            if path.is_relative_to(closed):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return act(path)

        return acted

    monkeypatch.setattr(Path, "exists", refuse(exists))
    (problem,) = problems_of([*runnable, f"trainer.default_local_dir={closed / 'run'}"])
    assert "trainer.default_local_dir" in problem and "run cannot be looked into by this user" in problem
    monkeypatch.setattr(Path, "exists", exists)
    (problem,) = problems_of([*runnable, f"trainer.default_local_dir={'x' * 300}"])
    assert "cannot be looked into by this user (File name too long)" in problem
    monkeypatch.setattr(Path, "iterdir", refuse(iterdir))
    (problem,) = problems_of([*runnable, f"model.partial_pretrain={closed}"])
    assert "model.partial_pretrain" in problem and "closed: Permission denied); check its permissions" in problem


def test_a_user_without_a_home_is_told_what_to_set(runnable: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def nobody(_: int) -> None:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    given = [text for text in runnable if not text.startswith("data.cache_dir=")]
    (problem,) = problems_of(given)
    assert problem.endswith("this user has no home directory; set HOME, or data.cache_dir to a whole path.")
    assert load_config([*given, "data.cache_dir=/tmp/cache"]).data.cache_dir == "/tmp/cache"


def test_a_run_directory_that_is_a_link_to_nowhere_is_said(here: Path, runnable: list[str]) -> None:
    (here / "link").symlink_to(here / "nowhere")
    for place in ("link", "link/run"):
        (problem,) = problems_of([*runnable, f"trainer.default_local_dir={place}"])
        assert "link is a link to" in problem and "nowhere, which does not exist" in problem


def test_a_dry_run_and_the_other_ranks_need_no_login(runnable: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = [*runnable, "trainer.hub_model_id=me/tiny"]
    assert load_config([*pushed, "trainer.hub_dry_run_dir=dry"]).trainer.hub_private
    monkeypatch.setenv("RANK", "1")
    load_config(pushed)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    load_config(pushed)


@pytest.mark.parametrize(("override", "fragments"), BAD, ids=[override for override, _ in BAD])
def test_one_mistake_is_one_problem_that_says_so(override: str, fragments: list[str], runnable: list[str]) -> None:
    if override.startswith("data.mixture="):  # it takes the place of data.train_files
        runnable = [text for text in runnable if not text.startswith("data.train_files=")]
    problems = problems_of([*runnable, override])
    assert len(problems) == 1, problems
    for fragment in fragments:
        assert fragment in problems[0]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("data.max_length=512", 'data.train_files=["rows.jsonl"] would be ignored: the sources of data.mixture'),
        ("data.train_files=null", None),
        ("data.train_max_samples=4", "data.train_max_samples=4 does not say which source of data.mixture it cuts"),
    ],
)
def test_what_a_mixture_takes_the_place_of(override: str, problem: str | None, runnable: list[str]) -> None:
    overrides = [*runnable, "data.mixture=[rows.jsonl]", override]
    if problem is None:
        assert load_config(overrides).data.mixture
    else:
        assert [text for text in problems_of(overrides) if problem in text]


def test_a_mixture_and_a_class_are_one_too_many(here: Path, runnable: list[str]) -> None:
    (here / "mine.py").write_text("")
    mine = ["data.custom_cls={path: mine.py, name: Rows}", "data.train_files=null", "data.mixture=[rows.jsonl]"]
    (problem,) = problems_of([*runnable, *mine])
    assert "data.mixture names files, and data.custom_cls.path a class" in problem


def test_the_table_is_long_enough() -> None:
    assert len(BAD) >= 45


def test_a_secret_is_not_repeated_in_the_message(runnable: list[str]) -> None:
    (problem,) = problems_of([*runnable, "+trainer.wandb_api_key=abc123"])
    assert "abc123" not in problem


def test_all_problems_at_once(runnable: list[str]) -> None:
    mistakes = [
        "optim.lr=abc",
        "data.maxlength=5",
        "data.micro_batch_size_per_gpu=7",
        "model.use_liger=maybe",
        "epochs=0",
    ]
    problems = problems_of([*runnable, *mistakes])
    assert len(problems) == len(mistakes), problems
    for key in ("optim.lr", "data.maxlength", "micro_batch_size_per_gpu=7", "use_liger", "trainer.total_epochs=0"):
        assert any(key in problem for problem in problems), key


def test_weights_of_two_checkpoints_are_one_too_many(runnable: list[str]) -> None:
    resume = ["trainer.resume_mode=resume_path", "trainer.resume_from_path=model"]
    (problem,) = problems_of([*runnable, *resume, "trainer.init_from_checkpoint=model"])
    assert 'trainer.init_from_checkpoint="model" would be ignored by trainer.resume_mode=resume_path' in problem


def test_what_does_not_parse_is_a_problem_among_the_others(runnable: list[str]) -> None:
    broken = ["optim.lr=[1", "quickstart", "data.chat_template={{ x }}", "model.partial_pretrain={{ x }}"]
    problems = problems_of([*runnable[1:], *broken, "optim=foo", "data.maxlength=5", "trainer.seed=-1"])
    assert len(problems) == 7, problems  # and none about the model that is missing, for it is not
    for fragment in ("'optim.lr=[1': a bracket", "'quickstart' is not", "optim=foo does not", "data.maxlength is not"):
        assert any(fragment in problem for problem in problems)


def test_a_broken_value_does_not_cause_problems_about_its_stand_in(runnable: list[str]) -> None:
    problems = problems_of([*runnable, "data.train_batch_size=many", "data.micro_batch_size_per_gpu=7"])
    assert len(problems) == 1
    assert 'data.train_batch_size="many"' in problems[0]


def test_the_message_counts_and_numbers_its_problems() -> None:
    message = str(ConfigError(["first", "second"]))
    assert message == "2 problems in the configuration:\n  1. first\n  2. second"
    assert str(ConfigError(["only"])).startswith("1 problem in")


@pytest.mark.parametrize(
    ("world_size", "overrides", "problem"),
    [
        (8, ["data.train_batch_size=12"],
         "data.train_batch_size=12 must be a multiple of dp=8 (every rank takes whole samples); try 8 or 16."),
        (8, ["data.train_batch_size=4"],
         "data.train_batch_size=4 must be a multiple of dp=8 (every rank takes whole samples); try 8."),
        (2, ["data.train_batch_size=24", "data.micro_batch_size_per_gpu=8"],
         "data.train_batch_size=24 over dp=2 is 12 samples per rank, not a multiple of data.micro_batch_size_per_gpu=8"
         "; try data.micro_batch_size_per_gpu=6 or 12, or data.train_batch_size=16 or 32."),
        (6, ["ulysses_sequence_parallel_size=4", "data.train_batch_size=24"],
         "ulysses_sequence_parallel_size=4 must divide the number of ranks, 6; try 3 or 6."),
        (2, ["ulysses_sequence_parallel_size=2", "use_remove_padding=true", "data.max_tokens_per_gpu=500"],
         "data.max_tokens_per_gpu=500 x ulysses_sequence_parallel_size=2 cannot hold one sample of "
         "data.max_length=1024 tokens; raise it to at least 512."),
        (2, ["ulysses_sequence_parallel_size=2"],
         "ulysses_sequence_parallel_size=2 splits rows of samples that lie end to end, which use_remove_padding=false "
         "does not make; set use_remove_padding=true."),
    ],
)  # fmt: skip
def test_impossible_divisions_name_the_numbers_and_the_nearest_choices(
    world_size: int, overrides: list[str], problem: str, runnable: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    assert problem in problems_of([*runnable, *overrides])


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("model.target_modules='(q_proj'", ['model.target_modules="(q_proj" is no regular expression']),
        (
            "model.init_lora_weights=pissa",
            ['model.init_lora_weights="pissa" is none of true and gaussian', "Not built"],
        ),
        ("model.init_lora_weights=false", ["model.init_lora_weights=false is none of true", "elsewhere than at the"]),
        ("model.lora_adapter_path=nowhere", ['model.lora_adapter_path="nowhere" is no directory (looked for /']),
    ],
)
def test_mistakes_about_adapters(override: str, fragments: list[str], runnable: list[str]) -> None:
    (problem,) = problems_of([*runnable, "model.lora_rank=8", override])
    for fragment in fragments:
        assert fragment in problem


def test_a_start_beside_a_trained_adapter_is_refused(runnable: list[str]) -> None:
    both = ["model.lora_rank=8", "model.lora_adapter_path=.", "model.init_lora_weights=gaussian"]
    assert 'model.init_lora_weights="gaussian" would be ignored' in problems_of([*runnable, *both])[0]


def test_absent_packages_are_refused_before_torch_is_loaded(
    runnable: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sft.config.checks.packages.find_spec", lambda name: None)
    asked = ["model.lora_rank=8", "trainer.logger=[console,jsonl,wandb,tensorboard]"]
    asked += ["model.base_dtype=nf4", "optim.name=adamw_8bit"]
    needs = [
        "trainer.logger=wandb needs wandb",
        "trainer.logger=tensorboard needs tensorboard",
        "model.lora_rank=8 needs peft",
        "model.base_dtype=nf4 needs bitsandbytes",
        "optim.name=adamw_8bit needs bitsandbytes",
    ]
    problems = problems_of([*runnable, *asked])
    assert [problem.partition(",")[0] for problem in problems] == needs
    assert "pip install tensorboard, or leave it out" in problems[1]


def test_a_model_with_pickled_weights_only_is_refused(here: Path, runnable: list[str]) -> None:
    (here / "model" / "model.safetensors").unlink()
    (here / "model" / "pytorch_model.bin").write_bytes(b"")
    (problem,) = problems_of(runnable)
    assert "no *.safetensors (found config.json, pytorch_model.bin)" in problem
    assert "convert" in problem


def test_a_directory_that_cannot_be_written(runnable: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft.config.checks.run.os.access", lambda path, mode: False)  # root may write anywhere
    (problem,) = problems_of([*runnable, "trainer.default_local_dir=runs/7"])
    assert "trainer.default_local_dir" in problem and "cannot be written by this user" in problem


def test_another_spelling_of_the_model_directory_is_still_the_model_directory(runnable: list[str]) -> None:
    model = next(text.partition("=")[2] for text in runnable if text.startswith("model.partial_pretrain="))
    spelled = Path(model).absolute().parent / "elsewhere" / ".." / Path(model).name
    (problem,) = problems_of([*runnable, f"trainer.default_local_dir={spelled}/"])
    assert "would overwrite model.partial_pretrain" in problem
