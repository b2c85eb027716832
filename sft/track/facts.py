"""Write run.json: what ran, on what, when - enough to run it again - and never a secret."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sft.config.secrets import masked_argument, without_secrets
from sft.files import replace_file
from sft.track.files import timestamp

PACKAGES = ("fsdp-sft-trainer", "torch", "transformers", "tokenizers", "safetensors", "pyarrow", "numpy", "peft")
RUN_JSON = "run.json"
STARTED_AT = timestamp()  # of this process; run.json is written again when the run ends


def write_run_json(run_dir: str | Path, **facts: Any) -> None:
    """Write `run_dir`/run.json: versions, command, start time, commit, and the caller's facts (world size, hashes)."""
    content = json.dumps(without_secrets(facts_of_process() | facts), indent=2, ensure_ascii=False) + "\n"
    replace_file(Path(run_dir) / RUN_JSON, content.encode())


def facts_of_process() -> dict[str, Any]:
    """Return versions, command, start time and commit of this process."""
    return {
        "started_at": STARTED_AT,
        "command": masked_command(sys.argv),
        "git_commit": _git_commit(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def masked_command(argv: list[str]) -> list[str]:
    """Return argv with the values of secret names masked: `key=value`, `--key=value` and `--key value`."""
    shown = []
    for position, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        previous = argv[position - 1] if position else ""
        if previous.startswith("--") and "=" not in previous and not argument.startswith("-"):
            shown.append(masked_argument(previous, argument))
        else:
            shown.append(f"{name}={masked_argument(name, value)}" if equals else masked_argument("", argument))
    return shown


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def _git_commit() -> str | None:
    """Return the commit of the checkout this code runs from, "-dirty" if it was changed; None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # an installed package may lie inside somebody else's repository
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
