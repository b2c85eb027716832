"""Every kind of file gives the same rows, and says where each stands."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from sft.data.rows.files import count_rows, expand_files, read_rows
from sft.data.types import RowError
from sft.errors import InputError
from tests.assets import write_jsonl
from tests.rows import ROW

ROWS = [
    {"question": 'Say "a, b"\nand c.', "answer": "é 😀\ttab"},
    {"question": "1 + 1?", "answer": "2"},
    {"question": "true", "answer": "007"},
]


def as_jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows, delimiter=","):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*rows[0]], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_stream(rows, new=pa.ipc.new_stream):
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with new(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def as_zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


WRITERS = {
    "rows.jsonl": as_jsonl,
    "rows.jsonl.gz": lambda rows: gzip.compress(as_jsonl(rows)),
    "rows.jsonl.zst": lambda rows: as_zstd(as_jsonl(rows)),
    "array.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "array.json.gz": lambda rows: gzip.compress(json.dumps(rows, ensure_ascii=False).encode()),
    "lines.json": as_jsonl,
    "rows.csv": as_csv,
    "rows.csv.gz": lambda rows: gzip.compress(as_csv(rows)),
    "rows.tsv": lambda rows: as_csv(rows, "\t"),
    "stream.arrow": as_stream,
    "file.arrow": lambda rows: as_stream(rows, pa.ipc.new_file),
}


def write_all(directory, rows):
    for name, write in WRITERS.items():
        (directory / name).write_bytes(write(rows))
    pq.write_table(pa.Table.from_pylist(rows), directory / "rows.parquet")
    feather.write_feather(pa.Table.from_pylist(rows), directory / "rows.feather")
    return [*WRITERS, "rows.parquet", "rows.feather"]


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    for name in write_all(tmp_path, ROWS):
        read = list(read_rows(tmp_path / name))
        assert [cells for _, cells in read] == ROWS, name
        assert count_rows(tmp_path / name) == len(ROWS), name
        assert len({where for where, _ in read}) == len(ROWS), name


def test_gsm8k_gives_the_same_samples_from_every_kind_of_file(tmp_path, shared, open_file):
    path = next(path for path in sorted((shared / "data/gsm8k").iterdir()) if path.suffix in (".parquet", ".jsonl"))
    rows = [{"question": cells["question"], "answer": cells["answer"]} for _, cells in read_rows(path)][:50]
    stores = [open_file(tmp_path / name) for name in write_all(tmp_path, rows)]
    assert len({(store.facts.counts.samples, store.facts.counts.tokens) for store in stores}) == 1
    digests = [[batch["digest"] for batch in _batches(store)] for store in stores]
    assert all(digest == digests[0] for digest in digests)


def _batches(store):
    with pa.memory_map(str(store.directory / "samples.arrow")) as source:
        return pa.ipc.open_file(source).read_all().select(["digest"]).to_pylist()


def test_where_a_row_stands(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'question,answer\n"a\nb",c\n\nd,\n')
    assert list(read_rows(tmp_path / "a.csv")) == [
        ("a.csv:2", {"question": "a\nb", "answer": "c"}),
        ("a.csv:5", {"question": "d", "answer": None}),
    ]
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf[ {"a": 1} ,\n{"a": 2}]\n')
    assert list(read_rows(tmp_path / "a.json")) == [("a.json:0", {"a": 1}), ("a.json:1", {"a": 2})]
    (tmp_path / "a.json").write_bytes(b"[]")
    assert list(read_rows(tmp_path / "a.json")) == []


def test_objects_that_span_lines(tmp_path):
    path = tmp_path / "a.json"
    for text in (json.dumps(ROWS[0], indent=2), "".join(json.dumps(row, indent=1) for row in ROWS)):
        path.write_text("\n" + text)
        read = list(read_rows(path))
        assert [cells for _, cells in read] == ROWS[: len(read)] and read[0][0] == "a.json:0"
        assert count_rows(path) == len(read)
    path.write_text(json.dumps(ROWS[0]))  # of one line
    assert list(read_rows(path)) == [("a.json:1", ROWS[0])]
    path.write_text(json.dumps(ROWS[0], indent=2)[:-5])
    with pytest.raises(RowError, match=r"a.json:0: not JSON .*expected JSON objects, one behind the other"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("tail", "found"), [("xyz", "found 'xyz'"), ('[{"a": 1}]', r"found '\[\{"), ("{}", r"found '\{\}'")]
)
def test_what_stands_behind_an_array_is_not_lost(tmp_path, tail, found):
    (tmp_path / "a.json").write_text(f'[{{"a": 1}}]\n{tail}')
    with pytest.raises(RowError, match=f"a.json:1: {found}.*expected the end of the file"):
        list(read_rows(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},]', r"a.json:1: found ']' behind ','"),
        ('[{"a": 1} {"a": 2}]', r"a.json:1: found '\{.*expected ',' or ']'"),
        ('[{"a": 1}', "a.json:1: found the end of the file, expected ',' or ']'"),
    ],
)
def test_arrays_that_are_none(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RowError, match=message):
        list(read_rows(tmp_path / "a.json"))


@pytest.mark.parametrize("text", ['[{"role": "user"}]\n[{"role": "user"}]\n', '[[{"role": "user"}]]'])
def test_lists_of_messages_without_a_column_are_told_what_to_put_around_them(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(RowError, match=r"\(\{\"messages\": \[\.\.\.\]\} around a list of messages\)"):
        list(read_rows(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_the_header_of_a_csv_says_what_divides_it(tmp_path, mark):
    path = tmp_path / "a.csv"
    path.write_text(f'question{mark}"answer, short"\n"1{mark} 2"{mark}a, b\n')
    assert list(read_rows(path)) == [("a.csv:2", {"question": f"1{mark} 2", "answer, short": "a, b"})]
    path.write_text(f"sep={mark}\nquestion{mark}answer,\n1{mark}2\n")
    assert list(read_rows(path)) == [("a.csv:3", {"question": "1", "answer,": "2"})]


def test_a_csv_that_is_no_utf8_is_told_with_its_row(tmp_path):
    (tmp_path / "a.csv").write_bytes("question,answer\n1,2\ncafé,4\n".encode("latin-1"))
    with pytest.raises(RowError, match=r"a.csv:3: byte 3 is not UTF-8 .*iconv"):
        list(read_rows(tmp_path / "a.csv"))
    (tmp_path / "a.csv").write_text('question,answer\n1,2\n"3" x,4\n')
    with pytest.raises(RowError, match=r"a.csv:3: cannot be read as csv .*double the quotes"):
        list(read_rows(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("a.tar.gz", "unpack it"),
        ("a.tgz", "unpack it"),
        ("a.zip", "unpack it"),
        ("a.jsonl.xz", "unpack it"),
        ("a.xlsx", "save it as CSV"),
    ],
)
def test_archives_and_spreadsheets_are_refused_with_the_way_out(tmp_path, name, way_out):
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=way_out):
        list(read_rows(tmp_path / name))


def test_suffixes_in_capitals(tmp_path):
    for name in ("A.JSONL", "A.Ndjson", "A.CSV"):
        (tmp_path / name).write_bytes(WRITERS["rows.csv" if name.endswith("V") else "rows.jsonl"](ROWS))
        assert [cells for _, cells in read_rows(tmp_path / name)] == ROWS
        assert count_rows(tmp_path / name) == len(ROWS)


def test_text_is_a_text_per_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("Seven is\u2028a prime.\r\n\n  \n Eleven.\n".encode())
    assert list(read_rows(tmp_path / "a.txt")) == [
        ("a.txt:1", {"text": "Seven is\u2028a prime."}),
        ("a.txt:4", {"text": " Eleven."}),
    ]


def test_an_array_larger_than_what_is_read_at_once(tmp_path):
    rows = [{"a": "é" * 1000, "n": n} for n in range(2500)]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False))
    assert [cells for _, cells in read_rows(tmp_path / "a.json")] == rows
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False)[:-5000])
    with pytest.raises(RowError, match=r"a.json:2\d\d\d: not JSON"):
        list(read_rows(tmp_path / "a.json"))


def saved(directory, rows, shards=2):
    """What datasets.Dataset.save_to_disk writes."""
    directory.mkdir(parents=True)
    names = [f"data-{n:05}-of-{shards:05}.arrow" for n in range(shards)]
    for n, name in enumerate(names):
        (directory / name).write_bytes(as_stream(rows[n::shards]))
    (directory / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (directory / "dataset_info.json").write_text("{}")


def test_directories_of_save_to_disk(tmp_path):
    saved(tmp_path / "one", ROWS)
    assert [path.name for path in expand_files([str(tmp_path / "one")])] == [
        "data-00000-of-00002.arrow",
        "data-00001-of-00002.arrow",
    ]
    for split in ("train", "test"):
        saved(tmp_path / "all" / split, ROWS, shards=1)
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    said = []
    (path,) = expand_files([str(tmp_path / "all")], said.append)
    assert path.parent.name == "train" and "train of its splits train, test" in said[0]
    (path,) = expand_files([f"{tmp_path / 'all'}:test"])
    assert path.parent.name == "test" and [cells for _, cells in read_rows(path)] == ROWS
    with pytest.raises(InputError, match="has no split dev; it has test, train"):
        expand_files([f"{tmp_path / 'all'}:dev"])


def test_a_directory_says_what_is_left_out(tmp_path):
    write_jsonl(tmp_path / "d/a.jsonl", [ROW])
    for name in ("notes.txt", "b.csv", "c.jsonl.gz"):
        (tmp_path / "d" / name).write_bytes(b"a")
    said = []
    assert [path.name for path in expand_files([str(tmp_path / "d")], said.append)] == ["a.jsonl"]
    assert said == [f"{tmp_path / 'd'}: 1 of 4 files are read; left out: b.csv, c.jsonl.gz, notes.txt"]
    (tmp_path / "d/a.jsonl").unlink()
    assert [path.name for path in expand_files([str(tmp_path / "d")])] == ["b.csv", "c.jsonl.gz"]
