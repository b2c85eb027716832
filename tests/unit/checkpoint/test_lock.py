"""One job in one run directory; whoever is gone holds nothing."""

import json
import os
import socket
import subprocess
import sys

import pytest

from sft.checkpoint.lock import LOCK, sole_use_of
from sft.errors import InputError

HOLD = """
import fcntl, os, sys, time
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX)
os.write(descriptor, b'{"host": "elsewhere", "pid": 17}')
print("held", flush=True)
time.sleep(100)
"""


@pytest.fixture
def other_job(tmp_path):
    """Another process that holds the directory."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / LOCK)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_while_it_is_held_it_says_by_whom_and_afterwards_nothing_is_left(tmp_path, world_of_one):
    with sole_use_of(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text()) == {"host": socket.gethostname(), "pid": os.getpid()}
    assert list(tmp_path.iterdir()) == []


def test_a_second_job_is_refused_by_host_and_process(tmp_path, world_of_one, other_job):
    with (
        pytest.raises(InputError, match=r"another job is training in .*\(host elsewhere, process 17\)"),
        sole_use_of(tmp_path),
    ):
        pass
    assert (tmp_path / LOCK).exists(), "the lock is not ours to remove"


def test_a_killed_job_blocks_nobody(tmp_path, world_of_one, other_job):
    other_job.kill()
    other_job.wait()
    assert (tmp_path / LOCK).exists()
    with sole_use_of(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_an_error_in_the_run_gives_the_directory_back(tmp_path, world_of_one):
    with pytest.raises(ZeroDivisionError), sole_use_of(tmp_path):
        _ = 1 / 0
    with sole_use_of(tmp_path):
        pass
