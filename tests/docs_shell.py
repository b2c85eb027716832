"""The blocks of shell on the pages: read by bash itself, with stand-ins that write down what they are called with."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sft.config import commands
from tests.launch import REPOSITORY

TRAINER = "sft.fsdp_sft_trainer"
OURS = [f"sft-{name}" for name in ("train", "inspect", "evaluate", "generate", "export", "tokenise", "promote")]
STAND_INS = ["torchrun", "python", "python3", *OURS, "make", "pip", "docker", "hf", "sbatch", "kubectl", "sky"]
REAL = ["cat", "mkdir", "touch", "cp", "ls", "head"]
ROWS, MODEL = "data.train_files=rows.jsonl", "model.partial_pretrain=Qwen/Qwen2.5-0.5B-Instruct"
PLACEHOLDERS = {
    r"<the (same )?overrides [^>]*>": f"{ROWS} data.val_files=rows.jsonl {MODEL}",
    r"model\.partial_pretrain=\.\.\.": MODEL,
    r"model\.partial_pretrain=BASE": MODEL,
    r"data\.train_files=\.\.\.": ROWS,
    r" \.\.\.(?=\s|$)": f" {ROWS} {MODEL}",
}
RECORD = """#!/bin/bash
printf '%s\\0' "$#" "${0##*/}" "$@" >> "$CALLS"
"""


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    """Yield the blocks of a page in these languages."""
    text = page.read_text()
    for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if found[1] in languages:
            yield Block(page, text[: found.start()].count("\n") + 1, found[1], found[2])


def install_stand_ins(home: Path) -> None:
    """Write what stands for every program, and the files that a shell sources, into `home`."""
    tools = home / "tools"
    for path in [*(tools / name for name in STAND_INS), home / "scripts" / "train.sh"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECORD)
        path.chmod(0o755)
    for name in REAL:
        (tools / name).symlink_to(f"/usr/bin/{name}")
    activate = home / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()


def calls(block: Block, home: Path, shell: str = "bash") -> list[list[str]]:
    """Run a block in `home` and return the calls of stand-ins, in order. The test fails where the shell does."""
    text = block.text
    for pattern, value in PLACEHOLDERS.items():
        text = re.sub(pattern, value, text)
    record = home / "calls"
    record.write_bytes(b"")
    environment = {"PATH": f"{home / 'tools'}", "HOME": str(home), "CALLS": str(record)}
    done = subprocess.run(
        [f"/usr/bin/{shell}", "-c", f"set -euo pipefail\n{text}"],
        cwd=home,
        env=environment,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0 and not done.stderr, f"{block}\n{done.stdout}{done.stderr}"
    words = record.read_text().split("\0")[:-1]
    found = []
    while words:
        length = int(words[0]) + 2
        found.append(words[1:length])
        words = words[length:]
    return found


@dataclass(frozen=True)
class Command:
    """A call of one of our programs: `python -m module arguments`, or a script."""

    module: str
    arguments: list[str]
    ranks: int = 1


def command_of(call: list[str]) -> Command | None:
    """Return the program of ours that a call starts; None if it starts another. Refuses flags that torchrun lacks."""
    name, *arguments = call
    if name in OURS:
        return Command(_module_of(name), arguments)
    if name == "train.sh":
        return Command(TRAINER, arguments, 8)
    if name == "docker" and (inner := next((word for word in arguments if word in STAND_INS), None)):
        return command_of(arguments[arguments.index(inner) :])
    if name == "torchrun":
        from torch.distributed.run import get_args_parser

        parser = get_args_parser()
        if "--shutdown-timeout" not in parser.format_help():  # torch 2.11: docs/launch.md says to leave it out
            arguments = [word for word in arguments if not word.startswith("--shutdown-timeout")]
        options = parser.parse_args(arguments)
        assert options.module, call
        nodes = int(str(options.nnodes).rpartition(":")[2])
        return Command(options.training_script, options.training_script_args, nodes * int(options.nproc_per_node))
    if name.startswith("python") and arguments and arguments[0] == "-m":
        return Command(arguments[1], arguments[2:]) if _is_ours(arguments[1]) else None
    if name.startswith("python") and arguments and arguments[0].endswith(".py"):
        return Command(arguments[0], arguments[1:])
    return None


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("sft", "data_preprocess")


def _module_of(name: str) -> str:
    """Return the module that a command of the installed package runs."""
    return getattr(commands, name.removeprefix("sft-")).args[0]
