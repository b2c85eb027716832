"""The commands that pip installs, and completion of their keys in a shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from shutil import which

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


@pytest.fixture
def in_shell(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run lines in a shell that finds sft-train."""
    command = tmp_path / "sft-train"
    command.write_text(f"#!{sys.executable}\nfrom sft.config.commands import train\ntrain()\n")
    command.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    environment |= {"HOME": str(tmp_path)}

    def run(shell: str, lines: str) -> subprocess.CompletedProcess[str]:
        if which(shell) is None:
            pytest.skip(f"no {shell} here")
        return subprocess.run([shell, "-c", lines], env=environment, capture_output=True, text=True, check=False)

    return run


def test_bash_completes_keys(in_shell) -> None:
    done = in_shell(
        "bash",
        'eval "$(sft-train --shell-completion install=bash)"; complete -p sft-train; '
        "COMP_LINE='sft-train optim.lr_s' COMP_POINT=20 COMP_CWORD=1; hydra_bash_completion; echo ${COMPREPLY[@]}",
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "optim.lr_scheduler="


def test_fish_completes_keys(in_shell) -> None:
    asks = "sft-train --shell-completion install=fish | source; complete -C 'sft-train optim.lr_s'"
    assert in_shell("fish", asks).stdout.split() == ["optim.lr_scheduler="]


def test_zsh_takes_the_completion_of_bash(in_shell) -> None:
    """As docs/tasks/zsh.md says; what the tab key then does, zsh shows on a terminal only."""
    page = (REPOSITORY / "docs/tasks/zsh.md").read_text()
    (lines,) = re.findall(r"```zsh\n(.*?)```", page, re.DOTALL)
    done = in_shell("zsh", f"{lines.replace('&& compinit &&', '&& compinit -u &&')}print -r -- $_comps[sft-train]")
    assert "hydra_bash_completion" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))])
def test_commands_of_the_docs_work_in_zsh(page: str) -> None:
    """There a bracket, a star or a question mark outside of quotes is a pattern, and one without a match an error."""
    for block in re.findall(r"```(?:bash|sh)\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL):
        shell = re.sub(
            r"<<-?['\"]?(\w+)['\"]?.*?^\1$", "", block, flags=re.DOTALL | re.MULTILINE
        )  # a file's text is none
        for line in shell.splitlines():
            bare = re.sub(r"'[^']*'|\"[^\"]*\"|(^|\s)#.*", "", line)
            assert not re.search(r"[\[\]*?]", bare), line
