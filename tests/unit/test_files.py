"""What is written durably is on the disk when the call returns: its bytes before its name, its name before the end."""

import pytest

from sft.files import replace_file, sync_tree, write_durably
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
