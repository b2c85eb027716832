"""Whom bench_train.py measures ours against: their settings, and the Python that runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from bench_material import make_venv

RIVAL_SETTINGS = {
    "trl_default": {"tuned": False, "packing": True},
    "trl_packed": {"tuned": True, "packing": True},
    "trl_padded": {"tuned": True, "packing": False},
}
PACKAGES = ("trl", "torch", "transformers", "datasets", "peft")


def find_rivals(given: Path | None, venv: Path) -> Path:
    """Return the Python that has TRL: the one given, else this one, else that of an environment that pip makes."""
    if given is None and find_spec("trl") is not None:
        return Path(sys.executable)
    return given or make_venv(venv)


def versions_of(python: Path) -> dict[str, str]:
    """Return what the rivals run with, of what is installed there."""
    installed = "{(d.metadata['Name'] or '').lower(): d.version for d in importlib.metadata.distributions()}"
    script = f"import importlib.metadata, json; print(json.dumps({installed}))"
    done = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=True)
    return {name: version for name, version in json.loads(done.stdout).items() if name in PACKAGES}


def fastest_attention(python: Path) -> str:
    """Return the attention that the rivals are tuned with: flash-attn where they have it and can use it."""
    found = subprocess.run([str(python), "-c", "import flash_attn"], capture_output=True).returncode == 0
    return "flash_attention_2" if found and torch.cuda.is_available() else "sdpa"
