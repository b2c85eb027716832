"""Check that the optional packages a configuration asks for are installed, before rows are read."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from sft.config.problems import shown
from sft.config.schema import SftConfig

WITHOUT_PACKAGE = ("console", "jsonl")


def package_problems(config: SftConfig) -> Iterator[str]:
    """List the packages that keys ask for and that are not installed, each with the command that installs it."""
    wanted = {f"trainer.logger={name}": name for name in config.trainer.logger if name not in WITHOUT_PACKAGE}
    if config.model.lora_rank:
        wanted[f"model.lora_rank={shown(config.model.lora_rank)}"] = "peft"
    if config.model.base_dtype == "nf4":
        wanted["model.base_dtype=nf4"] = "bitsandbytes"
    if config.optim.name == "adamw_8bit":
        wanted["optim.name=adamw_8bit"] = "bitsandbytes"
    for key, package in wanted.items():
        if not is_importable(package):
            yield f"{key} needs {package}, which is not installed: pip install {package}, or leave it out."


def is_importable(module: str) -> bool:
    """Return True if a module can be found; nothing of it is imported but the packages around it."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package is missing; a malformed name
        return False
