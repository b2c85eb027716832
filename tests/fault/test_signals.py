"""SIGTERM, SIGINT, SIGUSR1, stop_now and save_now: what a scheduler or a person asks of a running job."""

import json
import random
import signal
import time

import pytest

from tests.fault.faults import FAULTS, saved_steps

KIND = "signal: saved and stopped"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
TEST_FREQ = 20
EXIT_S = 30.0  # far more than a step and a save take here, far less than trainer.timeout_s


@pytest.mark.timeout(0 if FAULTS > 3 else 300)
def test_a_signal_finishes_the_step_saves_and_stops(run, rows):
    """To torchrun, to one rank, and in the middle of a validation; the next life goes on at the step it stopped at."""
    dice, stopped, validating = random.Random(7), None, f"trainer.test_freq={TEST_FREQ}"
    for number in range(FAULTS + 1):
        life = run.start(validating)
        life.trains(1)
        if stopped is not None:
            assert life.starts == [stopped], "it goes on at the step it stopped at"
            run.is_sound()
            rows[KIND].survived += 1
            life = run.with_room(life, validating)
        if number == FAULTS:
            break
        name = SIGNALS[number % 3]
        rows[KIND].injected += 1
        way = (number + number // 3) % 3  # over nine faults, every signal in every way
        if way == 2:
            stop_during_validation(life, name)
        else:
            time.sleep(dice.uniform(0, 0.5))
            stop(life, name, to_one_rank=way == 1)
        stopped = life.step
        assert saved_steps(run.run_dir)[-1] == stopped
        rows[KIND].lost.append(0)
    life.trains(15)
    run.is_sound()


def stop(life, number, *, to_one_rank):
    if to_one_rank:
        life.hurt(number, [life.step % 2])
    else:
        life.process.send_signal(number)
    assert life.ends(EXIT_S) != 0
    if to_one_rank:  # torchrun reports the code of a rank that ended by itself
        assert f"exitcode  : {128 + number}" in life.text, life.text
    assert f"stopped after step {life.step}" in life.text
    assert f"{number.name}: finishing the step" in life.text


def stop_during_validation(life, number):
    """The signal meets a validation, which is left undone: the next life begins with it."""
    due = (life.step // TEST_FREQ + 1) * TEST_FREQ
    life.until(lambda: life.step >= due - 1, f"step {due - 1}")
    time.sleep(0.15)
    life.process.send_signal(number)
    assert life.ends(EXIT_S) != 0
    manifest = json.loads((life.run_dir / f"global_step_{life.step}" / "manifest.json").read_text())
    assert life.step == due and manifest["state"]["validated"] < due, "the signal came outside of the validation"


def test_before_the_first_step_there_is_nothing_to_save_and_a_second_signal_waits_for_nothing(run, rows):
    life = run.start(may_fork=False)  # so that it imports for some seconds; a fork would be at step 13
    life.until(lambda: len(life.ranks()) == 2, "two ranks")
    time.sleep(1)
    life.process.terminate()
    assert life.ends(EXIT_S) != 0
    assert not saved_steps(run.run_dir)

    life = run.start()
    life.trains(25)
    pids = life.ranks()
    life.hurt(signal.SIGSTOP, [1])  # rank 0 cannot finish its step
    life.hurt(signal.SIGTERM, [0])
    time.sleep(2.5)  # sooner, it would be the same wish, passed on by torchrun
    assert life.ranks() == pids
    life.hurt(signal.SIGTERM, [0])
    life.until(lambda: 0 not in life.ranks(), "the end of rank 0", within_s=2)
    life.hurt(signal.SIGCONT, [1])
    assert life.ends(EXIT_S) != 0
    assert saved_steps(run.run_dir), "the last checkpoint is there"
    run.is_sound()


def test_a_second_job_is_refused_and_files_ask_for_saves_and_the_end(run):
    """save_now saves what its content names and the run goes on; stop_now saves and exits with 0."""
    life = run.start("trainer.save_freq=0")
    life.trains(1)
    holder = life.ranks()[0]
    life.hurt(signal.SIGSTOP)  # it is to be still there when the second one has started
    second = run.start()
    assert second.ends() != 0
    assert f"another job is training in {run.run_dir} (host " in second.text
    assert f"process {holder})" in second.text
    assert second.text.count("\nerror: ") == 1
    life.hurt(signal.SIGCONT)

    both = {"state_path", "sampler_path"}
    for content, kind in (("SAMPLER", {"sampler_path"}), ("state\n", {"state_path"}), ("", both)):
        before = len(ledger(run.run_dir))
        ask(run.run_dir / "save_now", content)
        life.until(lambda before=before: len(ledger(run.run_dir)) > before, f"a save by save_now of {content!r}")
        assert ledger(run.run_dir)[-1].keys() & both == kind
    before = ledger(run.run_dir)
    ask(run.run_dir / "save_now", "everything")
    life.until(lambda: "save_now says 'everything', expected STATE, SAMPLER, BOTH" in life.text, "a warning")
    assert ledger(run.run_dir) == before

    (run.run_dir / "stop_now").touch()
    assert life.ends(EXIT_S) == 0
    assert saved_steps(run.run_dir)[-1] == life.step
    assert not (run.run_dir / "stop_now").exists() and not (run.run_dir / ".lock").exists()
    run.is_sound()


def ask(path, content):
    """Whole at once: the job may look at any moment."""
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(content)
    aside.replace(path)


def ledger(run_dir):
    path = run_dir / "checkpoints.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
