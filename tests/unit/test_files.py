"""What is written durably is on the disk when the call returns: its bytes before its name, its name before the end."""

import re
from pathlib import Path

import pytest

import sft
from sft.files import RunDir, finished, replace_file, step_of, sync_tree, unfinished, write_durably
from tests.disk import Disk


@pytest.fixture
def disk(monkeypatch) -> Disk:
    return Disk(monkeypatch)


def test_a_file_is_on_the_disk_with_all_its_bytes(tmp_path, disk):
    write_durably(tmp_path / "file", b"content")
    assert disk.missing(tmp_path / "file") == []
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_file_is_replaced_by_one_that_is_on_the_disk_and_its_name_follows(tmp_path, disk):
    write_durably(tmp_path / "file", b"old")
    replace_file(tmp_path / "file", b"new")
    assert [(target, missing) for _, target, missing in disk.renames] == [("file", [])]
    assert disk.missing(tmp_path) == []
    assert disk.events[-2:] == ["rename file", f"fsync {tmp_path.name}"]


def test_a_tree_is_on_the_disk_with_all_its_names(tmp_path, disk):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"content")
    assert disk.missing(tmp_path / "a") == ["a", "b", "file"]
    sync_tree(tmp_path / "a")
    assert disk.missing(tmp_path / "a") == []


def test_a_run_directory_names_its_checkpoints_and_what_is_unfinished(tmp_path):
    run = RunDir(tmp_path)
    for step in (10, 9, 100):
        run.checkpoint(step).mkdir()
    (tmp_path / "global_step_final").mkdir()
    unfinished(run.checkpoint(11), "partial").mkdir()
    assert [path.name for path in run.checkpoints()] == ["global_step_9", "global_step_10", "global_step_100"]
    assert [step_of(path) for path in run.checkpoints()] == [9, 10, 100]
    assert run.unfinished("partial") == [tmp_path / ".global_step_11.partial"] and run.unfinished("replaced") == []
    assert finished(tmp_path / ".global_step_11.partial") == run.checkpoint(11)


def test_no_other_module_spells_the_name_of_a_checkpoint():
    spelled = re.compile(r"""f?"[^"]*global_step_(\{|\*|\\d)""")
    others = [path for path in Path(sft.__file__).parent.rglob("*.py") if path.name != "files.py"]
    assert not [str(path) for path in others if spelled.search(path.read_text())]
