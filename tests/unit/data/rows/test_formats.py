"""Rows of every format -> messages, and the verdict which format a file has."""

import json
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft.config import load_config
from sft.config.schema import Format as FormatName
from sft.data.chat.encode import encode_batch
from sft.data.rows import formats
from sft.data.rows.columns import DEFAULT_KEYS
from sft.data.rows.entries import columns_of
from sft.data.rows.files import read_rows
from sft.data.rows.recognise import recognise
from sft.data.rows.source import differences, rows_of_file
from sft.data.rows.verdict import verdict
from sft.data.types import RowError
from sft.errors import InputError
from tests.assets import tiny_tokenizer, write_jsonl
from tests.rows import COLUMNS, ROW, columns

ROOT = Path(__file__).parents[4]
QUESTION, ANSWER = {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}
MESSAGES = [QUESTION, ANSWER]
SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 1}}}
JSON_ANSWER = '{"answer": "2", "why": "sum"}'
NESTED = {"prompt_key": "extra_info", "response_key": "extra_info"}


def read(cells, *, first=None, **changes):
    """(format, conversation) of a row, in a file whose first row is `first`, the row itself if None."""
    settled = recognise([("file:1", first or cells)], columns(**changes), "file")
    return settled.format, formats.to_conversation(("file:1", cells), settled, {"today": "Monday"})


CASES = [
    # prompt and response
    ("prompt_response", ROW, {}, MESSAGES),  # plain columns although the dict keys default to question and answer
    ("prompt_response", {"extra_info": {"question": "1 + 1?", "answer": "2"}}, NESTED, MESSAGES),
    ("prompt_response", {"extra_info": json.dumps(ROW)}, NESTED, MESSAGES),
    (
        "prompt_response",
        {"a": {"b": {"c": "1 + 1?"}}, "answer": "2"},
        {"prompt_key": "a", "prompt_dict_keys": ("b", "c")},
        MESSAGES,
    ),
    ("prompt_response", {"question": [QUESTION], "answer": "2"}, {}, MESSAGES),  # the prompt column of RL data
    ("prompt_response", {"prompt": [SYSTEM, QUESTION], "completion": [ANSWER]}, {}, [SYSTEM, *MESSAGES]),
    ("prompt_response", {"prompt": "1 + 1?", "response": "2"}, {}, MESSAGES),
    ("prompt_response", {"problem": "1 + 1?", "solution": "2", "level": 3}, {}, MESSAGES),
    ("prompt_response", {"question": "1 + 1?", "response": "2"}, {}, MESSAGES),  # not OpenOrca: no system_prompt
    ("prompt_response", {"question": '{"a": 1}', "answer": "2"}, {}, [QUESTION | {"content": '{"a": 1}'}, ANSWER]),
    # JSON that is the answer, or the question, stays whole: nobody asked for a part of it
    (
        "prompt_response",
        {"question": "1 + 1?", "answer": JSON_ANSWER},
        {},
        [QUESTION, ANSWER | {"content": JSON_ANSWER}],
    ),
    (
        "prompt_response",
        {"prompt": "1 + 1?", "response": JSON_ANSWER},
        {},
        [QUESTION, ANSWER | {"content": JSON_ANSWER}],
    ),
    (
        "prompt_response",
        {"prompt": '{"question": "1?", "more": "a"}', "completion": "2"},
        {},
        [QUESTION | {"content": '{"question": "1?", "more": "a"}'}, ANSWER],
    ),
    ("prompt_response", {"prompt": {"question": "1 + 1?"}, "completion": {"answer": "2"}}, {}, MESSAGES),
    ("prompt_response", {**ROW, "messages": [SYSTEM]}, {}, MESSAGES),  # the user's columns win
    ("prompt_response", {**ROW, "prompt": "Answer this: 1 + 1? Begin.", "output": "2"}, {}, MESSAGES),  # its rendering
    (
        "prompt_response",
        {"instruction": "1 + 1?", "output": "2", "input": "x"},
        {"prompt_key": "instruction", "response_key": "output"},
        MESSAGES,
    ),
    # messages
    ("messages", {"messages": MESSAGES}, {}, MESSAGES),  # without multiturn.enable
    ("messages", {"messages": MESSAGES, **ROW, "question": "other"}, {"multiturn": True}, MESSAGES),
    ("messages", {"messages": json.dumps(MESSAGES)}, {}, MESSAGES),
    ("messages", {"conversations": MESSAGES}, {}, MESSAGES),
    ("messages", {"conversation": MESSAGES, "model": "m"}, {}, MESSAGES),
    ("messages", {"chat": MESSAGES}, {"messages_key": "chat"}, MESSAGES),
    ("messages", {"prompt": [QUESTION], "messages": MESSAGES, "extra_info": {"index": 0}}, {}, MESSAGES),  # RL + SFT
    (
        "messages",
        {"messages": [QUESTION, {"role": "assistant", "content": None, "function_call": CALL["function"]}]},
        {},
        [QUESTION, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
    ),
    # sharegpt
    ("sharegpt", {"conversations": TURNS}, {}, MESSAGES),
    ("sharegpt", {"conversations": json.dumps(TURNS)}, {}, MESSAGES),
    ("sharegpt", {"messages": TURNS}, {"multiturn": True}, MESSAGES),
    ("sharegpt", {"conversations": [{"from": t["from"], "content": t["value"]} for t in TURNS]}, {}, MESSAGES),
    ("sharegpt", {"conversations": TURNS, "system": "Be brief."}, {}, [SYSTEM, *MESSAGES]),
    ("sharegpt", {"conversations": TURNS, "system": ""}, {}, MESSAGES),
    (
        "sharegpt",
        {"conversations": [{"from": "system", "value": "Be brief."}, TURNS[0], {**TURNS[1], "weight": 0.5}]},
        {},
        [SYSTEM, QUESTION, {**ANSWER, "weight": 0.5}],
    ),
    (
        "sharegpt",
        {
            "conversations": [
                TURNS[0],
                {"from": "function_call", "value": json.dumps(CALL["function"])},
                {"from": "observation", "value": "2"},
                TURNS[1],
            ]
        },
        {},
        [QUESTION, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "2"}, ANSWER],
    ),
    # alpaca
    ("alpaca", {"instruction": "1 + 1?", "input": "", "output": "2", "text": "all of it"}, {}, MESSAGES),
    ("alpaca", {"instruction": "1 + 1?", "input": None, "output": "2"}, {}, MESSAGES),
    ("alpaca", {"instruction": "1 + 1?", "output": "2"}, {}, MESSAGES),
    ("alpaca", {"instruction": " ", "input": "1 + 1?", "output": "2"}, {}, MESSAGES),
    (
        "alpaca",
        {"instruction": "Add.", "input": "1 and 1", "output": "2"},
        {},
        [{"role": "user", "content": "Add.\n\n1 and 1"}, ANSWER],
    ),
    (
        "alpaca",
        {"instruction": "1 + 1?", "input": "", "output": "2", "system": "Be brief.", "history": [["Hi.", "Hello."]]},
        {},
        [SYSTEM, {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}, *MESSAGES],
    ),
    # dolly
    ("dolly", {"instruction": "1 + 1?", "context": "", "response": "2", "category": "open_qa"}, {}, MESSAGES),
    (
        "dolly",
        {"instruction": "Who?", "context": "Ann came.", "response": "Ann."},
        {},
        [{"role": "user", "content": "Who?\n\nAnn came."}, {"role": "assistant", "content": "Ann."}],
    ),
    (
        "dolly",  # Alpaca's input with Dolly's response
        {"instruction": "Who?", "input": "Ann came.", "response": "Ann."},
        {},
        [{"role": "user", "content": "Who?\n\nAnn came."}, {"role": "assistant", "content": "Ann."}],
    ),
    # openorca: `question` is data.prompt_key's default, `answer` is not there
    ("openorca", {"id": "a", "system_prompt": "", "question": "1 + 1?", "response": "2"}, {}, MESSAGES),
    (
        "openorca",
        {"id": "a", "system_prompt": "Be brief.", "question": "1 + 1?", "response": "2"},
        {},
        [SYSTEM, *MESSAGES],
    ),
]


@pytest.mark.parametrize(("form", "cells", "changes", "messages"), CASES)
def test_rows_become_messages(form, cells, changes, messages):
    found, conversation = read(cells, **changes)
    assert (found, conversation.messages) == (form, messages)
    insisted, conversation = read(cells, **changes, format=form)
    assert (insisted, conversation.messages) == (form, messages)


def test_five_rows_of_each_format_through_files(tmp_path):
    """Both kinds of file: Arrow adds nulls and types, and must change nothing."""
    for form, cells, changes, messages in CASES:
        if form == "prompt_response" and isinstance(cells.get("question"), list):
            continue  # a column of Arrow holds one type
        write_jsonl(tmp_path / "rows.jsonl", [cells] * 5)
        pq.write_table(pa.Table.from_pylist([cells] * 5), tmp_path / "rows.parquet")
        for name in ("rows.jsonl", "rows.parquet"):
            said = []
            source = rows_of_file(tmp_path / name, columns(**changes), {}, max_length=100, say=said.append)
            conversations = [source.convert(row) for row in source.read()]
            assert [without_nulls(conversation.messages) for conversation in conversations] == [
                without_nulls(messages)
            ] * 5
            assert said[0].startswith(f"{name}: {form} (columns ")


def without_nulls(value):
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def test_plain_text_is_a_document():
    settled = recognise([("file:1", {"text": "Once upon a time."})], COLUMNS, "file")
    document = formats.to_document(("file:1", {"text": "Once upon a time."}), settled)
    assert (settled.format, document.text, document.where) == ("text", "Once upon a time.", "file:1")
    assert recognise([("file:1", {"body": "a"})], columns(text_key="body"), "file").format == "text"
    assert recognise([("file:1", {"text": "a", **ROW})], columns(format="text"), "file").format == "text"


def test_the_verdict_names_what_is_read_and_what_is_not():
    rows = [("a.jsonl:1", {"id": 1, "instruction": "a", "input": "b", "output": "c", "tools": None, "text": "abc"})]
    assert verdict(rows, recognise(rows, COLUMNS, "a.jsonl"), "a.jsonl") == (
        "a.jsonl: alpaca (columns instruction, input, output, tools; not read: id, text)"
    )
    rows = [("a.jsonl:1", {"conversations": TURNS, "enable_thinking": False})]
    assert verdict(rows, recognise(rows, COLUMNS, "a.jsonl"), "a.jsonl") == (
        "a.jsonl: sharegpt (columns conversations, enable_thinking)"
    )
    assert verdict(rows, recognise(rows, COLUMNS, "a.jsonl"), "a.jsonl", variables=frozenset({"messages"})) == (
        "a.jsonl: sharegpt (columns conversations; not read: enable_thinking)"
    )
    rows = [("a.jsonl:1", {**ROW, "chat_template_kwargs": '{"dat": 1, "day": 2}'})]
    known = frozenset({"messages", "date", "day"})
    assert verdict(rows, recognise(rows, COLUMNS, "a.jsonl"), "a.jsonl", variables=known) == (
        "a.jsonl: prompt_response (columns question, answer, chat_template_kwargs; the chat template does not read "
        "dat of chat_template_kwargs, which so changes nothing; did you mean date?)"
    )
    rows = [("a.jsonl:1", {"extra_info": json.dumps(ROW), "id": 1})]
    assert verdict(rows, recognise(rows, columns(**NESTED), "a.jsonl"), "a.jsonl") == (
        "a.jsonl: prompt_response (columns extra_info; question out of the JSON text of extra_info; "
        "answer out of the JSON text of extra_info; not read: id)"
    )
    rows = [("a.jsonl:1", {"text": "a", "title": "b"})]
    assert (
        verdict(rows, recognise(rows, COLUMNS, "a.jsonl"), "a.jsonl") == "a.jsonl: text (columns text; not read: title)"
    )


@pytest.mark.parametrize(
    ("cells", "changes", "fragments"),
    [
        (
            {"input": "a", "label": "b"},
            {},
            [
                *("f.jsonl:1: f.jsonl has no such columns", "found ['input', 'label']", "'question' and 'answer'"),
                *("'instruction', 'output'", "'instruction', 'response'", "'system_prompt', 'question', 'response'"),
                *(
                    "'messages' or 'conversations' or 'conversation'",
                    "from and value",
                    "text: 'text'",
                    "data.prompt_key",
                ),
            ],
        ),
        (ROW, {"multiturn": True}, ["'messages' or 'conversations' or 'conversation' (data.multiturn.enable=true)"]),
        (ROW, {"format": "alpaca"}, ["data.format=alpaca, but f.jsonl", "alpaca: 'instruction', 'output'"]),
        ({"conversations": TURNS}, {"format": "messages"}, ["data.format=messages, but", "each with role and content"]),
        ({"question": "a"}, {}, ["'question' and 'answer'"]),
        (
            {"instruction": "a", "output": "b", "response": "c"},
            {},
            ["fit alpaca (instruction, output) and dolly (instruction, response)", "choose by data.format"],
        ),
        (
            {"problem": "a", "solution": "b", "answer": "c"},
            {},
            [
                "prompt_response (problem, answer) and prompt_response (problem, solution); choose by "
                "data.prompt_key and data.response_key"
            ],
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            {},
            ["To train the chosen replies of these pairs: data.prompt_key=prompt data.response_key=chosen."],
        ),
        (
            {"prompt": "a", "chosen": MESSAGES, "rejected": MESSAGES},
            {},
            ["To train the chosen conversations of these pairs: data.multiturn.messages_key=chosen."],
        ),
        (
            {"message_id": "1", "parent_id": None, "text": "Hi.", "role": "prompter"},
            {},
            ["f.jsonl:1: single messages of conversations", "'parent_id', 'role'", "data.format=text"],
        ),
        (
            {"prompt": "a", "completion": "b", "label": False},
            {},
            ["f.jsonl:1: good and bad replies", "'label'", "data.ignore_columns=[label]"],
        ),
        (
            {"conversations": ["a", "b"], "source": "x"},
            {},
            ["f.jsonl:1: column 'conversations' holds a list of texts", "str 'a'", "each with role and content"],
        ),
    ],
)
def test_a_file_that_fits_no_format_or_several(cells, changes, fragments):
    with pytest.raises(InputError) as caught:
        recognise([("f.jsonl:1", cells)], columns(**changes), "f.jsonl")
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []
    assert len(str(caught.value)) < 1500


def test_whoever_insists_on_a_format_gets_it():
    """Where rows fit and were made for something else."""
    for form, cells in (
        ("text", {"parent_id": "a", "text": "b", "role": "c"}),
        ("prompt_response", ROW | {"label": True}),
    ):
        assert recognise([("f.jsonl:1", cells)], columns(format=form), "f.jsonl").format == form


def test_schema_yaml_and_docs_know_every_format():
    """One entry in FORMATS is all that a format is: what else lists them is held to it here."""
    names = [*formats.FORMATS, "text"]
    assert sorted(get_args(FormatName)) == sorted(["auto", *names])
    yaml = (ROOT / "conf/data/sft.yaml").read_text()
    (comment,) = [line for line in yaml.splitlines() if line.startswith("format:")]
    assert [name for name in names if f" {name}," not in comment and f" {name};" not in comment] == []
    docs = (ROOT / "docs/data.md").read_text()
    for form in formats.FORMATS.values():
        (row,) = [line for line in docs.splitlines() if line.startswith(f"| `{form.name}` |")]
        assert f"`{json.dumps(form.example)}` |" in row
        assert [column for column in (*form.needs, *form.reads) if column not in row] == []
        settled = recognise([("f:1", form.example)], COLUMNS, "f")
        assert settled.format == form.name


def test_the_defaults_are_those_of_the_yaml():
    """What differs from them counts as named by the user."""
    data = load_config(["model.partial_pretrain=org/name", "data.train_files=org/name", "data.val_files=null"]).data
    own = columns_of(data)
    assert {key: getattr(own, key) for key in DEFAULT_KEYS} == DEFAULT_KEYS
    assert [key for key in DEFAULT_KEYS if own.names(key)] == [] and list(own.named_columns()) == []


@pytest.mark.parametrize(
    ("first", "cells", "changes", "message"),
    [
        (ROW, {"question": "a"}, {}, r"file:1: no column 'answer'; found \['question'\]. Set data.response_key"),
        (ROW, {"messages": MESSAGES}, {}, r"file:1: no column 'question'; found \['messages'\]. Set data.prompt_key"),
        (ROW, {**ROW, "answer": None}, {}, "data.response_key=answer leads to NoneType None, expected text"),
        (ROW, {**ROW, "question": 3}, {}, "data.prompt_key=question leads to int 3, expected text or a list"),
        ({"extra_info": {}}, {"extra_info": {"q": "a"}}, NESTED, r"struct without 'question'; it has \['q'\]"),
        ({"messages": MESSAGES}, {"messages": "hello"}, {}, "'messages' holds str 'hello', expected a list"),
        ({"messages": MESSAGES}, {"messages": []}, {}, "expected a list of messages"),
        ({"conversations": TURNS}, {"conversations": [{"from": "bot"}]}, {}, r"conversations\[0\] is from str 'bot'"),
        ({"conversations": TURNS}, {"conversations": MESSAGES}, {}, r"is from NoneType None, expected one of system"),
        (
            {"conversations": TURNS},
            {"conversations": [{"from": "user", "said": "a"}]},
            {},
            r"conversations\[0\] has no 'value'; found \['from', 'said'\]",
        ),
        (
            {"conversations": MESSAGES},
            {"conversations": [{"role": "user", "value": "a"}]},
            {},
            r"conversations\[0\] has no 'content'; found \['role', 'value'\]. .* data.message_keys.content=value",
        ),
        (
            {"instruction": "a", "response": "b"},
            {"instruction": "a", "context": "b", "input": "c", "response": "d"},
            {},
            "both 'context' and 'input' hold text",
        ),
        (
            {"conversations": TURNS},
            {"conversations": [TURNS[0], {"from": "function_call", "value": "add(1)"}]},
            {},
            r"conversations\[1\] \(function_call\) holds str 'add\(1\)', expected JSON",
        ),
        (
            {"conversations": TURNS},
            {"conversations": [{"from": "system", "value": "a"}, *TURNS], "system": "b"},
            {},
            "both in the column 'system' and in the first turn",
        ),
        (
            {"instruction": "a", "output": "b"},
            {"instruction": "a", "output": "b", "history": [["a"]]},
            {},
            r"history\[0\] is list \['a'\], expected \[question, answer\]",
        ),
        (
            {"instruction": "a", "output": "b"},
            {"instruction": "a", "input": 3, "output": "b"},
            {},
            "column 'input' holds int 3, expected text",
        ),
        (ROW, {**ROW, "question": " \n"}, {}, "file:1: data.prompt_key=question asks nothing"),
        (
            {"instruction": "a", "output": "b"},
            {"instruction": "", "input": " ", "output": "b"},
            {},
            "file:1: column 'instruction' asks nothing",
        ),
        (ROW, {**ROW, "enable_thinking": "false"}, {}, "'enable_thinking' holds str 'false', expected true or false"),
        (ROW, {**ROW, "chat_template_kwargs": "[1]"}, {}, "'chat_template_kwargs' holds list"),
        (ROW, {**ROW, "chat_template_kwargs": {"a": {1}}}, {}, "'chat_template_kwargs' is not plain JSON"),
    ],
)
def test_rows_that_cannot_be_used(first, cells, changes, message):
    with pytest.raises(RowError, match=message):
        read(cells, first=first, **changes)


def test_tools_and_template_options_travel_with_the_row():
    row = {"messages": MESSAGES, "tools": [{"name": "f"}], "enable_thinking": False}
    _, conversation = read(row)
    assert conversation.tools == [{"name": "f"}]
    assert conversation.template_options == {"today": "Monday", "enable_thinking": False}
    assert conversation.where == "file:1"


@pytest.mark.parametrize("as_text", [False, True])
def test_the_rows_own_template_options_win_and_nulls_are_absent(as_text):
    kwargs = {"today": "Friday", "place": "here", "absent": None, "enable_thinking": True}
    row = {**ROW, "chat_template_kwargs": json.dumps(kwargs) if as_text else kwargs, "enable_thinking": False}
    _, conversation = read(row)
    assert conversation.template_options == {"today": "Friday", "place": "here", "enable_thinking": False}


TEMPLATE = (
    "{%- if tools %}{{- tools | tojson }}{%- endif %}"
    "{%- for m in messages %}{{- '<|im_start|>' ~ m.role ~ '\\n' }}"
    "{%- if 'thinking' in m %}{{- '<think>' ~ m.thinking ~ '</think>' }}{%- endif %}"
    "{{- m.content }}{%- for c in m.tool_calls %}{{- c.function | tojson }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def test_parquet_fills_absent_fields_with_nulls_and_none_of_them_reaches_the_template(tmp_path):
    """Every struct of a column has the keys of all its siblings; jsonl has not. The samples must be the same."""
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "strict": True}}}
    rows = [
        {"messages": [SYSTEM, QUESTION, {"role": "assistant", "content": "2", "thinking": "Hm."}]},
        {
            "messages": [
                QUESTION,
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "content": "2", "tool_call_id": "a"},
                ANSWER,
            ],
            "tools": [tool],
            "enable_thinking": False,
        },
        {
            "messages": [
                QUESTION,
                {"role": "assistant", "tool_calls": [{"function": {"name": "mul", "arguments": {"c": "3"}}}]},
            ],
            "tools": [{"function": {"name": "mul"}}],
            "chat_template_kwargs": {"today": "Friday"},
        },
    ]
    every_column = dict.fromkeys(["messages", "tools", "enable_thinking", "chat_template_kwargs"])
    pq.write_table(pa.Table.from_pylist([every_column | row for row in rows]), tmp_path / "rows.parquet")
    assert "None" in str([cells for _, cells in read_rows(tmp_path / "rows.parquet")])
    write_jsonl(tmp_path / "rows.jsonl", rows)
    tokenizer = tiny_tokenizer(TEMPLATE)
    texts = []
    for name in ("rows.jsonl", "rows.parquet"):
        source = rows_of_file(tmp_path / name, COLUMNS, {}, max_length=1000, say=lambda line: None)
        conversations = [source.convert(row) for row in source.read()]
        samples = [sample for of_one in encode_batch(conversations, tokenizer) for sample in of_one]
        texts.append([tokenizer.decode(sample.input_ids) for sample in samples])
    assert texts[0] == texts[1]
    assert "None" not in str(texts) and "null" not in str(texts)


def test_a_null_that_is_meant_reaches_the_template_from_jsonl(tmp_path):
    """As it does from JSON text; in parquet it cannot be told from an absent key."""
    call = {"id": None, "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": None}}}
    tool = {"type": "function", "function": {"name": "add", "parameters": {"b": {"default": None}}}}
    row = {"messages": [QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]}], "tools": [tool]}
    as_text = {key: json.dumps(value) for key, value in row.items()}
    tokenizer = tiny_tokenizer(TEMPLATE.replace("m.content", "m.content | default('', true)"))
    texts = []
    for rows in ([row], [as_text]):
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        source = rows_of_file(path, COLUMNS, {}, max_length=1000, say=lambda line: None)
        ((sample,),) = encode_batch([source.convert(row) for row in source.read()], tokenizer)
        texts.append(tokenizer.decode(sample.input_ids))
    assert texts[0] == texts[1]
    assert '"b": null' in texts[0] and '"default": null' in texts[0] and "None" not in texts[0]


def test_columns_that_files_do_not_share_are_named(tmp_path):
    first = write_jsonl(tmp_path / "first.jsonl", [{**ROW, "tools": []}])
    second = write_jsonl(tmp_path / "second.jsonl", [{**ROW, "id": 1, "source": "a"}])
    sources = [rows_of_file(p, COLUMNS, {}, max_length=100, say=lambda line: None) for p in (first, second)]
    assert differences(sources) == [
        "second.jsonl lacks the column tools of first.jsonl",
        "first.jsonl lacks the columns id, source of second.jsonl",
    ]
    chats = write_jsonl(tmp_path / "chats.jsonl", [{"messages": MESSAGES}])
    more = write_jsonl(tmp_path / "more.jsonl", [{"messages": MESSAGES, "id": 1}])
    others = [rows_of_file(p, COLUMNS, {}, max_length=100, say=lambda line: None) for p in (chats, more)]
    assert differences([sources[0], *others]) == ["chats.jsonl lacks the column id of more.jsonl"]
