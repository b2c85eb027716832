"""The mistakes of a first hour: each names the knob, what was found and the way out, exits with 2, and is short."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from sft.config.cli import cli
from sft.errors import InputError
from sft.fsdp_sft_trainer import run
from tests.assets import base_model_dir, tiny_model_dir, write_jsonl

GOOD = [
    "model.partial_pretrain=model",
    "data.train_files=rows.jsonl",
    "data.train_batch_size=4",
    "data.cache_dir=cache",
]
MOST_LINES = 12
"""Of a message: one for each problem, and where columns are unknown, one for each format that is read."""

MISTAKES = [
    # knob, what was found, way out
    ("wrong path", ["data.train_files=row.jsonl"], ["data.train_files=", '"row.jsonl" does not exist', "set the path"]),
    ("val_files missing", ["data.val_files=v.jsonl"], ["data.val_files=", '"v.jsonl" does not exist', "set the path"]),
    ("empty file", ["data.train_files=empty.csv"], ["empty.csv", "is empty", "write it again, or take it out"]),
    ("a header alone", ["data.train_files=header.csv"], ["header.csv", "holds no rows", "Write it again"]),
    ("no header", ["data.train_files=nohead.csv"],
     ["nohead.csv:2", "found ['Four.', 'What is 2 + 2?']", "first line of a CSV file must name its columns"]),
    ("a spreadsheet", ["data.train_files=book.xlsx"], ["book.xlsx", "is a spreadsheet", "save it as CSV"]),
    ("Latin-1", ["data.train_files=latin.csv"], ["latin.csv:2", "is not UTF-8", "iconv"]),
    ("wrong column", ["data.train_files=german.csv"],
     ["german.csv:2", "found ['antwort', 'frage']", "Name its columns by data.prompt_key"]),
    ("wrong column name", ["data.prompt_key=prompt"],
     ["data.prompt_key=prompt", "found ['answer', 'question']", "is not guessed"]),
    ("not a conversation", ["data.multiturn.enable=true"],
     ["data.multiturn.enable=true", "found ['answer', 'question']", "Name its columns by"]),
    ("damaged JSON", ["data.train_files=bad.jsonl"], ["bad.jsonl:2", "not JSON", "expected one object per line"]),
    ("too long", ["data.max_length=4"], ["data.max_length=4", "10 of 10 samples are longer", "Raise data.max_length"]),
    ("nothing left", ["data.max_length=4", "data.truncation=drop"],
     ["no sample is left", "10", "data.max_length"]),
    ("typo", ["optim.learing_rate=1"], ["optim.learing_rate", "is not a key", "did you mean learning_rate"]),
    ("another trainer's name", ["fp16=true"], ["fp16=true", "is not possible here", "use bf16 or fp32"]),
    ("wrong type", ["optim.lr=fast"], ["optim.lr=", '"fast"', "must be a number above 0; the default is 1e-05"]),
    ("wrong dtype", ["model.fsdp_config.compute_dtype=half"], ["compute_dtype=", '"half"', "must be bf16 or fp32"]),
    ("wrong choice", ["optim.lr_scheduler=cosin"],
     ["optim.lr_scheduler=", '"cosin"', "cosine, wsd, linear or constant"]),
    ("missing model", ["model.partial_pretrain=modle"],
     ["model.partial_pretrain=", '"modle" is neither a directory', "download the model or mend the path"]),
    ("offline", ["model.partial_pretrain=org/name"],
     ["model.partial_pretrain=org/name", "this machine is offline", "hf download org/name"]),
    ("no template", ["model.partial_pretrain=base", "model.lora_rank=4"],
     ["model.lora_rank=4", "<|im_start|>", "data.chat_template=instruction_response"]),
    ("wrong template", ["data.chat_template=llama3"], ["data.chat_template=", "'llama3' is neither", "alpaca, chatml"]),
    ("batch not divisible", ["data.train_batch_size=6"], ["data.train_batch_size=6", "not a multiple", "=4 or 8"]),
    ("sequence parallelism", ["ulysses_sequence_parallel_size=2"],
     ["ulysses_sequence_parallel_size=2", "must divide the number of ranks, 1", "try 1"]),
    ("attention", ["model.attn_implementation=flash_attention_2"],
     ["model.attn_implementation=flash_attention_2", "needs CUDA", "possible for qwen3"]),
    ("LoRA's targets", ["model.lora_rank=4", "model.target_modules=[q_prj]"],
     ["model.target_modules", "'q_prj' is no module", "did you mean q_proj"]),
    ("no such checkpoint", ["trainer.resume_mode=resume_path", "trainer.resume_from_path=runs/x"],
     ["trainer.resume_from_path=", '"runs/x" does not exist', "give a global_step_N directory"]),
    ("run directory is a file", ["trainer.default_local_dir=rows.jsonl"],
     ["trainer.default_local_dir=", "rows.jsonl is a file", "give a directory"]),
    ("run directory cannot be made", ["trainer.default_local_dir=/proc/mine"],
     ["trainer.default_local_dir=/proc/mine", "cannot be made", "set a directory of your own"]),
    ("cache cannot be made", ["data.cache_dir=/proc/mine"],
     ["data.cache_dir=/proc/mine", "cannot be made", "Set data.cache_dir to"]),
    ("secret", ["trainer.hf_token=hf_abcdefghijklmnop"],
     ["trainer.hf_token", "looks like a secret", "set what the library reads from the environment"]),
    ("wrong group", ["optim=adam"], ["optim=adam", "does not exist", "choose one of adamw"]),
    ("wrong preset", ["+experiment=quikstart"], ["experiment=quikstart", "does not exist", "multiturn"]),
    ("dashes", ["--lr", "1e-4"], ["--lr", "keys have no dashes", "write optim.lr=1e-4"]),
    ("blanks", ["optim.lr", "=", "1e-4"], ['"optim.lr"', "stand apart", "write optim.lr=1e-4"]),
    ("colon", ["optim.lr:1e-4"], ["'optim.lr:1e-4'", "has a colon", "write optim.lr=1e-4"]),
    ("no value", ["model.compile"], ["'model.compile'", "has no value", "write model.compile=<true or false>"]),
    ("bracket", ["model.target_modules=[q_proj"], ["model.target_modules=[q_proj", "is not closed", "in quotes"]),
    ("a list without brackets", ["optim.lr=1e-4,1e-5"], ["optim.lr=1e-4,1e-5", "several values", "--multirun"]),
    ("tabs in YAML", ["tabs.yaml"], ["tabs.yaml:2", "not YAML", "YAML takes no tabs"]),
    ("no YAML file", ["mine.yaml"], ["mine.yaml", "does not exist", "give a YAML file of keys and values"]),
]  # fmt: skip
PACKAGES = [
    ("trainer.logger=wandb", "wandb"),
    ("trainer.logger=[console,tensorboard]", "tensorboard"),
    ("model.lora_rank=4", "peft"),
    ("optim.name=adamw_8bit", "bitsandbytes"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as a beginner's: a model, some rows, and files that are not what they should be."""
    home = tmp_path_factory.mktemp("hour")
    tiny_model_dir(home / "model")
    base_model_dir(home / "base")
    write_jsonl(home / "rows.jsonl", [{"question": f"What is {k}?", "answer": f"{k}."} for k in range(10)])
    (home / "bad.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "a", answer: "b"}\n')
    (home / "empty.csv").write_text("")
    (home / "header.csv").write_text("question,answer\n")
    (home / "nohead.csv").write_text("What is 2 + 2?,Four.\nWhat is 3 + 3?,Six.\n")
    (home / "german.csv").write_text("frage,antwort\nWas?,Das.\n")
    (home / "latin.csv").write_bytes("question,answer\nä,ö\n".encode("latin1"))
    (home / "book.xlsx").write_bytes(b"PK\x03\x04" + b"\0" * 60)
    (home / "tabs.yaml").write_text("optim:\n\tlr: 1\n")
    return home


@pytest.fixture(autouse=True)
def as_a_beginner(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand in that directory, outside torchrun and without a network; leave the log as it was."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(home)
    log = logging.getLogger("sft")
    handlers, propagates, level = log.handlers, log.propagate, log.level
    yield
    log.handlers, log.propagate = handlers, propagates
    log.setLevel(level)


def message_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says at last: of a bad configuration, or of what the run cannot use."""
    try:
        cli(run, arguments)
    except SystemExit as ended:
        assert ended.code == 2
        return capsys.readouterr().err
    except InputError as error:  # `main` says it and exits with 2
        return f"error: {error}\n"
    raise AssertionError("it ran")


@pytest.mark.parametrize(("typed", "points"), [pytest.param(*case[1:], id=case[0]) for case in MISTAKES])
def test_a_mistake_says_knob_finding_and_way_out(
    typed: list[str], points: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = message_of([*GOOD, *typed], capsys)
    assert [point for point in points if point not in message] == []
    assert message.count("\n") <= MOST_LINES
    assert "Traceback" not in message and "hf_abcdefghijklmnop" not in message


@pytest.mark.parametrize(("typed", "package"), PACKAGES)
def test_a_package_that_is_not_installed(
    typed: str, package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sft.config.checks.packages.find_spec", lambda name: None if name == package else name)
    message = message_of([*GOOD, typed], capsys)
    assert typed.partition("=")[0] in message
    assert f"needs {package}, which is not installed: pip install {package}, or leave it out." in message


def test_a_run_directory_of_another_run(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    """Found before a step is taken: the checkpoint that is there says what it belongs to."""
    steps = ["trainer.total_training_steps=1", "trainer.default_local_dir=runs/mine", "data.micro_batch_size_per_gpu=2"]
    cli(run, [*GOOD, *steps, "trainer.logger=console"])
    message = message_of([*GOOD, *steps, "trainer.seed=7"], capsys)
    for point in ("runs/mine", "belongs to another run", "seed: the checkpoint has 1, this run 7", "Use another"):
        assert point in message, message
