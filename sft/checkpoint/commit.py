"""Write a checkpoint: aside, hashed by the rank that wrote each file, renamed, then entered into the ledger."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sft.checkpoint import ledger
from sft.checkpoint.ledger import Kind
from sft.checkpoint.manifest import (
    MANIFEST,
    MANIFEST_SHA256,
    MODEL_DIR,
    STATE_DIR,
    CheckpointError,
    describe_file,
    digest_line,
    read_manifest,
)
from sft.checkpoint.state import Snapshot, state_bytes
from sft.checkpoint.tidy import delete, retain
from sft.files import RunDir, sync_directory, unfinished, write_durably
from sft.parallel.host_memory import HostMemory, available_bytes
from sft.parallel.world import World, log, on_every_rank, on_main_rank
from sft.types import TrainState

MOST_OF_MEMORY = 0.9
"""The part of what is left of a computer's memory that copies for checkpoints may take."""

Files = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Writing:
    """A checkpoint whose files are being written."""

    final: Path
    manifest: dict[str, Any]  # all of it but the files
    in_background: bool
    files: Future[Files]  # of this rank

    @property
    def aside(self) -> Path:
        return unfinished(self.final, "partial")


class Saver:
    """Saves the checkpoints of one run, their state in the background while training goes on.

    In the background also means: this rank's state has a copy in CPU memory, from the first checkpoint on for good.
    Every later one is copied over it, which takes a fraction of the time.

    Every rank calls every method, in the same order: the files of all ranks become one checkpoint. All methods raise
    on all ranks if one of them cannot write (InputError, or BugError); then there is no checkpoint of that step.

    about: what every manifest of this run says (job_id, base_model, fingerprint, ...)
    keep:  how many checkpoints stay, the newest ones; None: all
    """

    def __init__(self, run_dir: Path, *, world: World, about: dict[str, Any], keep: int | None, in_background: bool):
        self._run_dir, self._world, self._about, self._keep = run_dir, world, about, keep
        self._memory = HostMemory() if in_background else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")  # one: what is begun first is done first
        self._writing: Writing | None = None
        self._deleting: Future[None] | None = None

    def save(
        self,
        kind: Kind,
        state: TrainState,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        write_model: Callable[[Path], None],
        wait: bool = False,
    ) -> Path | None:
        """Begin `global_step_N`, N = state.step; returns its path once it is committed, None while it is written.

        write_model: writes the model as Hugging Face files into a directory; a collective. wait: commit at once.
        A checkpoint that is already there and has what `kind` asks for is left alone. One that lacks it is replaced
        by one that is both; nothing is ever written into it.
        """
        self.settle()
        final = RunDir(self._run_dir).checkpoint(state.step)
        there = on_main_rank(f"looking at {final}", lambda: _kind_there(final))
        if there in (kind, "BOTH"):
            return final
        kind = kind if there is None else "BOTH"
        manifest = {
            "step": state.step,
            "kind": kind,
            "state": asdict(state),
            "world_size": self._world.size,
            **self._about,
        }
        if kind != "SAMPLER":
            self._plan_memory(model, optimizer, state.updates)
        in_background = self._memory is not None and kind == "STATE" and not wait
        writing = Writing(final, manifest, in_background, Future())
        on_main_rank(f"saving {final}", lambda: self._make_aside(writing.aside, STATE_DIR if kind != "SAMPLER" else ""))
        if kind != "STATE":
            write_model(writing.aside / MODEL_DIR)
        snapshot = self._snapshot(final, model, optimizer, state.updates) if kind != "SAMPLER" else None
        write = self._write_files(snapshot, writing.aside, kind)
        self._writing = replace(writing, files=self._thread.submit(write))
        return None if in_background else self.settle()

    @property
    def is_writing(self) -> bool:
        """Return True while this rank still writes. Others may be faster or slower: ask all before calling settle."""
        return self._writing is not None and not self._writing.files.done()

    @property
    def has_begun(self) -> bool:
        """Return True if there is a checkpoint to settle; the same on all ranks."""
        return self._writing is not None

    def settle(self) -> Path | None:
        """Wait until every rank has written the checkpoint, then commit it. Returns its path, or None."""
        if self._writing is None:
            return None
        writing, self._writing = self._writing, None
        phase = f"saving {writing.final}"
        try:
            parts = on_every_rank(phase, writing.files.result)
            files = {name: facts for part in parts for name, facts in sorted(part.items())}
            on_main_rank(phase, lambda: self._commit(writing, files))
        except Exception:
            if self._world.is_main:  # give the space back, where the disk is full
                shutil.rmtree(writing.aside, ignore_errors=True)
            raise
        return writing.final

    def _plan_memory(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, updates: int) -> None:
        """Before the first copy: save while training waits, for good, where the ranks' copies do not fit on a node."""
        if self._memory is None or self._memory.is_taken:
            return
        rank = self._world.rank
        parts = on_every_rank(
            "planning the memory of checkpoints",
            lambda: (rank - self._world.local_rank, state_bytes(model, optimizer, updates), available_bytes()),
        )
        for node in sorted({node for node, _, _ in parts}):  # known by its first rank
            needed = sum(size for of, size, _ in parts if of == node)
            free = min(free for of, _, free in parts if of == node)
            if needed > MOST_OF_MEMORY * free:
                log.warning(
                    "checkpoints are written while training waits (as by trainer.async_save=false): copies of their "
                    "state would take %.2f GB of CPU memory on a computer that has %.2f GB left",
                    needed / 1e9,
                    free / 1e9,
                )
                self._memory = None
                return

    def _make_aside(self, aside: Path, subdirectory: str) -> None:
        if self._deleting:
            self._deleting.result()  # its room is needed, and what it deletes may have this name
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()  # not its parents: a run directory that is gone, unmounted say, is not begun again elsewhere
        (aside / subdirectory).mkdir(exist_ok=True)

    def _snapshot(
        self, final: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, updates: int
    ) -> Snapshot:
        """Nothing is written from self._memory any more: whatever was begun has been settled."""
        taken: list[Snapshot] = []
        on_every_rank(
            f"saving {final}", lambda: taken.append(Snapshot(model, optimizer, updates, self._world, self._memory))
        )
        return taken[0]

    def _write_files(self, snapshot: Snapshot | None, aside: Path, kind: Kind) -> Callable[[], Files]:
        def write() -> Files:
            names = snapshot.write(aside) if snapshot else []
            if kind != "STATE" and self._world.is_main:  # rank 0 wrote the model
                names += [str(path.relative_to(aside)) for path in (aside / MODEL_DIR).rglob("*") if path.is_file()]
            return {name: describe_file(aside / name, durable=True) for name in names}

        return write

    def _commit(self, writing: Writing, files: Files) -> None:
        manifest = json.dumps(writing.manifest | {"files": files}, indent=2).encode() + b"\n"
        write_durably(writing.aside / MANIFEST, manifest)
        write_durably(writing.aside / MANIFEST_SHA256, digest_line(manifest))
        for directory in [path for path in writing.aside.rglob("*") if path.is_dir()] + [writing.aside]:
            sync_directory(directory)
        replaced = unfinished(writing.final, "replaced")
        if writing.final.exists():
            writing.final.rename(replaced)
        writing.aside.rename(writing.final)
        sync_directory(self._run_dir)
        ledger.append(self._run_dir, ledger.entry_of(writing.final, read_manifest(writing.final)))
        shutil.rmtree(replaced, ignore_errors=True)
        self._deleting = self._thread.submit(delete, retain(self._run_dir, self._keep))
        if not writing.in_background:
            self._deleting.result()


def _kind_there(checkpoint: Path) -> Kind | None:
    try:
        return ledger.kind_of(read_manifest(checkpoint))
    except CheckpointError:
        return None
