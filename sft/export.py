"""Sharded weights -> a Hugging Face directory that opens like the model it came from.

Same names, shapes and dtypes as the source, same config, tokenizer files byte for byte; only the numbers changed,
and the stop tokens that were trained are in generation_config.json. Adapters are merged into the weights, and stand
beside them in lora_adapter/. One tensor at a time is whole on rank 0, one output file at a time in its memory. The
final checkpoint holds the model; from there it is published in the run directory: moved in with config.json last, so
that a directory that has its config.json is complete.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedModel

from sft.distributed import World, on_main_rank
from sft.files import link_weights
from sft.model.load import has_adapters, named_weights, weight_files
from sft.shards import StoredTensors, whole_tensor

if TYPE_CHECKING:
    from sft.model.lora import Adapter

MAX_FILE_BYTES = 5 * 10**9
ADAPTER_DIR = "lora_adapter"
DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
COPIED = (
    "config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.model",
    "*.tiktoken",
    "*.py",
)


def export(
    model: PreTrainedModel,
    source: Path,
    target: Path,
    *,
    world: World,
    stop_token_ids: Sequence[int],
    chat_template: str | None,
    new_tokens: Mapping[str, int] | None = None,
) -> None:
    """Write the trained model into `target`, a new directory. Every rank calls it; rank 0 writes.

    source: the directory the model was loaded from. chat_template: the template trained with, where it is not
    the tokenizer's own. new_tokens: ids of the special tokens that the tokenizer of the source lacks.
    """

    def write_side_files() -> None:
        _copy_side_files(source, target)
        if new_tokens:
            _write_new_tokens(target, new_tokens)
            _write_vocab_size(target, model.config.get_text_config().vocab_size)
        if chat_template is not None:
            _write_chat_template(target, chat_template)
        _write_generation_config(source, target, stop_token_ids)
        _let_others_read(target)

    on_main_rank(f"writing {target}", lambda: target.mkdir(parents=True))
    _write_weights(model, source, target, write=world.is_main)
    if has_adapters(model):
        from sft.model.lora import save_adapter

        save_adapter(model, target / ADAPTER_DIR, write=world.is_main)
    on_main_rank(f"writing {target}", write_side_files)


def publish(exported: Path, run_dir: Path) -> None:
    """Make `run_dir` itself the model that lies in `exported`, whole or not at all. Every rank calls it.

    Weights are linked, not copied, where the file system can: they are on the disk once.
    """

    def move_in() -> None:
        aside = run_dir / ".export.partial"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(exported, aside, copy_function=link_weights)
        _move_in(aside, run_dir)

    on_main_rank(f"writing the model into {run_dir}", move_in)


def _write_weights(model: PreTrainedModel, source: Path, target: Path, *, write: bool) -> None:
    stored = StoredTensors.of_whole_tensors(weight_files(source))
    weights, adapters = named_weights(model), _adapters(model)
    # What LoRA froze is copied from the source, bit for bit; nobody has to gather it.
    changed = {n for n, w in weights.items() if n in adapters or w.requires_grad} if adapters else set(weights)
    if not changed <= stored.parts.keys():
        _write_renamed_weights(model, target)
        return

    def whole(name: str) -> torch.Tensor | None:
        """The tensor to write, where it is written. Every rank calls it."""
        if name in adapters:
            adapter = adapters[name]()
            return adapter.merged_into(stored.read(name)) if write else None
        if name in changed:
            return whole_tensor(weights[name], DTYPES[stored.dtypes[name]])
        return stored.read(name) if write else None

    sizes = {
        name: math.prod(weights[name].shape if name in weights else stored.shape(name))
        * DTYPES[stored.dtypes[name]].itemsize
        for name in (stored.parts if adapters else weights)
    }
    files = list(_pack(sizes, MAX_FILE_BYTES))
    weight_map = {}
    for number, names in enumerate(files, start=1):
        file = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {}
        for name in names:
            tensor = whole(name)
            if write and tensor is not None:
                tensors[name] = tensor
        on_main_rank(f"writing {target / file}", partial(save_file, tensors, target / file, metadata={"format": "pt"}))
        weight_map |= dict.fromkeys(names, file)
    if write and len(files) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_renamed_weights(model: PreTrainedModel, target: Path) -> None:
    """For a model whose weights transformers renames while loading: only it knows the way back."""
    whole = {name: whole_tensor(weight, weight.dtype) for name, weight in named_weights(model).items()}
    for name, gather in _adapters(model).items():
        whole[name] = gather().merged_into(whole[name])
    save = partial(model.save_pretrained, target, state_dict=whole, max_shard_size=MAX_FILE_BYTES)
    on_main_rank(f"writing {target}", save)


def _adapters(model: PreTrainedModel) -> dict[str, Callable[[], Adapter]]:
    if not has_adapters(model):
        return {}
    from sft.model import lora  # needs peft, which other runs do not

    return lora.adapters(model)


def _pack(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    """Names in order, in groups of at most `limit` bytes."""
    group: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if group and filled + size > limit:
            yield group
            group, filled = [], 0
        group.append(name)
        filled += size
    yield group


def _copy_side_files(source: Path, target: Path) -> None:
    for pattern in COPIED:
        for path in source.glob(pattern):
            if path.is_file() and not (target / path.name).exists():
                shutil.copyfile(path, target / path.name)


def _write_chat_template(target: Path, template: str) -> None:
    """Both places where loaders look: the file (new) and the tokenizer config (old)."""
    (target / "chat_template.jinja").write_text(template)
    config_file = target / "tokenizer_config.json"
    config = json.loads(config_file.read_text()) if config_file.is_file() else {}
    config_file.write_text(json.dumps(config | {"chat_template": template}, indent=2, ensure_ascii=False) + "\n")


def _write_new_tokens(target: Path, new_tokens: Mapping[str, int]) -> None:
    """Into the tokenizer's own files, so that everything else in them stays as it was."""
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


def _write_generation_config(source: Path, target: Path, stop_token_ids: Sequence[int]) -> None:
    """The source's generation settings, stopping also at every token that was trained to end a turn."""
    path = source / "generation_config.json"
    settings: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    config = json.loads((source / "config.json").read_text())
    known = settings.get("eos_token_id", config.get("eos_token_id"))
    known = known if isinstance(known, list) else [known]
    stops = [token_id for token_id in (*known, *stop_token_ids) if token_id is not None]
    settings["eos_token_id"] = list(dict.fromkeys(stops))
    (target / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _let_others_read(directory: Path) -> None:
    """safetensors writes files that only their owner may read."""
    umask = os.umask(0)
    os.umask(umask)
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)


def _move_in(aside: Path, target: Path) -> None:
    (target / "config.json").unlink(missing_ok=True)  # from here until the last move, target is no model
    for stale in [*target.glob("*.safetensors"), target / "model.safetensors.index.json"]:
        stale.unlink(missing_ok=True)
    shutil.rmtree(target / ADAPTER_DIR, ignore_errors=True)
    for path in sorted(aside.iterdir(), key=lambda path: path.name == "config.json"):
        path.rename(target / path.name)
    aside.rmdir()
