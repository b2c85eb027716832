"""A rank that raises, is killed or hangs, and torchrun itself killed: one message, everyone ends, nothing is lost."""

import re
import signal
import time

import pytest

from tests.fault.faults import FAULTS, saved_steps

TIMEOUT_S = 8
KILLED, HUNG, ORPHANED = (
    "rank killed, the others end",
    f"rank hangs, the others end, timeout_s={TIMEOUT_S}",
    "torchrun killed, ranks save and end",
)
TIMES = 10 if FAULTS > 3 else 1  # these take long; two ranks without torchrun are lost more often: test_lost.py

pytestmark = pytest.mark.timeout(0 if FAULTS > 3 else 300)

RAISE_WHEN_ASKED = """
import os
from pathlib import Path
from torch.nn.modules.module import register_module_forward_pre_hook

def look(*_):
    if os.environ.get("RANK") == "1" and Path("raise_now").exists():
        raise RuntimeError("boom")

register_module_forward_pre_hook(look)
"""


def names_rank_1(life):
    """How often rank 0 has said that rank 1 is lost, and in which phase it was itself."""
    return re.findall(r"^error: rank 0 was waiting in (.+) for rank 1, which died or gave no answer", life.text, re.M)


def test_a_rank_that_raises_ends_the_others_with_one_message(run):
    (run.run_dir.parent / "raises_when_asked.py").write_text(RAISE_WHEN_ASKED)
    life = run.start("model.external_lib=raises_when_asked")
    life.trains(15)
    (run.run_dir.parent / "raise_now").touch()
    assert life.ends(20) != 0
    assert names_rank_1(life) == [f"step {life.step + 1}"]
    assert life.text.count("RuntimeError: boom") == 1
    (run.run_dir.parent / "raise_now").unlink()
    run.goes_on()


def test_a_rank_that_is_killed_ends_the_others_at_once(run, rows):
    """Of two ranks, in turn: with the first goes nothing that the other needs in order to say what happened."""
    for lost in (0, 1) * max(1, TIMES // 2):
        life = run.start()
        life.trains(15)
        rows[KILLED].injected += 1
        life.hurt(signal.SIGKILL, [lost])
        killed_at = time.monotonic()
        while 1 - lost in life.ranks():
            assert time.monotonic() < killed_at + 20, life.text
            time.sleep(0.05)
        rows[KILLED].ended.append(time.monotonic() - killed_at)
        assert re.search(rf"^error: rank {1 - lost} was waiting in .+ for rank {lost}, which died", life.text, re.M)
        assert life.ends(40) != 0
        run.is_sound()
        rows[KILLED].survived += 1


def test_a_rank_that_hangs_ends_the_others_within_the_timeout(run, rows):
    for number in range(TIMES):
        life = run.start(f"trainer.timeout_s={TIMEOUT_S}")
        life.trains(15)
        life.hurt(signal.SIGSTOP, [1])
        stopped_at = time.monotonic()
        rows[HUNG].injected += 1
        life.until(lambda life=life: names_rank_1(life), "a message", within_s=TIMEOUT_S + 10)
        assert time.monotonic() - stopped_at >= TIMEOUT_S - 1
        assert len(names_rank_1(life)) == 1 and re.fullmatch(r"step \d+", names_rank_1(life)[0])
        assert "process 0" not in life.text
        life.until(lambda life=life: 0 not in life.ranks(), "the end of rank 0", within_s=10)
        rows[HUNG].ended.append(time.monotonic() - stopped_at)
        assert rows[HUNG].ended[-1] < TIMEOUT_S + 10
        if number or FAULTS <= 3:  # else torchrun waits 30 s for rank 1 to hear its SIGTERM before it kills it
            life.hurt(signal.SIGCONT, [1])
        assert life.ends(60) != 0
        rows[HUNG].survived += 1
    run.goes_on()


def test_ranks_whose_torchrun_is_killed_save_and_end(run, rows):
    for _ in range(TIMES):
        life = run.start()
        life.trains(15)
        rows[ORPHANED].injected += 1
        life.process.kill()
        killed_at = time.monotonic()
        life.ends()
        rows[ORPHANED].ended.append(time.monotonic() - killed_at)
        assert saved_steps(run.run_dir)[-1] == life.step
        assert life.text.count("torchrun is gone: finishing the step") == 1
        run.is_sound()
        rows[ORPHANED].survived += 1
