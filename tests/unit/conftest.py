"""Fixtures of the unit tests."""

import pytest

from sft.distributed import World, process_group


@pytest.fixture
def world_of_one():
    """A process group with this process alone in it."""
    world = World(rank=0, size=1, local_rank=0)
    with process_group(world):
        yield world
