"""What lies beside the weights: config, tokenizer, chat template, generation settings, the model's own code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from sft.model.dequantise import drop_quantisation
from sft.model.tokenizer import FILE_CLASS, takes_file_as_it_is

COPIED = (
    "config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*processor_config.json",
    "additional_chat_templates/*.jinja",
    "*.model",
    "*.tiktoken",
    "*.py",
)


def write_side_files(
    source: Path,
    target: Path,
    *,
    tokenizer: Any,
    stop_token_ids: Sequence[int],
    chat_template: str | None,
    new_tokens: Mapping[str, int],
    vocabulary: int,
    dtype: torch.dtype | None,
) -> None:
    """Copy the files beside the weights from `source` to `target`, changing only what training changed.

    tokenizer: the one trained with. chat_template: in place of the source's own. new_tokens: ids of the special tokens
    that its tokenizer lacks, and vocabulary: the rows of the embeddings, which may have grown for them. dtype: of the
    weights, if not the source's.
    """
    copy_side_files(source, target)
    drop_quantisation(target)
    _write_tokenizer_class(target, tokenizer)
    if new_tokens:
        _write_new_tokens(target, new_tokens)
        _write_vocab_size(target, vocabulary)
    if chat_template is not None:
        _write_chat_template(target, chat_template)
    if dtype is not None:
        set_dtype(target, dtype)
    _write_generation_config(source, target, stop_token_ids)


def copy_side_files(source: Path, target: Path) -> None:
    """Copy config, tokenizer, template and code, byte for byte."""
    for path in _copied(source):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)


def side_file_bytes(source: Path) -> int:
    """Return the bytes that `copy_side_files` writes."""
    return sum(path.stat().st_size for path in _copied(source))


def side_file_names(source: Path) -> set[str]:
    """Return the paths below a model directory like `source` that `write_side_files` writes, or may write."""
    copied = {path.relative_to(source).as_posix() for path in _copied(source)}
    return copied | {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"}


def _copied(source: Path) -> set[Path]:
    return {path for pattern in COPIED for path in source.glob(pattern) if path.is_file()}


def _write_tokenizer_class(target: Path, tokenizer: Any) -> None:
    """Let everybody open the tokenizer as it was trained with, where the source's files name another class for it."""
    if not takes_file_as_it_is(tokenizer):
        return
    file, config_file = target / "tokenizer.json", target / "tokenizer_config.json"
    is_made = not file.is_file()  # from a tokenizer.model
    if is_made:
        tokenizer.save_pretrained(target)
    config = json.loads(config_file.read_text()) if config_file.is_file() else {}
    if is_made or config.get("tokenizer_class") not in (None, FILE_CLASS, type(tokenizer).__name__):
        config |= {"tokenizer_class": FILE_CLASS}
        config_file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _write_chat_template(target: Path, template: str) -> None:
    """Write the template to both places where loaders look: its own file (new) and the tokenizer config (old)."""
    (target / "chat_template.jinja").write_text(template)
    config_file = target / "tokenizer_config.json"
    config = json.loads(config_file.read_text()) if config_file.is_file() else {}
    config_file.write_text(json.dumps(config | {"chat_template": template}, indent=2, ensure_ascii=False) + "\n")


def _write_new_tokens(target: Path, new_tokens: Mapping[str, int]) -> None:
    """Add these tokens to the tokenizer's own files, so that everything else in them stays as it was."""
    file, config_file = target / "tokenizer.json", target / "tokenizer_config.json"
    if not file.is_file():
        tokenizer = AutoTokenizer.from_pretrained(target)
        tokenizer.add_tokens(list(new_tokens), special_tokens=True)
        tokenizer.save_pretrained(target)
        return
    tokenizer = json.loads(file.read_text())
    form = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    others = [token for token in tokenizer["added_tokens"] if token["content"] not in new_tokens]
    added = [{"id": token_id, "content": token} | form for token, token_id in new_tokens.items()]
    tokenizer["added_tokens"] = sorted(others + added, key=lambda token: token["id"])
    file.write_text(json.dumps(tokenizer, indent=2, ensure_ascii=False) + "\n")
    config = json.loads(config_file.read_text()) if config_file.is_file() else {}
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] |= {str(n): {"content": token} | form for token, n in new_tokens.items()}
        config_file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _write_vocab_size(target: Path, rows: int) -> None:
    file = target / "config.json"
    config = json.loads(file.read_text())
    holder = config if "vocab_size" in config else config.get("text_config", config)
    holder["vocab_size"] = rows
    file.write_text(json.dumps(config, indent=2) + "\n")


def set_dtype(target: Path, dtype: torch.dtype) -> None:
    """Let config.json say in which dtype the weights are."""
    file = target / "config.json"
    config = json.loads(file.read_text())
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(dtype).removeprefix("torch.")
    file.write_text(json.dumps(config, indent=2) + "\n")


def stop_tokens_of(directory: Path) -> list[int]:
    """Return the tokens at which generation_config.json, else config.json, lets generation stop."""
    for name in ("generation_config.json", "config.json"):
        file = directory / name
        if file.is_file() and (stops := json.loads(file.read_text()).get("eos_token_id")) is not None:
            return stops if isinstance(stops, list) else [stops]
    return []


def _write_generation_config(source: Path, target: Path, stop_token_ids: Sequence[int]) -> None:
    """Write the source's generation settings, stopping also at every token that was trained to end a turn."""
    path = source / "generation_config.json"
    settings: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    settings["eos_token_id"] = list(dict.fromkeys([*stop_tokens_of(source), *stop_token_ids]))
    (target / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")
