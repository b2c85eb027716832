"""Files -> rows; every bad file or line names itself and a way out."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft.data.rows.files import expand_files, names_of, read_rows
from sft.errors import InputError
from tests.assets import write_jsonl
from tests.rows import ROW


def test_jsonl_counts_lines_and_skips_blank_ones(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n  \n{"a": 2}')
    assert list(read_rows(path)) == [("rows.jsonl:1", {"a": 1}), ("rows.jsonl:4", {"a": 2})]


def test_parquet_counts_rows_from_zero(tmp_path):
    pq.write_table(pa.table({"a": list(range(2500))}), tmp_path / "rows.parquet")
    rows = list(read_rows(tmp_path / "rows.parquet"))
    assert rows[0] == ("rows.parquet:0", {"a": 0}) and rows[-1] == ("rows.parquet:2499", {"a": 2499})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b"", "is empty"),
        ("rows.parquet", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("rows.parquet", b"PAR1 not really", "not a readable parquet file"),
        ("rows.jsonl", b'{"a": 1}\n{"a": 2,}\n', r"rows.jsonl:2: not JSON .*expected one object per line"),
        ("rows.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}\n', r"rows.jsonl:2: byte 10 is not UTF-8"),
        ("rows.jsonl", b'{"a": 1}\n[{"a": 1}]\n', r"rows.jsonl:2: found a JSON list"),
    ],
)
def test_files_that_are_not_what_they_say(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_rows(tmp_path / name))


def test_lists_globs_and_directories(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl"):
        write_jsonl(tmp_path / name, [ROW])
    (tmp_path / "notes.txt").write_text("no data")
    found = expand_files([str(tmp_path / "*.jsonl"), str(tmp_path / "sub")])
    assert [path.name for path in found] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert [path.name for path in expand_files([str(tmp_path)])] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    with pytest.raises(InputError, match="no data files"):
        expand_files([str(tmp_path / "*.parquet")])


def test_files_are_called_by_the_end_of_their_path_that_tells_them_apart(tmp_path):
    def names(*paths):
        return list(names_of(tmp_path / path for path in paths).values())

    assert names("a/train.jsonl", "a/val.jsonl") == ["train.jsonl", "val.jsonl"]
    assert names("a/train.jsonl", "b/train.jsonl", "val.jsonl") == ["a/train.jsonl", "b/train.jsonl", "val.jsonl"]
    assert names("1/a/x.jsonl", "2/a/x.jsonl", "2/b/x.jsonl") == ["1/a/x.jsonl", "2/a/x.jsonl", "b/x.jsonl"]
    assert names("x.jsonl", "x.jsonl") == ["x.jsonl"]
    assert names("a\x1b[2J\n.jsonl") == ["a␛[2J␊.jsonl"], "it stands in every message"
    assert list(read_rows(write_jsonl(tmp_path / "x.jsonl", [{"a": 1}]), "1/x.jsonl")) == [("1/x.jsonl:1", {"a": 1})]
