"""Say what differs between a checkpoint and the run that goes on from it: by key, old and new value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sft.config.mappings import dotted

HASHES = {
    "data": "the rows, or how they become tokens: files, tokenizer or template have other contents",
    "model": "the files of model.partial_pretrain have other contents",
    "template": "the chat template has another text, or other variables",
}
"""Fingerprints that are hashes, which tell a reader nothing, and what it means that one differs."""

SETTINGS_OF = {"data": "data.", "model": "model.partial_pretrain", "template": "data.chat_template"}
TOKENS = "tokens"
"""The fingerprint of the samples alone: where it is equal, `data` may differ."""


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, str]:
    """Return a line for each key of the fingerprint that differs; none for `data` where the tokens are the same."""
    same_tokens = TOKENS in theirs and theirs[TOKENS] == ours.get(TOKENS)
    passed_over = {TOKENS, "data"} if same_tokens else {TOKENS}
    theirs, ours = dotted(theirs), dotted(ours)
    return {
        key: f"{key}: the checkpoint has {theirs.get(key)!r}, this run {ours.get(key)!r}"
        for key in sorted((theirs.keys() | ours.keys()) - passed_over)
        if theirs.get(key) != ours.get(key)
    }


def explained(differs: Mapping[str, str], changed: Mapping[str, str]) -> list[str]:
    """Return what differs with the settings that made it so in place of hashes. changed: of `changes`."""
    lines = []
    for key, line in differs.items():
        if key not in HASHES:
            lines.append(line)
            continue
        settings = [told for name, told in changed.items() if name.startswith(SETTINGS_OF[key])]
        lines += settings or [f"{key}: {HASHES[key]}"]
    return list(dict.fromkeys(lines))


def changes(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, str]:
    """Return "optim.lr: 1e-05 -> 0.001" for each setting that differs, by its key. Nothing is known of older ones."""
    ours = json.loads(json.dumps(ours, default=str))  # as the manifest keeps them: tuples are lists
    return {
        key: f"{key}: {_shown(theirs[key])} -> {_shown(ours[key])}"
        for key in ours
        if key in theirs and theirs[key] != ours[key]
    }


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 100 else f"{text[:99]}…"
