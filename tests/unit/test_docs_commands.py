"""Every block of shell on the pages is shell, and every command of ours in it composes: keys, choices, flags."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft.config import SftConfig, cli
from sft.config.expectations import expectations
from sft.evaluate.options import take_options as take_evaluate
from sft.inspect.options import take_options as take_inspect
from tests.assets import write_jsonl
from tests.docs_shell import TRAINER, Block, Command, blocks, calls, command_of, install_stand_ins
from tests.launch import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCKS = [block for page in PAGES for block in blocks(page, "bash")]

OPTIONS: dict[str, Callable[[Sequence[str]], tuple[object, list[str]]]] = {
    "sft.inspect": take_inspect,
    "sft.evaluate": take_evaluate,
    "sft.tokenise": lambda texts: (None, [text for text in texts if not text.startswith("part=")]),
    TRAINER: lambda texts: (None, list(texts)),
}
"""The commands with the trainer's keys: what takes their own keys out."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that the pages speak of, with their files, empty model directories and finished runs."""
    home = tmp_path_factory.mktemp("home")
    install_stand_ins(home)
    rows = [{"question": "1 + 1?", "answer": "2", "extra_info": {"question": "1 + 1?", "answer": "2"}}]
    chat = [{"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}]
    for name in ("rows", "val", "other"):
        write_jsonl(home / f"{name}.jsonl", rows)
    for folder, table in (("gsm8k", rows), ("multiturn", chat)):
        for name in ("train", "test"):
            (home / "data" / folder).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(table), home / "data" / folder / f"{name}.parquet")
    for name in (
        "Qwen/Qwen2.5-0.5B-Instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "runs/mine",
        "runs/gsm8k",
        "quickstart/model",
    ):
        (home / name).mkdir(parents=True)
        (home / name / "config.json").write_text("{}")
        (home / name / "model.safetensors").write_bytes(b"")
    for name in ("mine", "gsm8k"):
        (home / "runs" / name / "config.yaml").write_text(
            json.dumps({"data.train_files": "rows.jsonl", "model.partial_pretrain": "Qwen/Qwen2.5-0.5B-Instruct"})
        )
    for name in ("mine", "lora"):
        (home / "runs" / name / "lora_adapter").mkdir(parents=True)
    for name in ("train", "val"):
        write_jsonl(home / "quickstart" / "data" / f"{name}.jsonl", [{"prompt": "1", "response": "one"}])
    (home / "rows.csv").write_text("question,answer\n1 + 1?,2\n")
    (home / "mine.py").touch()
    (mine,) = [block.text for block in blocks(DOCS / "commands.md", "yaml") if block.text.startswith("# mine.yaml")]
    (home / "mine.yaml").write_text(mine)
    return home


class Parsed(Exception):
    """Raised in place of the work, once the flags of a command are read."""


def compose(command: Command) -> list[SftConfig]:
    """Compose a command with the trainer's keys on its own number of ranks.

    What Optuna would choose has no configuration before it runs: of such a command, the keys are checked.
    """
    _, overrides = OPTIONS[command.module](command.arguments)
    if any(text.startswith("hydra/sweeper=") for text in overrides):
        keys = {text.partition("=")[0] for text in overrides if "=" in text and not text.startswith("hydra")}
        assert keys <= expectations().keys(), command
        return []
    configs: list[SftConfig] = []
    is_trainer = command.module == TRAINER
    cli(configs.append, overrides, world_size=command.ranks if is_trainer else 0, needs_weights=is_trainer)
    return configs


def parse(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a command with flags of its own read them, and stop there."""
    read = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> None:
        read(parser, arguments)
        raise Parsed

    with monkeypatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [command.module, *command.arguments])
        if command.module.endswith(".py"):
            patch.syspath_prepend(REPOSITORY / "scripts")
            runpy.run_path(str(REPOSITORY / command.module), run_name="__main__")
        else:
            runpy.run_module(command.module, run_name="__main__")


def check_others(call: list[str]) -> None:
    """Check what the programs of others are given of ours: targets of make, extras of pip, files."""
    name, *words = call
    if name == "make":
        assert set(words) <= set(re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for word in words:
        if wanted := re.fullmatch(r"(?:\.|\S*fsdp_sft_trainer\S*)\[([\w,-]+)\]", word):
            assert set(wanted[1].split(",")) <= extras.keys(), word
        if wheel := re.search(r"fsdp_sft_trainer-(.*)-py3", word):
            assert wheel[1] == project["version"], word
        if word.startswith("scripts/"):
            assert (REPOSITORY / word).exists(), word


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_command_composes(
    block: Block, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    for call in calls(block, home):
        if "hydra/sweeper=optuna" in call:
            pytest.skip("a search is composed job by job: tests/unit/config/test_sweeps.py")
        command = command_of(call)
        if command is None:
            check_others(call)
        elif command.module in OPTIONS:
            monkeypatch.setenv("WORLD_SIZE", str(command.ranks))
            try:
                assert compose(command) or any(text.startswith("--") for text in command.arguments)
            except SystemExit:
                pytest.fail(f"{block}: {' '.join(call)}\n{capsys.readouterr().err}")
        else:
            parse(command, monkeypatch)


@pytest.mark.skipif(not Path("/usr/bin/zsh").exists(), reason="no zsh here")
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_zsh_reads_every_block_as_bash_does(block: Block, home: Path) -> None:
    assert sorted(calls(block, home, "zsh")) == sorted(calls(block, home))


@pytest.mark.parametrize("override", ["optim.lrr=1e-5", "optim.lr_scheduler=cosin"])
def test_a_wrong_key_or_choice_is_found(override: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    block = Block(REPOSITORY / "README.md", 1, "bash", f"sft-train ... \\\n    {override}  # why\n")
    (call,) = calls(block, home)
    command = command_of(call)
    assert command and command.arguments[-1] == override
    with pytest.raises(SystemExit):
        compose(command)
