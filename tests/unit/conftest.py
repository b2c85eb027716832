"""Fixtures of the unit tests."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks: these numbers are the CPU's, on any machine

from sft.parallel.world import World, process_group


@pytest.fixture(scope="session", autouse=True)
def imports_are_no_garbage() -> None:
    """Leave what imports made out of later collections, as the command does: each run ends with one, of 0.2 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_group_is_left() -> Iterator[None]:
    """Destroy the process group that a failed run in this process leaves behind: the next test may make its own."""
    yield
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_initialized():
        gc.collect()  # what holds references into it goes first: see process_group
        distributed.destroy_process_group()


@pytest.fixture
def world_of_one() -> Iterator[World]:
    """A process group with this process alone in it."""
    world = World(rank=0, size=1, local_rank=0)
    with process_group(world):
        yield world


@pytest.fixture
def events(monkeypatch):
    """What was brought to the disk (its name) and what was renamed ("rename <new name>"), in order."""
    events, fsync, rename = [], os.fsync, Path.rename

    def spy_on_fsync(descriptor):
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def spy_on_rename(path, target):
        events.append(f"rename {Path(target).name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", spy_on_fsync)
    monkeypatch.setattr(Path, "rename", spy_on_rename)
    return events
