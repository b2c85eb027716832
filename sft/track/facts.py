"""run.json: what ran, on what, when - enough to run it again - and never a secret."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from sft.track.files import replace_file, timestamp

PACKAGES = ("fsdp-sft-trainer", "torch", "transformers", "tokenizers", "safetensors", "pyarrow", "numpy", "peft")
MASK = "***"
# Only names that end so: max_tokens_per_gpu and balance_dp_token=true hold no secret and must stay readable.
SECRET_NAME = re.compile(r"(token|secret|password|api[_-]?key)$", re.IGNORECASE)
NO_SECRETS = {"", "true", "false", "null", "none"}
PASSWORD_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


def write_run_json(run_dir: str | Path, **facts: Any) -> None:
    """Write `run_dir`/run.json: versions, command, start time, commit, and the caller's facts (world size, hashes)."""
    known = {
        "started_at": timestamp(),
        "command": masked_command(sys.argv),
        "git_commit": _git_commit(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }
    content = json.dumps(known | facts, indent=2, ensure_ascii=False) + "\n"
    replace_file(Path(run_dir) / "run.json", content.encode())


def masked_command(argv: list[str]) -> list[str]:
    """argv with the values of secret names masked: `key=value`, `--key=value` and `--key value`."""
    masked = []
    for position, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        previous = argv[position - 1] if position else ""
        if previous.startswith("--") and "=" not in previous and not argument.startswith("-"):
            masked.append(_masked(previous, argument))
        else:
            masked.append(f"{name}={_masked(name, value)}" if equals else _masked("", argument))
    return masked


def without_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same nested mapping with the values of secret names masked."""
    return {
        name: without_secrets(value) if isinstance(value, Mapping) else _masked(name, value)
        for name, value in config.items()
    }


def _masked(name: str, value: Any) -> Any:
    if SECRET_NAME.search(name) and str(value).lower() not in NO_SECRETS:
        return MASK
    return PASSWORD_IN_URL.sub(f"{MASK}@", value) if isinstance(value, str) else value


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the checkout this code runs from, with "-dirty" if it was changed; None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # an installed package may lie inside somebody else's repository
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
