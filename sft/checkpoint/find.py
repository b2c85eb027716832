"""Find the newest checkpoint that can be resumed, by reading every byte again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sft.checkpoint.manifest import (
    MANIFEST,
    MANIFEST_SHA256,
    MODEL_DIR,
    CheckpointError,
    has_state,
    problem_of_file,
    read_manifest,
)
from sft.files import RunDir
from sft.parallel.world import World, log, on_every_rank, on_main_rank


def newest(run_dir: Path, *, world: World) -> Path | None:
    """Return the newest checkpoint with state whose files are all as they were written; None if there is none.

    Every rank calls it and checks its share of the files. Rejected checkpoints are named with the reason; those that
    are only a model (SAMPLER) are nothing to resume from, and passed over in silence.
    """
    # Rank 0's list, for all: ranks that look for themselves may see a file system at different moments.
    for checkpoint in reversed(on_main_rank(f"looking for checkpoints in {run_dir}", lambda: _resumable(run_dir))):
        problems = verify(checkpoint, world=world)
        if not problems:
            return checkpoint
        log.warning("checkpoint %s is not usable and passed over: %s", checkpoint, "; ".join(problems))
    return None


def verify(checkpoint: Path, *, world: World) -> list[str]:
    """Check a checkpoint and return what is wrong, one line per file. Every rank calls it and reads a share."""
    shares = on_every_rank(f"verifying {checkpoint}", lambda: problems_of(checkpoint, world.rank, world.size))
    return [problem for share in shares for problem in share]


def problems_of(checkpoint: Path, part: int = 0, parts: int = 1) -> list[str]:
    """Check one of `parts` equal shares of a checkpoint's files, without other ranks; return what is wrong."""
    try:
        files = sorted(read_manifest(checkpoint)["files"].items())
    except CheckpointError as error:
        return [str(error).removeprefix(f"{checkpoint}/").removesuffix(".")] if part == 0 else []
    if checkpoint.resolve().parent != checkpoint.parent.resolve():
        return [f"it is a symbolic link to {checkpoint.resolve()}"] if part == 0 else []
    problems = [problem_of_file(checkpoint, name, expected) for name, expected in files[part::parts]]
    return [problem for problem in problems if problem] + (_added(checkpoint, dict(files)) if part == 0 else [])


def differs_from_model(directory: Path, checkpoint: Path, *, but: tuple[str, ...], world: World) -> list[str]:
    """Compare a directory with the model of the checkpoint it was published from; one line for each file that differs.

    but: files that may differ, for others write them too. Every rank calls it and reads its share. Empty also where
    the checkpoint does not say any more what was written.
    """

    def of_my_share() -> list[str]:
        try:
            files = read_manifest(checkpoint)["files"]
        except CheckpointError:
            return []
        names = sorted(name for name in files if name.startswith(f"{MODEL_DIR}/"))
        problems = []
        for name in names[world.rank :: world.size]:
            own = name.removeprefix(f"{MODEL_DIR}/")
            if own not in but:
                problems.append(problem_of_file(directory, own, files[name]))
        return [problem for problem in problems if problem]

    shares = on_every_rank(f"comparing {directory} with {checkpoint}", of_my_share)
    return [problem for share in shares for problem in share]


def _added(checkpoint: Path, files: Mapping[str, object]) -> list[str]:
    """List what lies there without having been written: nothing of ours would read it, but other programs may."""
    there = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_symlink() or path.is_file()}
    written = files.keys() | {MANIFEST, MANIFEST_SHA256}
    return [f"{name} was added after it was written; remove it" for name in sorted(there - written)]


def _resumable(run_dir: Path) -> list[Path]:
    return [checkpoint for checkpoint in RunDir(run_dir).checkpoints() if _may_hold_state(checkpoint)]


def _may_hold_state(checkpoint: Path) -> bool:
    try:
        return has_state(read_manifest(checkpoint))
    except CheckpointError:
        return checkpoint.is_dir()  # damaged: to be named as such
