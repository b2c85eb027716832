"""scripts/train.sh restarts a run whose ranks die, and the run goes on by itself."""

import random
import re
import signal
import time

import pytest

from tests.fault.faults import FAULTS, TRAIN_SH, saved_steps

KIND = "rank killed, restarted by torchrun"


@pytest.mark.timeout(0 if FAULTS > 3 else 300)
def test_a_killed_rank_is_restarted_and_the_run_goes_on_bit_for_bit(run, rows):
    """The last fault is a SIGTERM to one rank: the run saves, exits with 143, and is restarted like after any end."""
    dice, done = random.Random(7), 0
    while done < FAULTS:
        faults = min(10, FAULTS - done)
        run.run_dir = run.run_dir.with_name(f"after_{done}")
        life = run.start(launcher=TRAIN_SH, env={"NPROC_PER_NODE": "2", "MAX_RESTARTS": str(faults)})
        for number in range(1, faults + 1):
            life.trains(1, start=number)
            time.sleep(dice.uniform(0, 0.3))
            rows[KIND].injected += 1
            asked = number == faults
            life.hurt(signal.SIGTERM if asked else signal.SIGKILL, [number % 2])
            hurt_at, step = time.monotonic(), life.step
            life.trains(1, start=number + 1)
            if not asked:
                killed, other = number % 2, 1 - number % 2
                assert re.search(rf"error: rank {other} was waiting in .+ for rank {killed}, which died", life.text)
            rows[KIND].seconds.append(time.monotonic() - hurt_at)
            lost = step - life.starts[number]
            assert lost <= (0 if asked else 20), "of two save intervals at most"
            rows[KIND].lost.append(max(0, lost))
            run.is_sound()
            rows[KIND].survived += 1
        life.process.terminate()  # to torchrun: the end of the job, not of a rank
        assert life.ends(30) != 0
        assert len(life.starts) == faults + 1, "no restart of a job that was told to stop"
        assert saved_steps(run.run_dir)[-1] == life.step
        run.is_sound()
        done += faults
