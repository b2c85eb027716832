"""Files, directories and the hub become named rows, split by split; what cannot be read is named."""

from __future__ import annotations

import json
import sys
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_preprocess.source import open_source
from tests.assets import write_jsonl

ROWS = [{"a": 1, "b": "x"}, {"a": 2, "b": "ü"}]


def rows_of(path):
    return {split: list(rows.read()) for split, rows in open_source(path, hub_id=None).items()}


def write_parquet(path):
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def test_every_format_gives_the_same_rows(tmp_path):
    write_jsonl(tmp_path / "lines.jsonl", ROWS)
    write_jsonl(tmp_path / "lines.json", ROWS)
    write_parquet(tmp_path / "table.parquet")
    (tmp_path / "array.json").write_text("\ufeff  " + json.dumps(ROWS, indent=2))
    for name, first in (("lines.jsonl", 1), ("lines.json", 1), ("table.parquet", 0), ("array.json", 0)):
        named = [(f"{name}:{first + number}", row) for number, row in enumerate(ROWS)]
        source = open_source(tmp_path / name, hub_id=None)["train"]
        assert list(source.read()) == named
        assert list(source.read()) == named, "the second look sees the rows again"
        assert source.expected == (None if name == "array.json" else 2)


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    assert rows_of(tmp_path / "a.jsonl") == {"train": [("a.jsonl:1", {"a": 1}), ("a.jsonl:3", {"a": 2})]}


def test_a_directory_is_divided_by_the_names_of_its_files(tmp_path):
    for name in ("test-00000-of-00001", "train-00001-of-00002", "train-00000-of-00002", "Val", "dataset_infos"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"of": name}])
    assert {split: [row["of"] for _, row in rows] for split, rows in rows_of(tmp_path).items()} == {
        "train": ["train-00000-of-00002", "train-00001-of-00002"],
        "validation": ["Val"],
        "test": ["test-00000-of-00001"],
    }
    assert list(rows_of(tmp_path)) == ["train", "validation", "test"]  # also the order of the report


def test_files_without_a_split_are_train(tmp_path):
    for name in ("b", "a", "training", ".hidden"):  # training is a word of its own
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", [{"of": name}])
    assert {split: [row["of"] for _, row in rows] for split, rows in rows_of(tmp_path).items()} == {
        "train": ["a", "b", "training"]
    }
    assert list(rows_of(write_jsonl(tmp_path / "test.jsonl", ROWS))) == ["test"]


def test_what_cannot_be_read_is_named(tmp_path):
    def refuse(message, name=None, content=b""):
        path = tmp_path / (name or "nowhere")
        if name:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            rows_of(path)

    refuse("--local_dataset_path=.*nowhere does not exist")
    refuse(r"a\.jsonl is empty", "a.jsonl", b" \n")
    refuse(r"a\.parquet is not a readable parquet file", "a.parquet", b"PAR1 cut off")
    refuse("git lfs pull", "a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:00")
    refuse(r"a\.jsonl:2: not JSON \(.*\); expected one object per line", "a.jsonl", b'{"a": 1}\n{"a": \n')
    refuse(r"a\.jsonl:2: byte 7 is not UTF-8", "a.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n')
    refuse(r"a\.jsonl:1: expected an object with columns, found 3", "a.jsonl", b"3\n")
    refuse(r"a\.json:1: expected an object with columns, found 3", "a.json", b'[{"a": 1}, 3]')
    with pytest.raises(ValueError, match="no source: give --local_dataset_path"):
        open_source(None, hub_id=None)


def test_a_directory_that_does_not_fit_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \.parquet, \.jsonl, \.json file, it holds nothing"):
        rows_of(tmp_path)
    (tmp_path / "README.md").write_text("hello")
    with pytest.raises(ValueError, match=r"it holds README\.md; check --local_dataset_path"):
        rows_of(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    write_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="holds train in several formats"):  # the same rows twice
        rows_of(tmp_path)


def hub(monkeypatch, load_dataset):
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))


def test_the_hub_is_read_through_datasets(monkeypatch):
    asked = []
    hub(monkeypatch, lambda *what: asked.append(what) or {"train": ROWS, "test": ROWS[:1]})
    splits = open_source(None, hub_id="org/name", hub_config="main")
    assert asked == [("org/name", "main")]
    assert {split: rows.expected for split, rows in splits.items()} == {"train": 2, "test": 1}
    assert list(splits["train"].read()) == [("org/name/train:0", ROWS[0]), ("org/name/train:1", ROWS[1])]


CALLS = [{"name": "add", "arguments": {"a": 1, "c": None}}, {"name": "now", "arguments": {"zone": {"at": None}}}]


@pytest.mark.parametrize("name", ["calls.jsonl", "calls.json"])
def test_a_null_that_json_says_is_kept(tmp_path, name):
    rows = [{"call": call, "none": None} for call in CALLS]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name).write_text(json.dumps(rows) if name == "calls.json" else lines)
    assert [row for _, row in rows_of(tmp_path / name)["train"]] == rows


def test_a_null_with_which_arrow_fills_the_keys_of_siblings_is_no_key(tmp_path, monkeypatch):
    pq.write_table(pa.Table.from_pylist([{"call": call, "none": None} for call in CALLS]), tmp_path / "calls.parquet")
    filled = pq.read_table(tmp_path / "calls.parquet").to_pylist()
    assert filled[1]["call"]["arguments"]["a"] is None, "Arrow must fill, or nothing is tested"
    hub(monkeypatch, lambda *_: {"train": filled})
    expected = [
        {"call": {"name": "add", "arguments": {"a": 1}}, "none": None},
        {"call": {"name": "now", "arguments": {"zone": {}}}, "none": None},
    ]
    of_file, of_hub = rows_of(tmp_path / "calls.parquet")["train"], open_source(None, hub_id="org/name")["train"].read()
    assert [row for _, row in of_file] == [row for _, row in of_hub] == expected


def test_a_hub_that_cannot_be_read_is_named(monkeypatch):
    def unreachable(*_):
        raise ConnectionError("no route\nto host")

    hub(monkeypatch, unreachable)
    message = (
        r"cannot read org/name from the hub \(ConnectionError: no route to host\); try again, or give --local_data"
    )
    with pytest.raises(ValueError, match=message):
        open_source(None, hub_id="org/name")
    hub(monkeypatch, lambda *_: {"train_sft": ROWS, "train_gen": ROWS})
    with pytest.raises(ValueError, match=r"several splits for train \(train_sft, train_gen\)"):
        open_source(None, hub_id="org/name")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets; or give --local_dataset_path"):
        open_source(None, hub_id="org/name")
