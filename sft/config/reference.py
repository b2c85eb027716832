"""Write the page docs/config.md from the YAML files (values, comments), the schema and the tables of names.

python -m sft.config > docs/config.md
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from sft.config.compose import CONFIG_DIR, CONFIG_NAME
from sft.config.expectations import expectations
from sft.config.foreign import ALIASES, FOREIGN

HEAD = """\
# Configuration

Every key, its default and its meaning. Generated from `conf/` by
`python -m sft.config > docs/config.md`: edit the comments there, not this page.

A key is set on the command line (`optim.lr=2e-5`), in a preset (`+experiment=quickstart`), or in Python
(`load_config(["+experiment=quickstart", "optim.lr=2e-5"])`). `--cfg job` prints what a command line composes.
"""
KEY_LINE = re.compile(r"(?P<indent> *)(?P<name>\w+):(?P<value>.*?)(?:  # (?P<meaning>.*))?$")


def reference() -> str:
    """Return the whole page as markdown."""
    accepts = expectations()
    parts = [HEAD]
    for title, rows in (*_groups(), ("top level", list(_keys(CONFIG_DIR / f"{CONFIG_NAME}.yaml", "")))):
        parts.append(f"\n## {title}\n\n| key | default | accepts | meaning |\n|---|---|---|---|\n")
        parts += [
            f"| `{key}` | `{default}` | {accepts[key]} | {meaning} |\n"
            for key, default, meaning in rows
            if key in accepts
        ]
    parts.append("\n## Aliases\n\nOther names for a key; each works, with a warning.\n\n| name | key |\n|---|---|\n")
    parts += [f"| `{alias}` | `{key}` |\n" for alias, key in ALIASES.items()]
    parts.append(
        "| `grad_accum`, `gradient_accumulation_steps` | `data.micro_batch_size_per_gpu` "
        "= train_batch_size / (dp x accumulation) |\n"
    )
    parts.append(
        "\n## Keys of other trainers\n\nEach is read as a key of ours, or says why it is not. "
        "What is switched off passes with a warning.\n\n| key | |\n|---|---|\n"
    )
    parts += [f"| `{key}` | {entry.reason} |\n" for key, entry in FOREIGN.items()]
    return "".join(parts)


def _groups() -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    defaults = yaml.safe_load((CONFIG_DIR / f"{CONFIG_NAME}.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = {group: file for entry in defaults if isinstance(entry, dict) for group, file in entry.items()}
    for group, file in chosen.items():
        if not group.startswith("override "):
            yield group, list(_keys(CONFIG_DIR / group / f"{file}.yaml", f"{group}."))


def _keys(path: Path, prefix: str) -> Iterator[tuple[str, str, str]]:
    """Yield (dotted key, value as written, comment behind it) of every line `key: value  # comment`."""
    sections: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not (match := KEY_LINE.fullmatch(line)):
            continue
        depth = len(match["indent"])
        sections = [(outer, name) for outer, name in sections if outer < depth]
        sections.append((depth, match["name"]))
        yield prefix + ".".join(name for _, name in sections), match["value"].strip(), match["meaning"] or ""
