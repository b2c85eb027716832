"""The text of --help: how to start, the groups, and every key with its default and its meaning."""

from __future__ import annotations

import yaml

from sft.config.compose import CONFIG_DIR, CONFIG_NAME

HEAD = """\
Supervised fine-tuning of a language model, sharded over all GPUs.

  torchrun --standalone --nproc-per-node=8 -m sft.fsdp_sft_trainer key=value ...
  torchrun --standalone --nproc-per-node=2 -m sft.fsdp_sft_trainer +experiment=quickstart
  sft-train mine.yaml key=value ...        one rank; mine.yaml holds keys as below, the command line beats it

== Groups: files of values, chosen with group=file (presets with +experiment=file) ==
"""
KEYS = "== Keys: any of them can be overridden, for example optim.lr=2e-5 =="
TAIL = """\
--cfg job prints the configuration that these arguments compose, --hydra-help explains the other flags.
Names of other trainers are understood, too: docs/config.md."""


def help_text() -> str:
    """Return the text of --help: every key with its default and meaning, read from the files in conf/."""
    folders = sorted(path for path in CONFIG_DIR.iterdir() if path.is_dir())
    groups = [f"{folder.name}: {', '.join(sorted(file.stem for file in folder.glob('*.yaml')))}" for folder in folders]
    root = (CONFIG_DIR / f"{CONFIG_NAME}.yaml").read_text(encoding="utf-8")
    chosen = [(group, file) for entry in yaml.safe_load(root)["defaults"] if isinstance(entry, dict)
              for group, file in entry.items() if not group.startswith("override ")]  # fmt: skip
    own_keys = [line for line in root.splitlines() if "  # " in line and not line.startswith((" ", "#"))]
    sections = []
    for group, file in chosen:
        text = (CONFIG_DIR / group / f"{file}.yaml").read_text(encoding="utf-8")
        sections.append(f"{group}:\n" + "".join(f"  {line}".rstrip() + "\n" for line in text.splitlines()))
    return "\n".join([HEAD, *groups, "", KEYS, "", *sections, *own_keys, "", TAIL])
