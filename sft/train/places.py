"""Refuse to start where something stands in the way of what the run writes, be it at its end.

A pipe that is opened for writing holds the run for ever, and a directory cannot be replaced by a file.
"""

from __future__ import annotations

from pathlib import Path

from sft.checkpoint.ledger import LEDGER
from sft.checkpoint.lock import LOCK
from sft.checkpoint.tidy import BEST
from sft.config import SftConfig
from sft.config.visible import visible_line
from sft.errors import InputError
from sft.files import in_the_way
from sft.model.write.directory import ADAPTER_DIR, ASIDE
from sft.model.write.side_files import side_file_names
from sft.track.card import CARD, CURVE
from sft.track.facts import RUN_JSON
from sft.track.run_log import LOG, METRICS, SAMPLES, SKIPPED_STEPS
from sft.train.profile import PROFILE
from sft.train.report import CONFIG
from sft.train.requests import SAVE_NOW, STOP_NOW
from sft.train.result import RESULT

KEPT = {LOCK, LEDGER, METRICS, LOG, SKIPPED_STEPS, PROFILE}
REPLACED = {CONFIG, RUN_JSON, RESULT, CARD, CURVE, SAMPLES, BEST, SAVE_NOW, STOP_NOW, ADAPTER_DIR, ASIDE}
DIRECTORIES = {PROFILE, ADAPTER_DIR, ASIDE}


def refuse_what_is_in_the_way(config: SftConfig) -> None:
    """Raise InputError, before anything is read, for whatever the run could not write its files over."""
    run_dir, source = Path(config.trainer.default_local_dir), Path(config.model.partial_pretrain)
    side_files = [Path(name).parts for name in side_file_names(source)]  # of a model of the hub, those that all have
    directories = DIRECTORIES | {parts[0] for parts in side_files if len(parts) > 1}
    stale = {path.name for path in run_dir.glob("*.safetensors*")}
    complaints = {
        name: in_the_way(run_dir / name, is_directory=name in directories, is_kept=name in KEPT)
        for name in sorted(KEPT | REPLACED | stale | {parts[0] for parts in side_files})
    }
    if (run_dir / LEDGER).is_dir():
        del complaints[LEDGER]  # it lists what is on the disk anyway: the run goes on without it, and says so
    if found := [f"{visible_line(name)} {complaint}" for name, complaint in complaints.items() if complaint]:
        raise InputError(
            f"trainer.default_local_dir={run_dir}: {'; '.join(found)}, where the run writes its own. Move that away, "
            "or set another trainer.default_local_dir."
        )
