"""Take the keys of this command alone (`+evaluate.generate=true`), and drop those that only training reads."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from sft.config import ConfigError, options
from sft.config.checks.packages import is_importable
from sft.config.compose import key_of
from sft.config.foreign import ALIASES
from sft.config.mappings import as_overrides, is_file_of_values

MODEL = "model.partial_pretrain"

with suppress(FileNotFoundError):  # nothing takes temporary files: `cli` says so
    tempfile.gettempdir()
NOT_READ = {
    "data.train_files": f"'{__file__}'",  # rows of training may be gone; the door wants a file that is there
    "data.mixture": "null",
    "data.curriculum": "null",
    "model.fsdp_config.dp_replicate": "1",  # copies save the traffic of gradients, and there are none
    # The run directory is the model here.
    "trainer.default_local_dir": str(Path(tempfile.tempdir or "/tmp") / "sft_evaluate"),
    "trainer.resume_mode": "auto",
    "trainer.resume_from_path": "null",
    "trainer.init_from_checkpoint": "null",
    "trainer.early_stop_metric": "null",
    "trainer.save_best": "false",
    "trainer.load_best_at_end": "false",
    "trainer.hub_model_id": "null",  # else it would ask for a login
    "trainer.hub_dry_run_dir": "null",
}
"""Keys that only training reads, with what they are set to, so that the same overrides may be given as there."""


def _names(value: Any) -> Any:
    """Read `[gsm8k,ifeval]` or `gsm8k`, as Hydra writes lists."""
    return (
        tuple(name.strip() for name in value.strip("[]").split(",") if name.strip())
        if isinstance(value, str)
        else value
    )


@dataclass(frozen=True)
class Options:
    generate: Annotated[bool, Field(description="true: let the model answer every row, and compare")] = False
    max_new_tokens: Annotated[int, Field(ge=1, description="tokens of an answer at most")] = 256
    batch_size: Annotated[int, Field(ge=1, description="prompts that a rank answers at a time")] = 16
    out: Annotated[str | None, Field(description="file for every prompt, answer and verdict as JSONL")] = None
    metrics: Annotated[str | None, Field(description="file for the numbers as JSON")] = None
    harness: Annotated[
        tuple[str, ...] | None,
        BeforeValidator(_names),
        Field(description="tasks of lm-evaluation-harness, such as [gsm8k,ifeval] (the extra harness)"),
    ] = None
    harness_path: Annotated[str | None, Field(description="directory with YAML files of tasks of your own")] = None
    harness_limit: Annotated[int | None, Field(ge=1, description="rows of each task; null: all")] = None


def take_options(arguments: Sequence[str]) -> tuple[Options, list[str]]:
    """Return (the keys `+evaluate.*`, the overrides that evaluation reads). Raises ConfigError with all problems."""
    taken, rest = options.take_options(arguments, Options, "evaluate", files=("out", "metrics"))
    if taken.out and not taken.generate:
        raise ConfigError([f"evaluate.out={taken.out} is for answers, which evaluate.generate=false makes none of."])
    if taken.harness and not is_importable("lm_eval"):
        raise ConfigError(
            [f"evaluate.harness={','.join(taken.harness)} needs lm-eval, which is not installed: pip install lm-eval."]
        )
    runs = [text for text in rest if is_file_of_values(text) and Path(text).is_dir()]
    if runs and MODEL not in map(key_of, rest):  # a run directory is its model, too
        rest = [*rest, *as_overrides({MODEL: runs[-1]})]
    kept = [text for text in rest if ALIASES.get(key_of(text), key_of(text)) not in NOT_READ]
    if MODEL in map(key_of, kept):  # the trained one, beside which the base model may stand under another name
        kept = [text for text in kept if ALIASES.get(key_of(text)) != MODEL]
    return taken, [*kept, *(f"{key}={value}" for key, value in NOT_READ.items())]


def help_text() -> str:
    """Return the help text of the keys `+evaluate.*`: one per line, with defaults."""
    return options.help_text(Options, "evaluate")
