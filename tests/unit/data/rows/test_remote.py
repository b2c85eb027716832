"""Files behind an address: found, copied once, copied again when they change. memory:// stands for s3:// and others."""

import json
from pathlib import Path

import fsspec
import pytest

from sft.config.checks.data_files import _complaint_about_address
from sft.data.rows.files import expand_files, read_rows
from sft.errors import InputError


@pytest.fixture
def bucket():
    """Write files into a bucket in memory; it is empty at first."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs.clear()

    def write(name, text):
        memory.pipe_file(f"/bucket/{name}", text.encode())

    write.files = memory
    return write


def rows(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.fixture
def texts_at(tmp_path):
    """Return the rows of an address, in order, with their places."""

    def texts_at(address, say=lambda line: None):
        files = expand_files([address], say, copies=tmp_path / "copies")
        return [(where, row["text"]) for file in files for where, row in read_rows(file)]

    return texts_at


def test_a_file_a_glob_and_a_directory_are_read_with_their_rows_named(bucket, texts_at):
    bucket("rows/a.jsonl", rows("one", "two"))
    bucket("rows/deep/b.jsonl", rows("three"))
    bucket("rows/notes.bin", "\0")
    assert texts_at("memory://bucket/rows/a.jsonl") == [("a.jsonl:1", "one"), ("a.jsonl:2", "two")]
    assert texts_at("memory://bucket/rows/*/*.jsonl") == [("b.jsonl:1", "three")]
    assert texts_at("memory://bucket/rows") == [("a.jsonl:1", "one"), ("a.jsonl:2", "two"), ("b.jsonl:1", "three")]


def test_a_directory_has_splits_as_one_on_this_machine(bucket, texts_at):
    bucket("set/train.jsonl", rows("train"))
    bucket("set/test.jsonl", rows("test"))
    said = []
    assert texts_at("memory://bucket/set", said.append) == [("train.jsonl:1", "train")]
    assert any(line.startswith("memory://bucket/set: 1 of ") for line in said), said
    assert texts_at("memory://bucket/set:test") == [("test.jsonl:1", "test")]


def test_what_is_here_is_not_copied_again_unless_it_changed_there(bucket, texts_at):
    bucket("a.jsonl", rows("old"))
    said = []
    for _ in range(2):
        assert texts_at("memory://bucket/a.jsonl", said.append) == [("a.jsonl:1", "old")]
    assert len(said) == 1 and "/bucket/a.jsonl to " in said[0]
    bucket("a.jsonl", rows("new"))
    assert texts_at("memory://bucket/a.jsonl") == [("a.jsonl:1", "new")]


def test_what_is_gone_there_is_not_read_here(bucket, texts_at):
    bucket("rows/a.jsonl", rows("a"))
    bucket("rows/b.jsonl", rows("b"))
    assert len(texts_at("memory://bucket/rows")) == 2
    bucket.files.rm("/bucket/rows/a.jsonl")
    assert texts_at("memory://bucket/rows") == [("b.jsonl:1", "b")]


def test_a_file_given_by_name_and_its_directory_do_not_disturb_each_other(bucket, tmp_path):
    bucket("rows/a.jsonl", rows("a"))
    bucket("rows/b.csv", "text\nb\n")
    copies = tmp_path / "copies"
    (named,) = expand_files(["memory://bucket/rows/b.csv"], copies=copies)
    found = expand_files(["memory://bucket/rows"], copies=copies)
    assert [path.name for path in found] == ["a.jsonl"] and named.is_file()
    (again,) = expand_files(["memory://bucket/rows/b.csv"], copies=copies)
    assert [path.name for path in expand_files(["memory://bucket/rows"], copies=copies)] == ["a.jsonl"]
    assert again == named and named.is_file()


def test_a_copy_that_was_cut_short_is_made_again(bucket, texts_at, monkeypatch):
    bucket("a.jsonl", rows("a"))

    def fails(self, path, target, **options):
        Path(target).write_text("half")
        raise OSError("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(type(bucket.files), "get_file", fails)
        with pytest.raises(InputError, match=r"memory://bucket/a.jsonl cannot be read \(connection reset\)"):
            texts_at("memory://bucket/a.jsonl")
    assert texts_at("memory://bucket/a.jsonl") == [("a.jsonl:1", "a")]


@pytest.mark.parametrize("address", ["memory://bucket/no.jsonl", "memory://bucket/*.jsonl", "memory://bucket/empty"])
def test_an_address_without_files_is_named(bucket, texts_at, address):
    bucket("empty/notes.bin", "\0")
    with pytest.raises(InputError, match=r"no data files at memory://bucket"):
        texts_at(address)


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("memory://bucket/a.jsonl", None),
        ("s4://bucket/a.jsonl", "begins with s4://, which fsspec does not know"),
        ("oss://bucket/a.jsonl", "needs ossfs, which is not installed: pip install ossfs"),
    ],
)
def test_the_package_of_a_protocol_is_asked_for_first(address, complaint):
    found = _complaint_about_address(address)
    assert found is None if complaint is None else complaint in found
