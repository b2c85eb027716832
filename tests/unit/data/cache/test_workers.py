"""Several processes give what one gives, in its order; none outlives its work or its parent."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest

from sft.data.cache.workers import IN_FLIGHT, map_in_order, processes_for
from sft.errors import InputError
from tests.launch import REPOSITORY


def test_results_come_in_the_order_of_the_inputs_whoever_is_done_first():
    def late_first(n: int) -> tuple[int, int]:
        time.sleep(0.3 if n == 0 else 0)
        return n, os.getpid()

    results = list(map_in_order(late_first, range(20), 3))
    assert [n for n, _ in results] == list(range(20))
    assert os.getpid() not in {pid for _, pid in results} and len({pid for _, pid in results}) == 3


def test_one_process_is_this_one():
    assert list(map_in_order(lambda n: os.getpid(), range(2), 1)) == [os.getpid()] * 2


def test_inputs_are_read_as_they_are_needed():
    read = []
    inputs = (read.append(n) or n for n in range(1000))
    with closing(map_in_order(lambda n: n, inputs, 2)) as results:
        for n in results:
            assert len(read) <= n + 1 + IN_FLIGHT * 2
            if n == 50:
                break
    assert len(read) < 60


def test_a_process_has_its_next_input_before_the_result_is_looked_at():
    read = []
    inputs = (read.append(n) or n for n in range(4))
    with closing(map_in_order(lambda n: n, inputs, 2)) as results:
        next(results)
        assert len(read) > 2


def test_more_than_a_pipe_holds_goes_both_ways():
    big = b"x" * 3_000_000
    assert list(map_in_order(lambda data: data, [big] * 5, 2)) == [big] * 5


def test_an_error_of_the_inputs_ends_the_processes():
    def inputs():
        yield 1
        raise InputError("row 2")

    with pytest.raises(InputError, match="row 2"):
        list(map_in_order(lambda n: n, inputs(), 2))


@pytest.mark.parametrize(
    ("end", "told"),
    [(lambda: os.kill(os.getpid(), signal.SIGKILL), "ended by SIGKILL"), (lambda: os._exit(3), "exit code 3")],
)
def test_a_process_that_is_lost_is_an_error(end, told):
    with pytest.raises(InputError, match=rf"data.num_workers.*{told}.*data.num_workers=1"):
        list(map_in_order(lambda n: end() if n == 3 else n, range(10), 2))


def test_a_process_leaves_ctrl_c_to_its_parent():
    def pressed(n: int) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return n

    assert list(map_in_order(pressed, range(4), 2)) == [0, 1, 2, 3]


PARENT = """
import os, time
from sft.data.cache.workers import map_in_order

def work(n):
    time.sleep(0.05)
    return os.getpid()

for pid in map_in_order(work, range(10_000), 3):
    print(pid, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_its_parent(number):
    """Ctrl-C reaches the whole group and gives one traceback, the parent's."""

    def heed_ctrl_c():  # a job that a script starts in the background inherits that it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    )
    assert parent.stdout is not None and parent.stderr is not None
    pids = {int(parent.stdout.readline()) for _ in range(30)}
    assert len(pids) == 3
    if number == signal.SIGKILL:
        parent.kill()
    else:
        os.killpg(parent.pid, number)
    parent.wait(20)
    deadline = time.monotonic() + 20
    while any(_is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a process outlived its parent"
        time.sleep(0.05)
    assert parent.stderr.read().count("Traceback") == (number == signal.SIGINT)


def test_as_many_processes_as_cores_and_never_more_than_inputs(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert [processes_for(None, 100), processes_for(None, 3), processes_for(7, 100)] == [4, 3, 7]
    assert [processes_for(None, 0), processes_for(7, 1)] == [1, 1]


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
