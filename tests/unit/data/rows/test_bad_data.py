"""Every way in which data is bad that we know of: one short message with the place, what is there, and a way out.

The files go through the whole front door, `open_dataset`, with a tokenizer of ChatML. A way that is fine after all
stands in FINE.
"""

import gzip
import json
import os
import socket
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft.config import load_config
from sft.data.cache.tokenise import Recipe, encode_items
from sft.data.dataset import Wanted, open_dataset
from sft.data.rows.formats import to_conversation, to_document
from sft.data.rows.recognise import recognise
from sft.data.types import RowCounts, Supervision
from sft.errors import InputError
from tests.assets import CHATML, tiny_model_dir, tiny_tokenizer
from tests.rows import COLUMNS

ROW = {"question": "1 + 1?", "answer": "2"}
USER, ASSISTANT = {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}
SYSTEM = {"role": "system", "content": "Be brief."}
STRICT = (
    "{%- for m in messages %}{%- if m.role == 'system' and not loop.first %}"
    "{{- raise_exception('System message must be at the beginning.') }}{%- endif %}"
    "{%- if not loop.first and m.role == messages[loop.index0 - 1].role %}"
    "{{- raise_exception('Roles must alternate.') }}{%- endif %}{%- endfor %}" + CHATML
)
"""Like Gemma's, Mistral's and Qwen3.5's, which raise for an order they were not trained in."""


@dataclass
class Bad:
    """make(directory) writes the file and returns what data.train_files is set to."""

    name: str
    make: Callable[[Path], Any]
    fragments: list[str]
    overrides: tuple[str, ...] = ()
    template: str = CHATML


def raw(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(home: Path) -> Path:
        (home / name).write_bytes(content)
        return home / name

    return make


def rows(*rows: Any) -> Callable[[Path], Path]:
    """A file of JSON lines, each row as json.dumps writes it."""
    return raw("bad.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


def chat(*messages: Any, **more: Any) -> Callable[[Path], Path]:
    """A file of a good row and one with these messages."""
    return rows({"messages": [USER, ASSISTANT]}, {"messages": list(messages), **more})


def parquet(table: pa.Table, edit: Callable[[bytes], bytes] = lambda content: content) -> Callable[[Path], Path]:
    def make(home: Path) -> Path:
        pq.write_table(table, home / "bad.parquet")
        (home / "bad.parquet").write_bytes(edit((home / "bad.parquet").read_bytes()))
        return home / "bad.parquet"

    return make


TABLE = pa.Table.from_pylist([ROW] * 50)
ROWS = "".join(json.dumps(ROW) + "\n" for _ in range(3)).encode()
INVALID_TEXT = pa.table(
    {
        "question": ["1 + 1?"],
        "answer": pa.StringArray.from_buffers(1, pa.py_buffer(struct.pack("<2i", 0, 1)), pa.py_buffer(b"\xe9")),
    }
)


def gz(home: Path) -> Path:
    (home / "rows.jsonl.gz").write_bytes(gzip.compress(ROWS))
    return home / "rows.jsonl.gz"


def zipped(home: Path) -> Path:
    with zipfile.ZipFile(home / "rows.jsonl", "w") as archive:
        archive.writestr("rows.jsonl", ROWS)
    return home / "rows.jsonl"


def fifo(home: Path) -> Path:
    os.mkfifo(home / "pipe.jsonl")
    return home / "pipe.jsonl"


def unix_socket(home: Path) -> Path:
    here = Path.cwd()
    os.chdir(home)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("s.jsonl")
    finally:
        os.chdir(here)
    return home / "s.jsonl"


def empty_directory(home: Path) -> Path:
    (home / "data").mkdir()
    (home / "data" / "rows.txt").write_bytes(ROWS)
    (home / "data" / ".hidden.jsonl").write_bytes(ROWS)
    return home / "data"


def dangling_link(home: Path) -> Path:
    (home / "rows.jsonl").symlink_to(home / "gone.jsonl")
    return home / "rows.jsonl"


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def damaged_page(content: bytes) -> bytes:
    middle = bytearray(content)
    middle[4:60] = b"\xff" * 56
    return bytes(middle)


TOOL_CALL = {"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"a": 1'}}

BAD = [
    # files
    Bad("parquet cut short", parquet(TABLE, lambda b: b[:-20]), ["bad.parquet is not a readable parquet", "download"]),
    Bad("parquet without its beginning", parquet(TABLE, lambda b: b[4:]), ["bad.parquet does not start as parquet"]),
    Bad("parquet with a damaged page", parquet(TABLE, damaged_page), ["bad.parquet:0", "cannot be decoded", "again"]),
    Bad("parquet without rows", parquet(TABLE.slice(0, 0)), ["bad.parquet holds no rows", "at least one"]),
    Bad("parquet whose text is not UTF-8", parquet(INVALID_TEXT), ["bad.parquet:0", "cannot be decoded", "utf-8"]),
    Bad("jsonl named parquet", raw("a.parquet", ROWS), ["a.parquet does not start as parquet", '{"question', "Rename"]),
    Bad("parquet named jsonl", lambda home: parquet(TABLE)(home).rename(home / "a.jsonl"), ["a.jsonl is parquet"]),
    Bad(
        "git-lfs pointer", raw("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n"), ["a.jsonl", "git lfs pull"]
    ),
    Bad("git-lfs pointer as parquet", raw("a.parquet", b"version https://git-lfs.github.com/\n"), ["git lfs pull"]),
    Bad("empty file", raw("a.jsonl", b""), ["a.jsonl is empty", "one object per line"]),
    Bad("empty parquet", raw("a.parquet", b""), ["a.parquet is empty"]),
    Bad("only blank lines", raw("a.jsonl", b"\n \n\t\n"), ["a.jsonl holds no rows"]),
    Bad("gzip without its suffix", lambda home: gz(home).rename(home / "a.jsonl"), ["compressed with gzip", "*.gz"]),
    Bad("gzip cut short", lambda home: cut(gz(home), 20), ["rows.jsonl.gz", "cannot be unpacked", "download"]),
    Bad("zip named jsonl", zipped, ["rows.jsonl is a zip archive"]),
    Bad("csv row with a cell too many", raw("a.csv", b"question,answer\na,b\na,b,c\n"), ["a.csv:3: 3 cells", "Quote"]),
    Bad("csv with a name twice", raw("a.csv", b"answer,answer\na,b\n"), ["a.csv:1: a column name stands twice"]),
    Bad(
        "csv that is not UTF-8",
        raw("a.csv", b"question,answer\na,caf\xe9\n"),
        ["a.csv:2: byte 5", "iconv"],
    ),
    Bad("csv of a header alone", raw("a.csv", b"question,answer\n"), ["a.csv holds no rows"]),
    Bad("excel", raw("a.xlsx", b"rows"), ["a.xlsx is a spreadsheet; save it as CSV"]),
    Bad("Arrow that is none", raw("a.arrow", b"rows and more rows"), ["a.arrow is not a readable Arrow file"]),
    Bad("no suffix", raw("rows", ROWS), ["rows: expected *.parquet", "found no suffix", "rename"]),
    Bad("utf-16", raw("a.jsonl", ROWS.decode().encode("utf-16")), ["a.jsonl is UTF-16", "iconv -f UTF-16"]),
    Bad("utf-16 without a mark", raw("a.jsonl", ROWS.decode().encode("utf-16-le")), ["a.jsonl holds NUL bytes"]),
    Bad("binary named jsonl", raw("a.jsonl", bytes(range(256))), ["a.jsonl holds NUL bytes", "no text"]),
    Bad("JSON array cut short", raw("a.json", b"[" + json.dumps(ROW).encode()), ["a.json:1: found the end"]),
    Bad("JSON array cut in a row", raw("a.jsonl", b"[\n  {\n"), ["a.jsonl:0: not JSON", "expected an array"]),
    Bad("JSON array of numbers", raw("a.json", b"[1, 2]"), ["a.json:0: found a JSON int", "expected an object"]),
    Bad("JSON array without commas", raw("a.json", b'[{"question": "a"} {}]'), ["a.json:1: found '{}]', expected ','"]),
    Bad("JSON array with a key twice", raw("a.json", b'[{"a": 1, "a": 2}]'), ["a.json:0: the key 'a' stands twice"]),
    Bad("pipe", fifo, ["pipe.jsonl is a pipe, a socket or a device"]),
    Bad("socket", unix_socket, ["s.jsonl is a pipe, a socket or a device"]),
    Bad(
        "directory without data",
        empty_directory,
        ["no data files at", "*.parquet or *.jsonl", "it holds .hidden.jsonl, rows.txt"],
    ),
    Bad("glob without a match", lambda home: home / "*.jsonl", ["no data files at", "*.jsonl"]),
    Bad("link to nowhere", dangling_link, ["rows.jsonl cannot be read (No such file", "check the path"]),
    Bad("no such file", lambda home: home / "gone.jsonl", ["no data files at", "gone.jsonl"]),
    # lines
    Bad(
        "latin-1",
        raw("a.jsonl", ROWS + '{"question": "é"}'.encode("latin-1")),
        ["a.jsonl:4: byte 14 is not UTF-8", "iconv"],
    ),
    Bad("line cut short", raw("a.jsonl", ROWS[:-10]), ["a.jsonl:3: not JSON", "expected one object per line"]),
    Bad("object over several lines", raw("a.jsonl", ROWS + b'{\n "a": "a"\n}'), ["a.jsonl:4: not JSON", "per line"]),
    Bad("two objects in a line", raw("a.jsonl", ROWS.replace(b"\n", b"")), ["a.jsonl:1: not JSON (Extra data"]),
    Bad("JSON text", raw("a.jsonl", ROWS + b'"hello"\n'), ["a.jsonl:4: found a JSON str", "expected an object"]),
    Bad("python's single quotes", raw("a.jsonl", b"{'question': 'a'}"), ["a.jsonl:1: not JSON", "{'question'"]),
    Bad(
        "key twice",
        raw("a.jsonl", b'{"question": "a", "answer": "b", "answer": "c"}'),
        ["a.jsonl:1", "'answer' stands twice"],
    ),
    Bad("key twice, inside", raw("a.jsonl", b'{"messages": [{"role": "user", "role": "a"}]}'), ["'role' stands twice"]),
    Bad("NaN", raw("a.jsonl", b'{"question": "a", "answer": NaN}'), ["a.jsonl:1: NaN is no JSON value", "write null"]),
    Bad("Infinity", raw("a.jsonl", b'{"question": "a", "answer": -Infinity}'), ["a.jsonl:1: -Infinity is no JSON"]),
    Bad(
        "lone surrogate",
        raw("a.jsonl", ROWS + b'{"question": "\\ud83d", "answer": "a"}'),
        ["a.jsonl:4: found a lone surrogate ('\\ud83d')"],
    ),
    Bad(
        "lone surrogate as a key", raw("a.jsonl", b'{"question": "a", "answer": "b", "\\uDE00": 1}'), ["lone surrogate"]
    ),
    Bad("nested too deep", raw("a.jsonl", b'{"question": ' + b"[" * 200_000), ["a.jsonl:1"]),
    Bad("3 MB that is not JSON", raw("a.jsonl", b'{"question": "' + b"a" * 3_000_000), ["a.jsonl:1: not JSON"]),
    Bad("number of 5,000 digits", raw("a.jsonl", b'{"question": ' + b"1" * 5000 + b"}"), ["a.jsonl:1: ", "digits"]),
    # columns
    Bad(
        "wrong columns",
        rows({"a": "b", "c": "d"}),
        ["bad.jsonl:1", "['a', 'c']", "'question' and 'answer'", "data.prompt_key"],
    ),
    Bad("a thousand columns", rows({f"column_{k}": 1 for k in range(1000)}), ["bad.jsonl:1", "and 988 more"]),
    Bad(
        "null prompt", rows(ROW, ROW | {"question": None}), ["bad.jsonl:2", "data.prompt_key=question", "NoneType None"]
    ),
    Bad("null response", rows(ROW, ROW | {"answer": None}), ["bad.jsonl:2", "data.response_key=answer", "NoneType"]),
    Bad(
        "null messages",
        rows({"messages": [USER, ASSISTANT]}, {"messages": None}),
        ["bad.jsonl:2", "'messages' holds None"],
    ),
    Bad(
        "mixed types",
        rows(ROW, ROW | {"answer": 2}, ROW | {"answer": {"text": "a"}}),
        ["2 of 3", "jsonl:2", "int 2", "jsonl:3"],
    ),
    Bad(
        "empty answer",
        rows(ROW, ROW | {"answer": ""}),
        ["bad.jsonl:2: messages[1] (assistant) is empty", "bad_rows=drop"],
    ),
    Bad("answer missing in a row", rows(ROW, {"question": "a"}), ["bad.jsonl:2: no column 'answer'", "['question']"]),
    Bad(
        "struct without the key",
        parquet(pa.Table.from_pylist([{"extra_info": {"q": "a", "answer": "b"}}])),
        ["bad.parquet:0", "data.prompt_key=extra_info is a struct without 'question'", "['answer', 'q']"],
        ("data.prompt_key=extra_info", "data.response_key=extra_info"),
    ),
    Bad("parquet of numbers", parquet(pa.table({"question": [1], "answer": [2]})), ["bad.parquet:0", "int 1"]),
    Bad(
        "text that is a number", rows({"text": "a"}, {"text": 3}), ["bad.jsonl:2", "'text' holds int 3, expected text"]
    ),
    Bad("thinking switch as text", rows(ROW | {"enable_thinking": "false"}), ["bad.jsonl:1", "expected true or false"]),
    Bad("tools that are not JSON", chat(USER, ASSISTANT, tools="[{]"), ["bad.jsonl:2: tools is not JSON"]),
    Bad("tools that are numbers", chat(USER, ASSISTANT, tools=[1, 2]), ["bad.jsonl:2: tools must be a list of"]),
    # conversations
    Bad("empty messages", chat(), ["bad.jsonl:2: column 'messages' holds list []"]),
    Bad("messages as other text", rows({"messages": "user: hi"}), ["bad.jsonl:1", "'messages' holds str 'user: hi'"]),
    Bad("messages as broken JSON", rows({"messages": '[{"role": '}), ["bad.jsonl:1", "expected a list of messages"]),
    Bad("message that is text", chat("hi"), ["bad.jsonl:2: messages[0] must be an object with role and content"]),
    Bad(
        "unknown role",
        chat(USER, {"role": "critic", "content": "a"}),
        ["bad.jsonl:2: messages[1]", "'critic'", "expected one of"],
    ),
    Bad("missing role", chat({"content": "a"}, ASSISTANT), ["bad.jsonl:2: messages[0] has no role"]),
    Bad("unknown speaker", rows({"conversations": [{"from": "bot", "value": "a"}]}), ["bad.jsonl:1", "from str 'bot'"]),
    Bad(
        "assistant first",
        chat(ASSISTANT, USER),
        ["bad.jsonl:2: the assistant speaks first", "train_on=last_assistant"],
    ),
    Bad("no assistant", chat(USER), ["bad.jsonl:2: no assistant message", "roles: user"]),
    Bad("empty assistant", chat(USER, ASSISTANT | {"content": ""}), ["bad.jsonl:2: messages[1] (assistant) is empty"]),
    Bad("blank assistant", chat(USER, ASSISTANT | {"content": " \n"}), ["messages[1] (assistant) is empty (' \\n')"]),
    Bad(
        "assistant of empty parts",
        chat(USER, ASSISTANT | {"content": [{"type": "text", "text": ""}]}),
        ["bad.jsonl:2: messages[1] (assistant) is empty"],
    ),
    Bad(
        "blank assistant in history that is trained",
        chat(USER, ASSISTANT | {"content": ""}, USER, ASSISTANT),
        ["bad.jsonl:2: messages[1] (assistant) is empty"],
    ),
    Bad(
        "assistant without content",
        chat(USER, {"role": "assistant"}),
        ["bad.jsonl:2: messages[1] (assistant) has no content"],
    ),
    Bad("number as content", chat(USER | {"content": 3}, ASSISTANT), ["bad.jsonl:2: messages[0].content must be text"]),
    Bad("picture as content", chat(USER | {"content": [{"type": "image_url"}]}, ASSISTANT), ["content must be text"]),
    Bad(
        "arguments that are not JSON",
        chat(USER, {"role": "assistant", "tool_calls": [TOOL_CALL]}),
        ["tool_calls[0]: arguments is not JSON"],
    ),
    Bad(
        "tool call without a name",
        chat(USER, {"role": "assistant", "tool_calls": [{"function": {}}]}),
        ["must name a function"],
    ),
    Bad(
        "tool calls as text",
        chat(USER, {"role": "assistant", "tool_calls": "add(1)"}),
        ["bad.jsonl:2: messages[1].tool_calls"],
    ),
    Bad(
        "3 MB where text should be",
        chat(USER | {"content": [{"type": "image", "data": "a" * 3_000_000}]}, ASSISTANT),
        ["bad.jsonl:2: messages[0].content"],
    ),
    Bad(
        "two system messages",
        chat(SYSTEM, SYSTEM, USER, ASSISTANT),
        ["bad.jsonl:2", "must be at the beginning"],
        template=STRICT,
    ),
    Bad("roles out of order", chat(USER, USER, ASSISTANT), ["bad.jsonl:2", "Roles must alternate"], template=STRICT),
    Bad(
        "a row longer than it may be",
        rows({**ROW, "question": "a" * 5000}),
        ["bad.jsonl:1 (", "data.max_length", "truncation"],
    ),
]

FINE = {
    "byte order mark": raw("a.jsonl", b"\xef\xbb\xbf" + ROWS),
    "windows line ends": raw("a.jsonl", ROWS.replace(b"\n", b"\r\n")),
    "no line end at the end": raw("a.jsonl", ROWS.rstrip()),
    "blank lines between": raw("a.jsonl", ROWS.replace(b"\n", b"\n\n  \n")),
    "jsonl named json": raw("a.json", ROWS),
    "line separators inside text": raw("a.jsonl", '{"question": "a\u2028b\u0085c", "answer": "d"}\n'.encode()),
    "whole surrogate pairs": raw("a.jsonl", b'{"question": "\\ud83d\\ude00", "answer": "a"}'),
    "messages as JSON text": rows({"messages": json.dumps([USER, ASSISTANT])}),
    "two system messages, where the template takes them": rows({"messages": [SYSTEM, SYSTEM, USER, ASSISTANT]}),
    "an untrained assistant first": rows({"messages": [ASSISTANT | {"train": False}, USER, ASSISTANT]}),
    "an untrained answer that is empty": rows(
        {"messages": [USER, ASSISTANT | {"content": "", "weight": 0}, USER, ASSISTANT]}
    ),
    "a blank turn of the user's": rows({"messages": [USER | {"content": " "}, ASSISTANT]}),
    "a blank turn of a human's": rows(
        {"conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": "b"}]}
    ),
    "a large list of other columns": parquet(
        pa.table({**{f"c{k}": [0] for k in range(500)}, "question": ["a"], "answer": ["b"]})
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture
def open_rows(tmp_path, model, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "data").mkdir()
    good = tmp_path / "good.jsonl"
    good.write_bytes(ROWS)
    config = [f"model.partial_pretrain={model}", f"data.train_files={good}", "data.val_files=null"]

    def open_rows(make, overrides=(), template=CHATML):
        found = make(tmp_path / "data")
        return open_dataset(
            load_config([*config, f"data.cache_dir={tmp_path / 'cache'}", *overrides]).data,
            Wanted((str(found),)),
            max_tokens=None,
            packed=True,
            tokenizer=tiny_tokenizer(template),
            build_here=True,
            say=lambda line: None,
        )

    return open_rows


@pytest.mark.parametrize("bad", BAD, ids=[bad.name for bad in BAD])
def test_bad_data_is_told_shortly(open_rows, bad):
    with pytest.raises(InputError) as caught:
        open_rows(bad.make, bad.overrides, bad.template)
    message = str(caught.value)
    assert [fragment for fragment in bad.fragments if fragment not in message] == [], message
    assert len(message) < 1500
    message.encode()  # it will be printed


@pytest.mark.parametrize("make", FINE.values(), ids=FINE)
def test_what_looks_bad_and_is_fine(open_rows, make):
    assert len(open_rows(make)) >= 1


def test_a_line_of_3_mb_is_a_row_like_any_other(open_rows):
    make = rows(ROW | {"question": "a " * 1_500_000})
    dataset = open_rows(make, ("data.max_length=2000000",))
    assert dataset.samples.lengths[0] > 1_500_000


def test_a_file_that_this_user_may_not_read(open_rows, monkeypatch):
    really_open = Path.open

    def refuse(path, *args, **options):  # tests may run as root, who may read everything
        if path.name == "bad.jsonl":
            raise PermissionError(13, "Permission denied", str(path))
        return really_open(path, *args, **options)

    make = rows(ROW)

    def make_and_lock(home):
        path = make(home)
        monkeypatch.setattr(Path, "open", refuse)
        return path

    with pytest.raises(InputError, match=r"bad.jsonl cannot be read \(Permission denied\); check .* permissions"):
        open_rows(make_and_lock)


def test_a_file_that_vanishes_while_we_look(open_rows, monkeypatch):
    from sft.data.rows import source as rows_room

    def vanish(first, columns, name, **more):
        Path(vanish.path).unlink()
        return ""

    def make(home):
        vanish.path = rows(ROW)(home)
        return vanish.path

    monkeypatch.setattr(rows_room, "verdict", vanish)
    with pytest.raises(InputError, match=r"bad.jsonl cannot be read"):
        open_rows(make)


def test_all_bad_lines_of_a_batch_are_told_at_once_and_long_lists_are_cut(open_rows):
    with pytest.raises(InputError) as caught:
        open_rows(rows(ROW, *[ROW | {"answer": number} for number in range(30)]))
    message = str(caught.value)
    assert "30 of 31 rows cannot be used" in message and "bad.jsonl:11" in message and "and 20 more" in message
    assert "bad.jsonl:12" not in message


def test_the_table_is_large_enough():
    assert len(BAD) >= 30 and len({bad.name for bad in BAD}) == len(BAD)
    assert all(bad.fragments for bad in BAD)


WHOLE = [
    {
        "messages": [
            SYSTEM,
            USER | {"content": [{"type": "text", "text": "1 + 1?"}]},
            {
                "role": "assistant",
                "thinking": "Hm.",
                "content": "Let me see.",
                "tool_calls": [{"id": "a", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
            },
            {"role": "tool", "content": "2"},
            ASSISTANT,
        ],
        "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
        "enable_thinking": True,
        "chat_template_kwargs": {"today": "Monday"},
    },
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "c"},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": '{"name": "f"}'}]},
    {"instruction": "a", "input": "b", "output": "c", "system": "d", "history": [["e", "f"]]},
    {"system_prompt": "a", "question": "b", "response": "c"},
    {"prompt": [USER], "completion": [ASSISTANT]},
    {"text": "a"},
]
ANYTHING = [None, 3, 1.5, True, "", "x", "[1]", '{"a": 1}', b"\xff", [], {}, [3], ["x"], [[]], [{}], {"a": 1}]


def variants(value: Any):
    """Every copy of a value with one of its parts, at any depth, replaced by anything."""
    yield from ANYTHING
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        for variant in variants(part):
            changed = value.copy()
            changed[key] = variant
            yield changed


@pytest.mark.parametrize("whole", WHOLE, ids=lambda row: " ".join(row))
def test_no_value_anywhere_in_a_row_gives_a_traceback(whole):
    template = CHATML.replace("message.content", "(message.content or '') + (message.thinking or '')").replace(
        "+ '<|im_end|>", "+ (message.tool_calls | tojson if message.tool_calls else '') + '<|im_end|>"
    )
    tokenizer = tiny_tokenizer("{{- tools | tojson if tools else '' }}" + template)
    settled = recognise([("bad.jsonl:1", whole)], COLUMNS, "bad.jsonl")
    convert = to_document if settled.format == "text" else partial(to_conversation, template_options={})
    usable = 0
    for changed in variants(whole):
        if not isinstance(changed, dict):
            continue
        try:
            item = convert(("bad.jsonl:1", changed), columns=settled)
            usable += bool(encode_items([item], Recipe(tokenizer, {}, Supervision()), 100, RowCounts())[0])
        except InputError as error:
            assert "bad.jsonl:1" in str(error), changed
    assert usable > 0
