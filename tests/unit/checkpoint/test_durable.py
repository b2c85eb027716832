"""A checkpoint gets its name when all of it is on the disk, and its line in the ledger when the name is there, too."""

import pytest

from sft.checkpoint import ledger
from tests.disk import Disk


@pytest.fixture
def disk(monkeypatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("kind", ["STATE", "SAMPLER", "BOTH"])
def test_nothing_of_a_checkpoint_is_missing_on_the_disk_when_it_gets_its_name(run, disk, kind):
    run.train_to(1)
    checkpoint = run.save(kind)
    (renamed,) = [each for each in disk.renames if each[1] == "global_step_1"]
    assert renamed == (".global_step_1.partial", "global_step_1", [])
    assert disk.missing(checkpoint) == []


def test_the_name_is_on_the_disk_before_the_ledger_has_the_line(run, disk):
    """The other way round, a power cut would leave a line of a checkpoint that does not exist."""
    run.train_to(1)
    run.save("STATE")
    renamed = disk.events.index("rename global_step_1")
    assert disk.events[renamed + 1 :] == [f"fsync {run.dir.name}", f"fsync {ledger.LEDGER}"]
    assert disk.missing(run.dir / ledger.LEDGER) == []


def test_manifest_and_its_hash_are_the_last_files(run, disk):
    """They say that the others are there."""
    run.train_to(1)
    run.save("BOTH")
    until = disk.events.index("rename global_step_1")
    files = [name for event in disk.events[:until] if "." in (name := event.removeprefix("fsync "))]
    assert [name for name in files if not name.endswith(".partial")][-2:] == ["manifest.json", "manifest.sha256"]


def test_a_checkpoint_that_replaces_another_is_whole_before_the_other_goes(run, disk):
    run.train_to(1)
    run.save("STATE")
    run.save("BOTH")
    moves = [(source, target, missing) for source, target, missing in disk.renames if "global_step_1" in target]
    assert [target for _, target, _ in moves] == ["global_step_1", ".global_step_1.replaced", "global_step_1"]
    assert moves[-1][2] == []
