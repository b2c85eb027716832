"""A disk that is full, read-only or gone: one message within ten seconds, and the old checkpoints stay."""

import errno
import os
import resource
import shutil
import subprocess
import time
from contextlib import ExitStack

import pytest

from tests.fault.faults import FAULTS, saved_steps

SECONDS = 10.0


def ends_with_one_message(life, *words):
    """Within ten seconds, with the ranks' exit code 2, and no rank shows a traceback."""
    hurt_at = time.monotonic()
    assert life.ends() != 0
    assert time.monotonic() - hurt_at < SECONDS
    messages = [line for line in life.text.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, life.text
    (message,) = messages
    assert all(word in message for word in words), message
    assert life.text.count("Traceback") == 1, life.text  # torchrun's own
    assert "exitcode  : 2 (" in life.text, life.text


def test_a_file_that_cannot_be_written_ends_the_run_with_one_message(run):
    """By a limit on the size of files (as of quotas), set from outside on running ranks."""
    life = run.start()
    life.trains(15)
    for pid in life.ranks().values():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (64 * 1024, 64 * 1024))
    ends_with_one_message(life, "saving", "failed", "rank 0", "rank 1")
    assert list(run.run_dir.glob(".global_step_*")) == [], "what was written of it gives its space back"
    run.is_sound()
    run.goes_on()


def test_a_run_directory_that_is_gone_ends_the_run_and_does_not_come_back(run):
    life = run.start("trainer.save_freq=0")  # heard of now, not when the next checkpoint is due
    life.trains(5)
    run.run_dir.rename(run.run_dir.with_name("moved"))
    ends_with_one_message(life, f"trainer.default_local_dir={run.run_dir} is gone")
    assert not run.run_dir.exists()


def test_a_read_only_run_directory_ends_the_run_with_one_message(run):
    life = run.start()
    life.trains(15)
    before = saved_steps(run.run_dir)
    with ExitStack() as stack:
        make_read_only(run.run_dir, stack)
        ends_with_one_message(life, "saving", "failed", "rank 0")
        assert set(saved_steps(run.run_dir)) >= set(before[-1:])
        refused = run.start()  # and it is found out at the start as well
        assert refused.ends() != 0
        assert refused.text.count(f'trainer.default_local_dir="{run.run_dir}"') == 1, refused.text
    run.is_sound()
    run.goes_on()


@pytest.mark.skipif(FAULTS <= 3, reason="the same path as with a limit on files; `make faults` has it")
def test_a_full_disk_ends_the_run_with_one_message(run, tmp_path):
    """A file system of its own, filled by somebody else after the first checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with ExitStack() as stack:
        mount(stack, "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk)
        run.run_dir = disk / "run"
        life = run.start()
        life.trains(15)
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC
        ends_with_one_message(life, "saving", "failed", "No space left on device")
        filler.unlink()
        run.is_sound()
        life = run.goes_on()
        life.clear()


def make_read_only(directory, stack):
    """For root, whom permissions do not hold, by mounting the directory over itself."""
    if os.getuid() != 0:
        directory.chmod(0o555)
        stack.callback(directory.chmod, 0o755)
        return
    mount(stack, "--bind", directory, directory)
    subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)


def mount(stack, *arguments):
    """Skips where this process may not mount."""
    if shutil.which("mount") is None or subprocess.run(["mount", *arguments], capture_output=True).returncode:
        pytest.skip("may not mount here")
    stack.callback(subprocess.run, ["umount", "--lazy", arguments[-1]], check=True)
