"""Keep the newest checkpoints in the run directory, and move or delete the others."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import get_args

from sft.checkpoint.ledger import reconcile
from sft.checkpoint.manifest import CheckpointError, has_model, has_state, read_manifest
from sft.files import RunDir, Unfinished, checkpoint_name, finished, remove_left_aside, step_of, unfinished
from sft.parallel.world import log, on_main_rank

PROMOTED = "promoted"
BEST = "best"
BEST_ASIDE = f".{BEST}.partial"
STAYS = (PROMOTED, ".lock")
"""What is no part of the run that `start_over` sets aside: products of their own, and who holds the directory."""


def start_over(run_dir: Path) -> None:
    """Move everything an earlier run left in `run_dir` into `superseded_<time>/`: nothing is mixed, nothing lost."""

    def move() -> None:
        if RunDir(run_dir).checkpoints():
            stays = [path for path in run_dir.iterdir() if path.name.startswith("superseded_") or path.name in STAYS]
            _move_aside(run_dir, [path for path in run_dir.iterdir() if path not in stays])

    on_main_rank(f"setting an earlier run in {run_dir} aside", move)


def forget_after(run_dir: Path, step: int) -> None:
    """Move the checkpoints beyond `step` into `superseded_<time>/`: from here on the run takes another way.

    Damaged, or of the way not taken: left in place they would pass for the newest ones, which the next resume takes
    and `retain` keeps.
    """

    def move() -> None:
        if later := [path for path in RunDir(run_dir).checkpoints() if step_of(path) > step]:
            _move_aside(run_dir, later)

    on_main_rank(f"setting checkpoints beyond step {step} of {run_dir} aside", move)


def retain(run_dir: Path, keep: int | None) -> list[Path]:
    """Take all but the newest `keep` checkpoints (None: keep all) out of the run; returns what is now to be deleted.

    The newest that can be resumed, the best, and those that were promoted always stay. What an interrupted save or
    deletion left behind is to be deleted as well.
    """
    checkpoints = RunDir(run_dir).checkpoints()
    if keep is not None:
        stays = {*checkpoints[-keep:], *_newest_with_state(checkpoints), *_chosen(run_dir)}
        for checkpoint in checkpoints:
            if checkpoint not in stays:
                # Renamed first: never half a checkpoint under its name.
                checkpoint.rename(unfinished(checkpoint, "deleted"))
    return [path for kind in get_args(Unfinished) for path in RunDir(run_dir).unfinished(kind)]


def delete(directories: list[Path]) -> None:
    """Delete what `retain` returned; what cannot be deleted is said, and is there again after the next checkpoint."""
    for directory in directories:
        try:
            shutil.rmtree(directory)
        except OSError as error:
            log.warning("%s is not needed any more and cannot be deleted: %s", directory, error)


def mark_best(run_dir: Path, step: int) -> None:
    """Let `best` point to the checkpoint of `step`. Every rank calls it."""
    on_main_rank(f"marking the best checkpoint of {run_dir}", lambda: _link_best(run_dir, step))


def mend_best(run_dir: Path, step: int, *, wanted: bool) -> None:
    """Let `best` point to the checkpoint of `step`, the best by now, where that has a model; never to nothing.

    What was marked may have been set aside since, and a kill may have come between a checkpoint and its mark.
    wanted: also where there is no mark yet.
    """

    def mend() -> None:
        best, chosen = run_dir / BEST, RunDir(run_dir).checkpoint(step)
        if (wanted or best.is_symlink()) and _has_model(chosen):
            _link_best(run_dir, step)
        elif best.is_symlink() and not best.exists():
            best.unlink()

    on_main_rank(f"looking where {run_dir / BEST} leads", mend)


def prepare(run_dir: Path) -> None:
    """Put right what a run that was killed may have left: a checkpoint half replaced, a line missing in the ledger,
    files that were to replace others.
    """

    def restore() -> None:
        for replaced in RunDir(run_dir).unfinished("replaced"):
            final = finished(replaced)
            if not final.exists():
                replaced.rename(final)
        reconcile(run_dir)
        remove_left_aside(run_dir)
        (run_dir / BEST_ASIDE).unlink(missing_ok=True)

    on_main_rank(f"looking for what an interrupted save left in {run_dir}", restore)


def _link_best(run_dir: Path, step: int) -> None:
    aside = run_dir / BEST_ASIDE
    aside.unlink(missing_ok=True)
    aside.symlink_to(checkpoint_name(step))
    aside.replace(run_dir / BEST)


def _has_model(checkpoint: Path) -> bool:
    try:
        return has_model(read_manifest(checkpoint))
    except CheckpointError:
        return False


def _newest_with_state(checkpoints: list[Path]) -> list[Path]:
    for checkpoint in reversed(checkpoints):
        try:
            if has_state(read_manifest(checkpoint)):
                return [checkpoint]
        except CheckpointError:
            continue
    return []


def _chosen(run_dir: Path) -> set[Path]:
    """Return the checkpoint that `best` points to, and those that promotions were made of."""
    chosen = {run_dir / (run_dir / BEST).resolve().name} if (run_dir / BEST).is_symlink() else set()
    for promotion in run_dir.glob(f"{PROMOTED}/*/promotion.json"):
        try:
            chosen.add(run_dir / json.loads(promotion.read_text())["checkpoint"])
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("%s cannot be read; the checkpoint it was made of may be deleted", promotion)
    return chosen


def _move_aside(run_dir: Path, paths: list[Path]) -> None:
    first = f"superseded_{datetime.now():%Y%m%dT%H%M%S}"
    names = chain([first], (f"{first}_{number}" for number in count(2)))  # clocks are put back, and seconds are long
    aside = next(path for name in names if not (path := run_dir / name).exists())
    aside.mkdir()
    for path in paths:
        path.rename(aside / path.name)
    log.info("%s: %s moved to %s", run_dir, ", ".join(sorted(path.name for path in paths)), aside.name)
