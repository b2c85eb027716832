"""Whole runs hurt at any moment, from their first file to their last: killed, without power, without room."""

import errno
import random
import shutil

import pytest

from tests.fault.faults import FAULTS
from tests.fault.moments import Stopped, Whole

KILLED = "killed before the N-th call that changes a directory"
CUT = "power cut at a moment of a whole run"
FULL = "disk full from a moment of a whole run on"
SIZES = 15  # pages that are left, none included
PAGE = 4096

pytestmark = pytest.mark.timeout(0 if FAULTS > 3 else 300)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Whole.run(tmp_path_factory.mktemp("whole"))


def test_killed_before_any_call_a_run_goes_on(whole, tmp_path, rows):
    row = rows[KILLED]
    for number, call in enumerate(whole.moments(FAULTS, random.Random(11))):
        place = tmp_path / f"place_{number}"
        place.mkdir()
        life = Stopped(whole.at(place), place, call, tmp_path / f"{number}.log")
        assert life.stands(), f"ended before call {call} of {whole.calls}:\n{life.text}"
        row.injected += 1
        life.is_killed()
        whole.is_sound(place)
        whole.goes_on(place)
        row.survived += 1


def test_after_a_power_cut_a_run_goes_on_or_is_rightly_finished(whole, disk, tmp_path, rows):
    row, (mounted, cut_power) = rows[CUT], disk
    for number, call in enumerate(whole.moments(FAULTS, random.Random(12))):
        place = mounted / f"place_{number}"
        place.mkdir()
        life = Stopped(whole.at(place), place, call, tmp_path / f"{number}.log")
        assert life.stands(), f"ended before call {call} of {whole.calls}:\n{life.text}"
        row.injected += 1
        cut_power(life.is_killed)
        place.mkdir(exist_ok=True)
        whole.is_sound(place, has_power=False)
        whole.goes_on(place)
        row.survived += 1
    whole.is_finished(place)


def test_a_disk_that_is_full_from_some_moment_on_is_one_message_and_nothing_is_cut_short(
    whole, small_disk, tmp_path, rows
):
    dice, row = random.Random(13), rows[FULL]
    filler = small_disk / "filler"
    for number, call in enumerate(whole.moments(FAULTS, dice)):
        place = small_disk / f"place_{number}"
        place.mkdir()
        life = Stopped(whole.at(place), place, call, tmp_path / f"{number}.log")
        assert life.stands(), f"ended before call {call} of {whole.calls}:\n{life.text}"
        row.injected += 1
        fill(filler, leave=dice.randrange(SIZES) * PAGE)
        code = life.goes_on()
        if code:  # else it was a log alone that found no room, or the run had written everything
            assert code == 2, life.text
            messages = [line for line in life.text.splitlines() if line.startswith("error: ")]
            assert len(messages) == 1 and "No space left on device" in life.text, life.text
        assert "Traceback" not in life.text, life.text
        whole.is_sound(place)
        filler.unlink()
        whole.goes_on(place)
        row.survived += 1
        shutil.rmtree(place)  # or the disk would be full without us


def fill(path, *, leave):
    """Take all room of a disk but `leave` bytes."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(PAGE)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
        file.truncate(max(0, file.tell() - leave))
