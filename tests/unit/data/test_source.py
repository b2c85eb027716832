"""Files -> rows -> conversations; every bad row names its file, its line and a way out."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft.data.source import Columns, RowError, expand_files, read_rows, to_conversation
from sft.errors import InputError
from tests.assets import write_jsonl

COLUMNS = Columns(
    prompt_key="question",
    response_key="answer",
    prompt_dict_keys=("question",),
    response_dict_keys=("answer",),
    multiturn=False,
    messages_key="messages",
    tools_key="tools",
    enable_thinking_key="enable_thinking",
)
ROW = {"question": "1 + 1?", "answer": "2"}
MESSAGES = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]


def columns(**changes):
    return Columns(**{**COLUMNS.__dict__, **changes})


def messages_of(cells, **changes):
    return to_conversation(("file:1", cells), columns(**changes), {}).messages


NESTED = {"prompt_key": "extra_info", "response_key": "extra_info"}


@pytest.mark.parametrize(
    ("cells", "changes"),
    [
        (ROW, {}),  # plain columns although the dict keys default to question and answer
        ({"extra_info": {"question": "1 + 1?", "answer": "2"}}, NESTED),
        ({"extra_info": json.dumps(ROW)}, NESTED),
        ({"a": {"b": {"c": "1 + 1?"}}, "answer": "2"}, {"prompt_key": "a", "prompt_dict_keys": ("b", "c")}),
        ({"question": [MESSAGES[0]], "answer": "2"}, {}),  # the prompt column of RL data
        ({"messages": MESSAGES}, {}),  # recognised without multiturn.enable
        ({"messages": MESSAGES, **ROW}, {"multiturn": True}),
        ({"messages": json.dumps(MESSAGES)}, {"multiturn": True}),
    ],
)
def test_shapes_of_rows(cells, changes):
    assert messages_of(cells, **changes) == MESSAGES


def test_text_that_happens_to_be_json_stays_text():
    assert messages_of({"question": '{"a": 1}', "answer": "[1, 2]"}) == [
        {"role": "user", "content": '{"a": 1}'},
        {"role": "assistant", "content": "[1, 2]"},
    ]


def test_tools_and_thinking_switch_travel_with_the_row():
    row = {"messages": MESSAGES, "tools": [{"name": "f"}], "enable_thinking": False}
    conversation = to_conversation(("file:7", row), COLUMNS, {"today": "Monday"})
    assert conversation.tools == [{"name": "f"}]
    assert conversation.template_options == {"today": "Monday", "enable_thinking": False}
    assert conversation.where == "file:7"


@pytest.mark.parametrize(
    ("cells", "changes", "message"),
    [
        ({"prompt": "a"}, {}, r"file:1: no column 'question' or 'messages'; found \['prompt'\]. Set data.prompt_key"),
        (ROW, {"multiturn": True}, r"no column 'messages'.*data.multiturn.messages_key"),
        ({"question": "a"}, {}, r"no column 'answer'; found \['question'\]. Set data.response_key"),
        ({"question": "a", "answer": None}, {}, "data.response_key=answer leads to NoneType None, expected text"),
        ({"question": 3, "answer": "b"}, {}, "data.prompt_key=question leads to int 3, expected text or a list"),
        ({"extra_info": {"q": "a"}}, NESTED, r"struct without 'question'; it has \['q'\]"),
        ({"messages": "hello"}, {"multiturn": True}, "'messages' holds str 'hello', expected a list"),
        ({"messages": []}, {"multiturn": True}, "expected a list of messages"),
    ],
)
def test_rows_that_cannot_be_used(cells, changes, message):
    with pytest.raises(RowError, match=message):
        messages_of(cells, **changes)


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
        ("rows.jsonl", b'[{"a": 1}]\n', r"rows.jsonl:1: found a JSON list"),
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
