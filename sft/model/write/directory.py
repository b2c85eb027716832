"""A run's model -> a Hugging Face directory that opens like the model it came from.

Same names, shapes and dtypes as the source, same config, tokenizer files byte for byte; only the numbers changed,
and the stop tokens that were trained are in generation_config.json. Adapters are merged into the weights, and stand
beside them in lora_adapter/. Before anybody is told of it, what was written is read again and compared (check.py).
The final checkpoint holds the model; from there it is published in the run directory: moved in with config.json last,
so that a directory that has its config.json is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sft.files import link_weights, sync_directory, sync_tree
from sft.model.names import has_adapters
from sft.model.write.check import check
from sft.model.write.side_files import write_side_files
from sft.model.write.weights import Gather, write_weights
from sft.parallel.world import on_main_rank

ADAPTER_DIR, ASIDE = "lora_adapter", ".export.partial"


@dataclass(frozen=True)
class Speech:
    """How the model was spoken to in training, and so must be afterwards."""

    tokenizer: Any  # as trained with
    stop_token_ids: Sequence[int]
    chat_template: str | None = None  # the template trained with, where it is not the tokenizer's own
    new_tokens: Mapping[str, int] = field(default_factory=dict)  # special tokens that the source's tokenizer lacks
    template_options: Mapping[str, Any] = field(default_factory=dict)  # what the template was rendered with
    trust_remote_code: bool = False


def export(
    model: PreTrainedModel,
    source: Path,
    target: Path,
    *,
    speech: Speech,
    is_main: bool,
    gather: Gather | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the trained model into `target`, a new directory. Every rank calls it; the main one writes.

    source: the directory the model was loaded from. gather: where the weights are; None: in the model. dtype: of the
    weights; None: the source's. Raises InputError where there is no room, or where what was written is not the model.
    """
    on_main_rank(f"writing {target}", lambda: target.mkdir(parents=True))
    left_out = write_weights(model, source, target, write=is_main, gather=gather, dtype=dtype)
    if has_adapters(model):
        from sft.model.lora import save_adapter

        save_adapter(model, target / ADAPTER_DIR, write=is_main)

    def complete() -> None:
        write_side_files(
            source,
            target,
            tokenizer=speech.tokenizer,
            stop_token_ids=speech.stop_token_ids,
            chat_template=speech.chat_template,
            new_tokens=speech.new_tokens,
            vocabulary=model.config.get_text_config().vocab_size,
            dtype=dtype,
        )
        check(
            target,
            source,
            tokenizer=speech.tokenizer,
            stop_token_ids=speech.stop_token_ids,
            template_options=speech.template_options,
            left_out=left_out,
            dtype=dtype,
            trust_remote_code=speech.trust_remote_code,
        )

    on_main_rank(f"writing {target}", complete)


def publish(exported: Path, run_dir: Path, *, keep: Sequence[str] = ()) -> None:
    """Make `run_dir` itself the model that lies in `exported`, whole or not at all. Every rank calls it.

    Weights are linked, not copied, where the file system can: they are on the disk once. All of it is on the disk
    when this returns, so that what is said of it afterwards is true after a power cut as well.
    keep: files that stay as they are where they are there already
    """

    def move_in() -> None:
        aside = run_dir / ASIDE
        shutil.rmtree(aside, ignore_errors=True)
        try:
            stays = [name for name in keep if (run_dir / name).is_file()]
            shutil.copytree(exported, aside, copy_function=link_weights, ignore=lambda _, names: stays)
            sync_tree(aside)
        except (OSError, shutil.Error):  # give the space back, where the disk is full
            shutil.rmtree(aside, ignore_errors=True)
            raise
        _move_in(aside, run_dir)

    on_main_rank(f"writing the model into {run_dir}", move_in)


def _move_in(aside: Path, target: Path) -> None:
    (target / "config.json").unlink(missing_ok=True)  # from here until the last move, target is no model
    sync_directory(target)
    for stale in [*target.glob("*.safetensors"), target / "model.safetensors.index.json"]:
        stale.unlink(missing_ok=True)
    subdirectories = {path.name for path in aside.iterdir() if path.is_dir()}  # which no rename can replace
    for name in {ADAPTER_DIR, *subdirectories}:
        shutil.rmtree(target / name, ignore_errors=True)
    for path in [path for path in aside.iterdir() if path.name != "config.json"]:
        path.rename(target / path.name)
    sync_directory(target)
    (aside / "config.json").rename(target / "config.json")
    aside.rmdir()
    sync_directory(target)
