"""Which files of a data set belong to which split: as its README says, else by their names, as `datasets` reads them.

The same rules hold for a data set of the hub and for a directory here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.data.rows.readers import READERS
from sft.data.rows.unpacked import COMPRESSED
from sft.errors import InputError

KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in KEYWORDS.items() for word in words}
_KEYWORD = re.compile(rf"(?:^|(?<=[-._ =]))({'|'.join(_SPLIT_OF)})(?=[-._ \d]|$)")
_SHARD = re.compile(r"([-._ ]?\d+(-of-\d+)?)+$")
_SUFFIXES = re.compile(rf"({'|'.join(map(re.escape, (*READERS, *COMPRESSED)))})+$")


@dataclass(frozen=True)
class Config:
    """A configuration that a README declares: patterns of paths by split."""

    name: str
    is_default: bool
    patterns: Mapping[str, tuple[str, ...]]


def canonical(split: str) -> str:
    """Return the name by which we know a split: "val" is validation, "train_gen" is itself."""
    return _SPLIT_OF.get(split, split)


def split_of(path: Path) -> str | None:
    """Return the split that a path within a data set names, None if it names none.

    data/train-00000-of-00002.parquet, Train/0.jsonl, more_train.jsonl, split=train/0.parquet -> "train";
    train_gen-0.jsonl -> "train_gen"
    """
    *folders, name = path.as_posix().lower().split("/")
    for part in (_SUFFIXES.sub("", name), *reversed(folders)):
        bare = _SHARD.sub("", part)
        if found := _KEYWORD.search(bare):
            rest = bare[found.end() :]
            return _SPLIT_OF[found[1]] + (rest if any(map(str.isalpha, rest)) else "")
    return None


def by_split(paths: Sequence[Path]) -> dict[str | None, list[Path]]:
    """Return the paths of each split, in their order."""
    found: dict[str | None, list[Path]] = {}
    for path in paths:
        found.setdefault(split_of(path), []).append(path)
    return found


def configs_in(readme: str) -> list[Config]:
    """Return the configurations that the YAML at the head of a README declares; none where it declares none."""
    import yaml

    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", readme, re.DOTALL)
    try:
        stated = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return []  # the hub does not read it either
    configs = stated.get("configs") if isinstance(stated, dict) else None
    return [_config(config) for config in configs or () if isinstance(config, dict) and config.get("data_files")]


def files_of_config(
    configs: Sequence[Config], paths: Sequence[Path], name: str, wanted: str, split: str | None
) -> list[Path]:
    """Return the files of a split of the configuration that is wanted ("": the only one, or the default).

    Raises InputError where there is no such configuration or split, or where several could be meant.
    """
    fitting = [config for config in configs if config.name == wanted] if wanted else list(configs)
    if not wanted and len(fitting) > 1:
        fitting = [config for config in fitting if config.is_default]
    if len(fitting) != 1:
        names = sorted(config.name for config in configs)
        raise InputError(
            f"{name} has several configurations ({', '.join(map(repr, names[:12]))}); choose one: {name}/{names[-1]}."
        )
    (config,) = fitting
    chosen = one_of(config.patterns, name, split)
    patterns = config.patterns[chosen]
    found = [path for path in paths if any(_fits(path, pattern) for pattern in patterns)]
    if not found:
        raise InputError(
            f"{name}: no file fits {' or '.join(patterns)}, which its README.md says the split {chosen} is."
        )
    return found


def _fits(path: Path, pattern: str) -> bool:
    """Return True if a path fits a glob: `*` stays in its folder, `**/` is any folders or none."""
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens: list[str] = re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", pattern.removeprefix("./"))
    spelt = [wild.get(token) or (token if len(token) > 2 else re.escape(token)) for token in tokens]
    return re.fullmatch("".join(spelt), path.as_posix()) is not None


def one_of(splits: Mapping[str, Any], name: str, split: str | None) -> str:
    """Return the split that is meant: the one that is named, else train. Raises InputError with those there are."""
    known = sorted(splits)
    if split is not None:
        for candidate in (split, canonical(split)):
            if candidate in splits:
                return candidate
        raise InputError(f"{name} has no split {split}; it has {', '.join(known)}.")
    if "train" in splits:
        return "train"
    training = [candidate for candidate in known if candidate.startswith("train")] or known
    if len(training) == 1 and training[0].startswith("train"):
        return training[0]
    raise InputError(f"{name} has no split train; name one of {training}: {name}:{training[0]}.")


def _config(stated: Mapping[str, Any]) -> Config:
    files, base = stated["data_files"], str(stated.get("data_dir") or "").strip("/")
    entries = files if isinstance(files, list) else [files]
    patterns: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        split = str(entry.get("split", "train")) if isinstance(entry, dict) else "train"
        paths = entry.get("path", ()) if isinstance(entry, dict) else entry
        paths = [paths] if isinstance(paths, str) else list(paths)
        joined = tuple(f"{base}/{path}" if base else str(path) for path in paths)
        patterns[split] = patterns.get(split, ()) + joined
    name = str(stated.get("config_name", "default"))
    return Config(name, bool(stated.get("default")) or name == "default", patterns)
