"""A source becomes one file per split: whole or not at all, the same every time, every row accounted for."""

from __future__ import annotations

import random

import pyarrow.parquet as pq
import pytest

from data_preprocess import convert as module
from data_preprocess.convert import convert
from data_preprocess.exchange import Exchange, UnusableRowError
from data_preprocess.source import Rows, open_source


def to_exchange(raw):
    if "bad" in raw:
        raise UnusableRowError(raw["bad"], f"found {raw['n']}")
    number = str(raw["n"])
    return Exchange(
        prompt=[{"role": "user", "content": number, **raw.get("prompt", {})}],
        reply={"role": "assistant", "content": number, **raw.get("reply", {})},
        question=number,
        answer=number,
        ability="counting",
        ground_truth=number,
        facts=raw.get("facts", {}),
        columns=raw.get("columns", {}),
        notes=raw.get("notes", ()),
    )


def rows(count, **changes):
    named = [(f"file:{n}", {"n": n, **changes.get(f"_{n}", {})}) for n in range(count)]
    return Rows(lambda: iter(named), count)


def written(path):
    return [int(row["extra_info"]["question"]) for row in pq.read_table(path).to_pylist()]


def test_every_row_is_accounted_for(tmp_path):
    said = []
    bad = {
        "_1": {"bad": "no answer"},
        "_2": {"notes": ["cut"]},
        "_3": {"bad": "no answer"},
        "_4": {"bad": "no question"},
        "_5": {"notes": ["cut"]},
    }
    counts = convert(
        {"train": rows(7, **bad), "test": rows(1)}, to_exchange, tmp_path, data_source="d", say=said.append
    )
    assert counts == {"train": 4, "test": 1}
    assert said == [
        "train: 7 rows read, 3 dropped",
        "  dropped 2: no answer (first file:1: found 1)",
        "  dropped 1: no question (first file:4: found 4)",
        "  noted 2: cut (first file:2)",
        "test: 1 rows read, 0 dropped",
        f"{tmp_path / 'train.parquet'}: 4 rows",
        f"{tmp_path / 'test.parquet'}: 1 rows",
    ]
    assert written(tmp_path / "train.parquet") == [0, 2, 5, 6]


def test_an_undivided_source_is_divided_by_the_seed(tmp_path):
    source = {"train": rows(50, _7={"bad": "no answer"})}
    assert convert(source, to_exchange, tmp_path / "a", data_source="d") == {"train": 48, "test": 1}
    assert convert(source, to_exchange, tmp_path / "b", data_source="d", val_fraction=0.2) == {"train": 39, "test": 10}
    parts = [pq.read_table(tmp_path / f"b/{part}.parquet").to_pylist() for part in ("train", "test")]
    assert sorted(row["extra_info"]["index"] for part in parts for row in part) == [n for n in range(50) if n != 7]
    assert all(row["extra_info"]["index"] == int(row["extra_info"]["question"]) for part in parts for row in part)
    assert {row["extra_info"]["split"] for row in parts[1]} == {"test"}
    convert(source, to_exchange, tmp_path / "c", data_source="d", val_fraction=0.2, seed=2)
    assert written(tmp_path / "c/test.parquet") != written(tmp_path / "b/test.parquet")
    assert convert(source, to_exchange, tmp_path / "d", data_source="d", val_fraction=0) == {"train": 49}


def test_a_single_row_is_train_unless_a_part_of_it_is_asked_for(tmp_path):
    said = []
    assert convert({"train": rows(1)}, to_exchange, tmp_path, data_source="d", say=said.append) == {"train": 1}
    assert said[-1] == "no test was drawn: train has a single row"
    assert not (tmp_path / "test.parquet").exists()


def test_the_same_input_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 8)
    source = {"train": rows(50, _7={"facts": {"z": "1", "a": "2"}}, _9={"columns": {"tools": "[]"}})}
    for out in ("a", "b"):
        random.seed(out)  # the draw is the seed's alone
        convert(source, to_exchange, tmp_path / out, data_source="d", val_fraction=0.1)
    for name in ("train.parquet", "test.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert pq.ParquetFile(tmp_path / "a/train.parquet").num_row_groups == 6  # 45 rows, 8 at once


def test_all_files_have_the_columns_that_some_row_has(tmp_path):
    plain = rows(3)
    convert({"train": plain, "test": plain}, to_exchange, tmp_path, data_source="d")
    schema = pq.read_schema(tmp_path / "train.parquet")
    assert schema.names == ["data_source", "prompt", "ability", "reward_model", "extra_info", "messages"]
    assert [field.name for field in schema.field("messages").type.value_type] == ["role", "content"]
    rich = rows(
        3,
        _2={
            "prompt": {"name": "b"},
            "reply": {"weight": 0.5},
            "facts": dict.fromkeys("fedcba", "7"),
            "columns": {"tools": "[1]"},
        },
    )
    convert({"train": plain, "test": rich}, to_exchange, tmp_path, data_source="d")
    schema = pq.read_schema(tmp_path / "train.parquet")
    assert schema == pq.read_schema(tmp_path / "test.parquet")
    assert schema.names[-1] == "tools"
    assert [field.name for field in schema.field("prompt").type.value_type] == ["role", "content", "name", "weight"]
    last = pq.read_table(tmp_path / "test.parquet").to_pylist()[2]
    assert list(last["extra_info"]) == [
        "split",
        "index",
        "question",
        "answer",
        *"abcdef",
    ]  # in whatever order they came
    assert last["extra_info"]["f"] == "7" and last["tools"] == "[1]"
    assert last["messages"][-1] == {"role": "assistant", "content": "2", "name": None, "weight": 0.5}
    assert last["prompt"][0]["name"] == "b"
    assert last["messages"][:-1] == last["prompt"]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (
            {"train": rows(2), "test": rows(1, _0={"bad": "no answer"})},
            {},
            "test has no usable row: unusable 1: no answer",
        ),
        ({"train": rows(0)}, {}, "train has no usable row: it has no rows"),
        (
            {"train": rows(2, _1={"bad": "x"})},
            {"strict": True},
            r"train: unusable 1: x \(first file:1: found 1\). Mend",
        ),
        (
            {"train": rows(1)},
            {"val_fraction": 0.02},
            "--val_fraction=0.02 of 1 rows leaves none to train; 0 draws none",
        ),
        ({"train": rows(9)}, {"val_fraction": 1.0}, "--val_fraction=1.0 must be at least 0 and less than 1"),
        ({"train": rows(9)}, {"val_fraction": -0.1}, "--val_fraction=-0.1 must be at least 0 and less than 1"),
        ({"train": rows(9), "test": rows(9)}, {"val_fraction": 0.1}, "the source has its own splits: train, test"),
    ],
)
def test_what_is_refused_writes_nothing(tmp_path, source, options, message):
    with pytest.raises(ValueError, match=message):
        convert(source, to_exchange, tmp_path / "out", data_source="d", **options)
    assert not (tmp_path / "out").exists()


def test_a_source_is_not_written_over(tmp_path):
    convert({"train": rows(9)}, to_exchange, tmp_path, data_source="d")
    before = (tmp_path / "train.parquet").read_bytes()
    itself = open_source(tmp_path / "train.parquet", hub_id=None)
    with pytest.raises(ValueError, match=r"train\.parquet is a source and would be written over"):
        convert(itself, lambda raw: to_exchange({"n": 1}), tmp_path / "." / "", data_source="d")
    assert (tmp_path / "train.parquet").read_bytes() == before


def test_a_file_of_an_earlier_run_is_named(tmp_path):
    convert({"train": rows(2), "validation": rows(1)}, to_exchange, tmp_path, data_source="d")
    said = []
    convert({"train": rows(2), "test": rows(1)}, to_exchange, tmp_path, data_source="d", say=said.append)
    assert said[-1] == f"{tmp_path / 'validation.parquet'}: of an earlier run, left as it was"


def test_a_write_that_fails_leaves_the_old_files_and_nothing_else(tmp_path, monkeypatch):
    convert({"train": rows(9)}, to_exchange, tmp_path, data_source="d")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 2)
    plain, looks = rows(9), []

    def read():
        looks.append(1)
        yield from plain.read()
        if len(looks) == 2:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        convert({"train": Rows(read, 9)}, to_exchange, tmp_path, data_source="other")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert sorted(before) == ["test.parquet", "train.parquet"]
