"""kill -9, of all ranks or of one, while a checkpoint is written or at any other moment."""

import random
import signal
import time

import pytest

from tests.fault.faults import FAULTS, SAVE_FREQ, last_step, saved_steps

DURING_SAVE, ANY_MOMENT = "kill -9 during a save", "kill -9 at a random moment"

# What lies in the directory aside when the kill is sent: nothing yet, a part of the state, all but the rename.
STAGES = ("*", "state/rank_*", "manifest.json")


@pytest.mark.timeout(0 if FAULTS > 3 else 300)
def test_killed_during_saves_and_at_random_moments_the_run_goes_on_bit_for_bit(run, rows):
    """One run, killed in every life but the last. In every other life it saves in the foreground."""
    dice = random.Random(7)
    killed = None
    for number in range(2 * FAULTS + 1):
        in_background = number % 4 < 2
        save = f"trainer.async_save={str(in_background).lower()}"
        life = run.start(save, may_fork=FAULTS <= 3)  # thirty: start-up is a moment, too, with its imports
        if killed:
            survived(run, life, rows[killed[0]], *killed[1:])
            life = run.with_room(life, save)
        if number == 2 * FAULTS:
            break
        kind = (DURING_SAVE, ANY_MOMENT)[number % 2]
        if kind == DURING_SAVE:
            kill_during_save(life, STAGES[number // 2 % len(STAGES)])
        else:
            kill_at_random(life, dice)
        rows[kind].injected += 1
        killed = kind, time.monotonic(), last_step(run.run_dir), in_background
        life.ends()
        if kind == DURING_SAVE:
            assert (run.run_dir / ".lock").exists(), "the lock of a job that was killed: it blocks nobody"
        run.is_sound()
    life.trains(SAVE_FREQ + 5)
    run.is_sound()
    assert list(run.run_dir.glob(".global_step_*")) == [], "the next save clears away what the killed one left"


def kill_during_save(life, stage):
    """SIGKILL to all ranks while `.global_step_N.partial` is there; where the commit was faster, once more."""
    life.trains(1)
    pids = life.ranks()
    for _attempt in range(100):
        life.until(lambda: list(life.run_dir.glob(f".global_step_*.partial/{stage}")), f"a save at {stage}")
        life.hurt(signal.SIGSTOP)  # stopped first, so that we can look whether the save is still under way
        if list(life.run_dir.glob(".global_step_*.partial")):
            break
        life.hurt(signal.SIGCONT)
    assert list(life.run_dir.glob(".global_step_*.partial")) and life.ranks() == pids
    life.hurt(signal.SIGKILL)


def kill_at_random(life, dice):
    """SIGKILL to all ranks or to one of them; one time in five before the first step."""
    if dice.random() < 0.2:
        life.until(lambda: len(life.ranks()) == 2, "two ranks")
        time.sleep(dice.uniform(0, 3))
    else:
        life.trains(1)
        time.sleep(dice.uniform(0, 1))
    life.hurt(signal.SIGKILL, dice.choice([(0, 1), (0,), (1,)]))


def survived(run, life, row, killed_at, killed_step, in_background):
    """The next life began where the newest checkpoint stands, not further back than the promise, and trains."""
    newest = max(saved_steps(run.run_dir), default=0)
    life.trains(1)
    assert life.starts == [newest]
    row.seconds.append(time.monotonic() - killed_at)
    row.lost.append(killed_step - newest)
    # In the background a checkpoint is committed some steps after its own; never later than the next one begins.
    assert killed_step - newest <= SAVE_FREQ * (2 if in_background else 1)
    row.survived += 1
