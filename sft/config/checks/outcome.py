"""Check the keys about the outcome of a run: comparing it by validations, pushing its model to the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sft.config.problems import from_here, shown
from sft.config.schema import SftConfig, TrainerConfig

MEASURED = ("val/loss", "val/perplexity", "val/token_accuracy")
"""By every validation."""


def judgement_problems(config: SftConfig) -> Iterator[str]:
    """List problems of early stopping and best-model selection, for example without validation data."""
    trainer = config.trainer
    asked = [f"trainer.early_stop_metric={trainer.early_stop_metric}"] if trainer.early_stop_metric else []
    asked += ["trainer.save_best=true"] if trainer.save_best else []
    if asked and not config.data.has_val:
        yield f"{' and '.join(asked)} needs validations, and data.val_files=null; give some rows, or leave it out."
    elif asked and trainer.test_freq == 0:
        yield f"{' and '.join(asked)} needs validations, and trainer.test_freq=0 makes none; set -1 or a number."
    yield from _task_metric_problems(config)
    if trainer.load_best_at_end and not trainer.save_best:
        yield "trainer.load_best_at_end=true needs trainer.save_best=true, which keeps the best model."


def _task_metric_problems(config: SftConfig) -> Iterator[str]:
    trainer = config.trainer
    known = (*MEASURED, *filter(None, [trainer.task_metric]))
    watched = trainer.early_stop_metric
    if watched is not None and watched not in known and not watched.startswith("val/loss/"):
        way_out = "" if trainer.task_metric else "; or set trainer.generate_metric, which measures more"
        there = f"{', '.join(known)} or val/loss/<file> are"
        yield f"trainer.early_stop_metric={watched} is not measured: {there}{way_out}."
    if trainer.generate_metric is None:
        return
    asked = f"trainer.generate_metric={shown(trainer.generate_metric)}"
    if not config.data.val_files:
        yield f"{asked} asks rows of data.val_files, which is null: give rows that are not trained, or leave it out."
    elif trainer.test_freq == 0:
        yield f"{asked} is measured in validations, and trainer.test_freq=0 makes none; set -1 or a number."
    if trainer.task_metric in MEASURED:
        yield f"{asked}: {trainer.task_metric} is measured without it; give the function another name."
    file = trainer.generate_metric.rpartition(":")[0]
    if file and not Path(file).is_file():
        yield f"{asked}: there is no file {file}{from_here(Path(file))}; write file.py:function, or exact_match."


def hub_problems(trainer: TrainerConfig) -> Iterator[str]:
    """List what would make the push to the hub fail at the end of the run, as far as it can be known now."""
    hub_id, dry_run_dir = trainer.hub_model_id, trainer.hub_dry_run_dir
    if hub_id is None and dry_run_dir is not None:
        yield f"trainer.hub_dry_run_dir={shown(dry_run_dir)} would be ignored: trainer.hub_model_id=null; set the id."
    # Only the first rank pushes, and other nodes may have no login.
    if hub_id is None or dry_run_dir is not None or os.environ.get("RANK", "0") != "0":
        return
    from huggingface_hub import constants, get_token  # half a second, paid by those who push

    ways_out = "set trainer.hub_dry_run_dir to see what would be pushed, or leave the id out."
    if constants.HF_HUB_OFFLINE:
        yield f"trainer.hub_model_id={hub_id} cannot be pushed to: HF_HUB_OFFLINE is set; unset it, {ways_out}"
    elif get_token() is None:
        yield (
            f"trainer.hub_model_id={hub_id} needs a login, and there is no token: run `hf auth login`, or set "
            f"HF_TOKEN in the environment of the first node; or {ways_out}"
        )
