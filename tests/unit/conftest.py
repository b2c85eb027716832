"""Fixtures of the unit tests."""

import os

import pytest

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks: these numbers are the CPU's, on any machine

from sft.parallel.world import World, process_group


@pytest.fixture
def world_of_one():
    """A process group with this process alone in it."""
    world = World(rank=0, size=1, local_rank=0)
    with process_group(world):
        yield world
