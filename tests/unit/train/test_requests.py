"""What people and schedulers ask: heard once, agreed on, and a second signal is an order."""

import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from sft.errors import InputError
from sft.train.requests import SIGNALS, Requests, listening, request_save
from tests.launch import clean_environment


@pytest.fixture
def heard(tmp_path, world_of_one, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("sft"), "propagate", True)
    with listening(tmp_path, world_of_one) as listener:
        yield listener


def test_nothing_asked_nothing_done(heard):
    assert heard.agreed(heard.wishes()) == Requests(may_settle=True)
    assert not heard.agreed(heard.wishes() | {"is writing": 1.0}).may_settle


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_wish_that_stays(heard, number):
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)  # torchrun passes on what the scheduler sent as well
    deadline = time.monotonic() + 10
    while not heard.must_stop():  # a thread hears
        assert time.monotonic() < deadline
    for _ in range(2):
        assert heard.agreed(heard.wishes()) == Requests(stop=True, signal=number, may_settle=True)


def test_signals_mean_what_they_meant_before_once_nobody_listens(tmp_path, world_of_one):
    before = [signal.getsignal(number) for number in SIGNALS]
    with listening(tmp_path, world_of_one):
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.timeout(20)
def test_a_pipe_asks_for_nothing_and_holds_nobody(heard, tmp_path):
    for name in ("stop_now", "save_now"):
        os.mkfifo(tmp_path / name)
    assert heard.agreed(heard.wishes()) == Requests(may_settle=True)


def test_stop_now_stops_without_a_signal_and_is_taken(heard, tmp_path):
    (tmp_path / "stop_now").touch()
    assert heard.agreed(heard.wishes()) == Requests(stop=True, signal=0, may_settle=True)
    assert not (tmp_path / "stop_now").exists(), "or the next start would stop as well"


@pytest.mark.parametrize(
    ("text", "kind"), [("", "BOTH"), ("\n", "BOTH"), ("SAMPLER\n", "SAMPLER"), ("state", "STATE"), ("both", "BOTH")]
)
def test_save_now_says_which_kind(heard, tmp_path, text, kind):
    (tmp_path / "save_now").write_text(text)
    assert heard.agreed(heard.wishes()).save == kind
    assert heard.agreed(heard.wishes()).save is None, "once"


def test_save_now_that_names_no_kind_saves_nothing_and_is_said(heard, tmp_path, caplog):
    (tmp_path / "save_now").write_text("everything")
    assert heard.agreed(heard.wishes()).save is None
    assert "save_now says 'everything', expected STATE, SAMPLER, BOTH or nothing" in caplog.text
    assert not (tmp_path / "save_now").exists()


def test_a_run_directory_that_is_gone_ends_the_run(heard, tmp_path):
    tmp_path.rmdir()
    with pytest.raises(InputError, match="is gone"):
        heard.agreed(heard.wishes())


def test_from_python(heard, tmp_path):
    request_save(tmp_path, "SAMPLER")
    assert heard.agreed(heard.wishes()).save == "SAMPLER"
    assert list(tmp_path.iterdir()) == []


def test_what_one_rank_heard_all_of_them_do(heard, tmp_path):
    """Sums over ranks: of two that heard different signals, of one that still writes."""
    (tmp_path / "save_now").write_text("STATE")
    here = heard.wishes()
    assert heard.wishes().keys() == here.keys(), "the same names on every rank, or the sums are of other things"
    there = dict.fromkeys(here, 0.0) | {"SIGINT": 1.0, "SIGTERM": 1.0, "is writing": 1.0}
    together = {name: here[name] + there[name] for name in here}
    assert heard.agreed(together) == Requests(stop=True, signal=signal.SIGTERM, save="STATE", may_settle=False)


def test_what_broke_off_a_validation_ends_the_run_after_it(heard):
    before = heard.wishes()  # summed before the validation
    os.kill(os.getpid(), signal.SIGINT)
    deadline = time.monotonic() + 10
    while not heard.must_stop():
        assert time.monotonic() < deadline
    assert heard.agreed(before) == Requests(stop=True, signal=signal.SIGINT, may_settle=True)


SECOND = """
import os, signal, sys, time
import sft.train.requests as requests
from sft.parallel.world import World
requests.SAME_WISH_S = 0.05
with requests.listening(".", World(0, 1, 0)):
    os.kill(os.getpid(), signal.SIGTERM)
    print("first survived", flush=True)
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    print("second survived", flush=True)
"""


def test_a_second_signal_ends_the_run_at_once(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SECOND], cwd=tmp_path, env=clean_environment(), capture_output=True, text=True
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stdout == "first survived\n"
