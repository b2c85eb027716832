"""A profile of the steps that were asked for, and of no others."""

import gzip
import json

import pytest
import torch

from sft.errors import InputError
from sft.parallel.world import World
from sft.train.profile import Profiler, busy_s

ALONE = World(rank=0, size=1, local_rank=0)


def test_the_steps_asked_for_are_in_the_trace_and_the_table(tmp_path):
    profiler = Profiler((2, 3), tmp_path, ALONE, total_steps=4)
    for step in range(1, 5):
        with profiler.around(step):
            torch.ones(8, 8).matmul(torch.ones(8, 8)) if step in (2, 3) else torch.ones(8).sin()
    table = (tmp_path / "profile" / "steps_2_to_3_rank_0.txt").read_text()
    assert table.startswith("2 steps took ") and "nothing ran" in table and "aten::mm" in table
    assert "aten::sin" not in table
    trace = json.loads(gzip.decompress((tmp_path / "profile" / "steps_2_to_3_rank_0.json.gz").read_bytes()))
    assert sum(event.get("name") == "aten::mm" for event in trace["traceEvents"]) == 2


def test_a_resumed_run_profiles_what_is_left(tmp_path):
    profiler = Profiler((2, 5), tmp_path, ALONE, total_steps=5)
    for step in (4, 5):
        with profiler.around(step):
            torch.ones(2) + 1
    assert (tmp_path / "profile" / "steps_4_to_5_rank_0.txt").exists()


def test_no_profile_costs_nothing_and_leaves_nothing(tmp_path):
    profiler = Profiler(None, tmp_path, ALONE, total_steps=4)
    with profiler.around(1):
        pass
    assert list(tmp_path.iterdir()) == []


def test_steps_that_the_run_does_not_have_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"trainer.profile_steps=\[3, 9\]: the run has 4 steps"):
        Profiler((3, 9), tmp_path, ALONE, total_steps=4)


def test_a_profile_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "profile").write_text("a file in its place")
    profiler = Profiler((1, 1), tmp_path, ALONE, total_steps=1)
    with profiler.around(1):
        torch.ones(1) + 1


@pytest.mark.parametrize(
    ("intervals", "seconds"), [([], 0), ([(0, 2e6), (1e6, 3e6), (5e6, 6e6)], 4), ([(0, 9e6), (1e6, 2e6)], 9)]
)
def test_overlapping_kernels_are_counted_once(intervals, seconds):
    assert busy_s(intervals) == seconds
