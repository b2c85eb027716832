"""Fixtures of the checkpoint room's tests."""

import pytest

from tests.runs import Run, start_run


@pytest.fixture
def run(tmp_path, world_of_one) -> Run:
    return start_run(tmp_path / "job", world_of_one)
