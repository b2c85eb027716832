"""Tell from an error of a backend whether another rank is lost, and asks the ranks that are left which."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

if TYPE_CHECKING:
    from sft.parallel.world import World

Result = TypeVar("Result")

ROLL_CALL_S = 3.0
"""Seconds in which ranks that lost another one report to each other; they notice it at about the same time."""

STORE_S = 3.0
"""Seconds that the store may take to answer on top of that: a rank ends within trainer.timeout_s + 10 s."""

LAST_READ_S = 1.0

MAX_SAID = 1500  # characters of what a backend says

OF_A_PEER = re.compile(
    r"ncclRemoteError|remote process|timed? ?out|timeout|closed by|reset by|refused|broken pipe|unreachable|no route",
    re.IGNORECASE,
)
"""In an error of NCCL: another rank is gone or silent."""

NO_MEMORY = re.compile(
    r"out of memory|_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation|bad_alloc|DefaultCPUAllocator|"
    r"can(?:no|')t allocate memory|failed to allocate",
    re.IGNORECASE,
)
"""In an error of torch, CUDA, NCCL (Cuda failure 2 'out of memory') or cuBLAS (CUBLAS_STATUS_ALLOC_FAILED)."""


def is_about_other_ranks(error: RuntimeError) -> bool:
    """Return whether an error says that another rank is gone or silent, and not that something failed here."""
    if is_out_of_memory(error):
        return False
    if isinstance(error, dist.DistStoreError | dist.DistNetworkError):
        return True
    text = str(error)
    is_of_nccl = isinstance(error, dist.DistError) or "NCCL" in text
    return "gloo" in text or "Connection" in text or (is_of_nccl and OF_A_PEER.search(text) is not None)


def who_is_lost(store: Store | None, world: World, timeout: timedelta, phase: str, error: RuntimeError) -> str:
    """Name the ranks that are lost: those left sign up, and the first of them names the rest; the others say nothing.

    store: None if it was never reached. phase: what this rank was doing. error: the backend's, whose text is kept.
    """
    waiting, said = f"rank {world.rank} was waiting in {phase}", f"\n{str(error).strip()[:MAX_SAID]}"
    left = within(ROLL_CALL_S + STORE_S, lambda: _roll_call(store, world)) if store else None
    if left is None:  # it was kept by rank 0, or by a torchrun that is gone: one rank of each node says so
        alone = world.rank == 1 or world.local_rank == 0
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        gone = f"rank 0 is gone or cannot be reached, and with it the store where ranks leave word ({address})"
        if world.is_main:
            gone = f"other ranks cannot be reached, nor the store where ranks leave word ({address})"
        return f"{waiting}; {gone}.{said}" if alone else ""
    if left[0] != world.rank:
        return ""
    time.sleep(LAST_READ_S)  # rank 0 may keep the store itself: let the others read it
    lost = ", ".join(str(rank) for rank in range(world.size) if rank not in left)
    if not lost:
        return f"{waiting}; every rank is there, and they cannot talk to each other.{said}"
    return (
        f"{waiting} for rank {lost}, which died or gave no answer for {timeout.total_seconds():.0f} s "
        f"(trainer.timeout_s). The last checkpoint is intact: the same command goes on from it.{said}"
    )


def _roll_call(store: Store, world: World) -> list[int]:
    """Sign up, and return the ranks that did within ROLL_CALL_S."""
    store.set(f"left/{world.rank}", "")
    time.sleep(ROLL_CALL_S)
    return [rank for rank in range(world.size) if store.check([f"left/{rank}"])]


def within(seconds: float, work: Callable[[], Result]) -> Result | None:
    """Return what `work` returns; None if it raises a RuntimeError, or takes longer: then its thread is left behind.

    A store behind a cut cable does not answer and does not fail: a system call waits for a quarter of an hour.
    """
    results: list[Result] = []

    def run() -> None:
        with suppress(RuntimeError):
            results.append(work())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocator gave up: torch's, or that of CUDA, NCCL, cuBLAS, which have only words for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None
