"""The commands that pip installs, and completion of their keys in a shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from sft.config import commands
from tests.launch import REPOSITORY

SCRIPTS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_command_runs_its_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, function = SCRIPTS[name].partition(":")
    assert module == "sft.config.commands" and name == f"sft-{function}"
    ran: list[str] = []
    monkeypatch.setattr(commands, "run_module", lambda target, run_name: ran.append(target))
    getattr(commands, function)()
    assert find_spec(ran[0]) is not None
    if (spec := find_spec(ran[0])) and spec.submodule_search_locations:
        assert find_spec(f"{ran[0]}.__main__") is not None


def test_bash_completes_keys(tmp_path: Path) -> None:
    command = tmp_path / "sft-train"
    command.write_text(f"#!{sys.executable}\nfrom sft.config.commands import train\ntrain()\n")
    command.chmod(0o755)
    asks = (
        'eval "$(sft-train --shell-completion install=bash)"; complete -p sft-train; '
        "COMP_LINE='sft-train optim.lr_s' COMP_POINT=20 COMP_CWORD=1; hydra_bash_completion; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(
        ["bash", "-c", asks],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "optim.lr_scheduler="


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))])
def test_commands_of_the_docs_work_in_zsh(page: str) -> None:
    """There a bracket, a star or a question mark outside of quotes is a pattern, and one without a match an error."""
    for block in re.findall(r"```(?:bash|sh)\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL):
        for line in block.splitlines():
            bare = re.sub(r"'[^']*'|\"[^\"]*\"|(^|\s)#.*", "", line)
            assert not re.search(r"[\[\]*?]", bare), line
